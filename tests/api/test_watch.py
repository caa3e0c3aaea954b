"""`fluvial watch`: answers at their times about files, patterns and text; what cannot be watched has its exit code."""

from __future__ import annotations

import json

import pytest

from fluvial.adapters.errors import UsageError
from fluvial.cli.watch import duration


def test_a_file_is_watched_to_its_end(fluvial, tiny, media, tmp_path):
    saved = tmp_path / "stream.state"
    asked = ("--ask", "What is there?", "--ask", "Why?", "--every", "400ms", "--fps", "5", "-n", 3)
    result = fluvial("watch", media / "clip.mp4", "--model", tiny, *asked, "--json", "--save-state", saved)
    assert result.exit_code == 0, result.stderr
    *answers, done = (json.loads(line) for line in result.stdout.splitlines())
    assert sorted({round(one["t"], 1) for one in answers}) == [0.4, 0.8]
    assert {one["question"] for one in answers} == {"What is there?", "Why?"} and len(answers) == 4
    assert done["stats"]["frames"] == 5 and done["stats"]["dropped"] == done["stats"]["missed"] == 0
    shown = fluvial("watch", media / "clip.mp4", "--model", tiny, *asked, "--stats")
    assert shown.stdout.splitlines()[0].startswith("[    0.4 s] ")
    assert "5 frames, 0 dropped" in " ".join(shown.stderr.split())
    follow = fluvial("run", tiny, "And now?", "--state", saved, "-n", 2, "--json")
    assert follow.exit_code == 0 and json.loads(follow.stdout)["usage"]["position"] > done["stats"]["tokens"]


def test_text_is_asked_about_once(fluvial, tiny):
    result = fluvial("watch", "-", "--model", tiny, "--ask", "What is the code?", "-n", 3, stdin="One.\n\nTwo.\n")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1


def test_a_damaged_file_is_watched_with_a_warning(fluvial, tiny, media):
    result = fluvial("watch", media / "half.mp4", "--model", tiny, "--ask", "x", "-n", 1, "--every", "1s", "--stats")
    assert result.exit_code == 0 and "Warning" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nothing.mp4", "--ask", "x"), 4, "no such file"),
        (("rtsp://camera.example/1", "--ask", "x"), 2, "network is off"),
        (("test:1",), 2, "no question"),
        (("test:1", "--ask", "x", "--every", "soon"), 2, "no time"),
        (("test:1", "--ask", "x", "--every", "0s"), 2, "no time"),
        (("test:1", "--ask", "x", "--model", "nowhere"), 3, "No model"),
    ],
)
def test_what_cannot_be_watched_has_its_exit_code(fluvial, words, code, said):
    result = fluvial("watch", *words)
    assert result.exit_code == code and said in " ".join(result.stderr.split()) and not result.stdout


def test_durations():
    assert [duration(text) for text in ("2", "2s", "500ms", "1.5m", "1h")] == [2.0, 2.0, 0.5, 90.0, 3600.0]
    for wrong in ("", "-1s", "1d", "s"):
        with pytest.raises(UsageError):
            duration(wrong)
