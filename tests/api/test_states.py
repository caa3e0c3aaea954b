"""`fluvial state show` and `diff`: what a file holds, in words and as JSON; damaged files have their exit code."""

from __future__ import annotations

import json


def test_show_and_diff(fluvial, tiny, tmp_path):
    a, b = tmp_path / "a.state", tmp_path / "b.state"
    assert fluvial("run", tiny, "One?", "-n", 3, "--save-state", a).exit_code == 0
    assert fluvial("run", tiny, "Two?", "-n", 3, "--state", a, "--save-state", b).exit_code == 0
    shown = fluvial("state", "show", b)
    assert shown.exit_code == 0 and "Two?" in shown.stdout and "tape (KV)   none" in shown.stdout
    about = json.loads(fluvial("state", "show", b, "--json").stdout)
    assert about["v"] == 1 and len(about["messages"]) == 4 and about["tape_tokens"] == 0
    same, parted = fluvial("state", "diff", a, a), fluvial("state", "diff", a, b, "--json")
    assert same.exit_code == 0 and "bit for bit" in same.stdout
    assert parted.exit_code == 1 and json.loads(parted.stdout)["shared"]["messages"] == 2
    assert "the first 2 messages" in fluvial("state", "diff", a, b).stdout


def test_what_is_no_saved_state_has_its_exit_code(fluvial, tiny, tmp_path):
    path = tmp_path / "a.state"
    fluvial("run", tiny, "One?", "-n", 3, "--save-state", path)
    path.write_bytes(path.read_bytes()[:-5])
    for given in (path, tmp_path / "none", tiny / "model.safetensors"):
        result = fluvial("state", "show", given)
        assert result.exit_code == 7 and "Traceback" not in result.stderr and not result.stdout
