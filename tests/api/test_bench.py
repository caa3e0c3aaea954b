"""`fluvial bench`: tables on stdout, figures and pictures in files; what cannot be measured has its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.conftest import Command


def test_recall_of_two_models_as_table_json_and_picture(
    fluvial: Command, tiny: Path, transformer: Path, tmp_path: Path
) -> None:
    asked = ["--tasks", "needle,video-code", "--lengths", "60,0.1k", "--frames", "8", "--samples", "1", "-n", "2"]
    files = ["--json", tmp_path / "r.json", "--plot", tmp_path / "r.png"]
    shown = fluvial("bench", "recall", tiny, transformer, *asked, *files, "--seed", 7)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert len([line for line in lines if line.startswith(("needle", "video-code"))]) == 6
    found = json.loads((tmp_path / "r.json").read_text())
    one, two = found["reports"]
    assert found["kind"] == "recall" and one["model"] == str(tiny) and two["kv"] == "exact"
    assert one["arguments"] == {
        "tasks": ["needle", "video-code"], "lengths": [60, 102], "frames": [8], "samples": 1, "seed": 7,
        "max_tokens": 2,
    }  # fmt: skip
    assert [row["question"] for row in one["rows"]] == [row["question"] for row in two["rows"]]
    assert {row["tape_bytes"] for row in one["rows"]} == {0} and all(row["tape_bytes"] for row in two["rows"])
    assert one["versions"].keys() == {"fluvial", "torch", "python"} and one["fingerprint"] != two["fingerprint"]
    assert (tmp_path / "r.png").read_bytes()[1:4] == b"PNG"


def test_memory_in_every_mode_of_rows(fluvial: Command, tiny: Path, tmp_path: Path) -> None:
    shape = {
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "max_position_embeddings": 4096,
    }  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    modes = ["--kv", "exact", "--kv", "window:64", "--tokens", "1k", "--growing", "600", "--frames", 2]
    files = ["--json", tmp_path / "m.json", "--plot", tmp_path / "m.svg"]
    shown = fluvial("bench", "memory", tmp_path / "shape.json", tiny, *modes, *files)
    assert shown.exit_code == 0, shown.output
    exact, bounded, recurrent = json.loads((tmp_path / "m.json").read_text())["models"]
    assert [one["kv"] for one in (exact, bounded, recurrent)] == ["exact", "window:64", "exact"]
    ends = [one["over_tokens"][-1] for one in (exact, bounded, recurrent)]
    assert [end["tokens"] for end in ends] == [600, 1024, 1024] and exact["growing"]
    assert ends[0]["tape_bytes"] > 0 == ends[1]["tape_bytes"] and len(recurrent["over_frames"]) == 2
    assert "<svg" in (tmp_path / "m.svg").read_text()


def test_the_list_of_tasks(fluvial: Command) -> None:
    shown = fluvial("bench", "recall", "pebble", "--tasks", "list")
    assert shown.exit_code == 0 and "needle-multi-query" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("recall", "TINY", "--tasks", "memory"), 2, "There is no task 'memory'"),
        (("recall", "TINY", "--lengths", "1k,none"), 2, "--lengths is '1k,none'"),
        (("recall", "TINY", "--lengths", "0"), 2, "--lengths is '0'"),
        (("recall", "nowhere"), 3, "nowhere"),
        (("recall", "TINY", "--kv", "window:8"), 1, "constant memory"),
        (("memory", "TINY", "--tokens", "1k,2k"), 2, "one number"),
        (("memory", "TINY", "--plot", "x.doc"), 2, "no picture"),
        (("memory", "TINY", "--json", "no/such/folder/x.json"), 2, "no folder"),
        (("memory", "none.json"), 7, "does not describe a model"),
    ],
)
def test_what_cannot_be_measured(fluvial: Command, tiny: Path, words: tuple[str, ...], code: int, said: str) -> None:
    shown = fluvial("bench", *(tiny if word == "TINY" else word for word in words))
    assert shown.exit_code == code and said in " ".join(shown.stderr.split()), shown.output
