"""Which word is the model and which the prompt; what is piped in."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import size, visible
from fluvial.cli.words import model_and_prompt


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes stdin a file with that text, as a shell's `<` does."""

    def pipe(text: str | bytes) -> None:
        path = tmp_path / "piped"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setattr(sys, "stdin", path.open(encoding="utf-8"))

    return pipe


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        (["hello"], "", ("pebble", "hello")),
        (["What is this?"], "", ("pebble", "What is this?")),
        (["pebble", "hello"], "", ("pebble", "hello")),
        (["pebble", "pebble"], "", ("pebble", "pebble")),
        (["some/where", "hello"], "", ("some/where", "hello")),
        (["is this and/or that?"], "", ("pebble", "is this and/or that?")),
        (["x" * 5000], "", ("pebble", "x" * 5000)),
        ([], "hello\n", ("pebble", "hello\n")),
        (["-"], "hello", ("pebble", "hello")),
        (["pebble"], "hello", ("pebble", "hello")),
        (["pebble/transformer"], "hello", ("pebble/transformer", "hello")),
        (["other", "-"], "hello", ("other", "hello")),
        (["Sum it up."], "a long text\n", ("pebble", "a long text\nSum it up.")),
    ],
)
def test_words(words, stdin, expected, piped):
    piped(stdin)
    assert model_and_prompt(words) == expected


def test_a_folder_with_a_config_is_a_model(tiny, piped):
    piped("hello")
    assert model_and_prompt([str(tiny)]) == (str(tiny), "hello")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "prompt is empty"),
        ([""], "prompt is empty"),
        (["  "], "prompt is empty"),
        (["-"], "prompt is empty"),
        (["pebble", ""], "prompt is empty"),
        (["pebble"], "is a model, not a question"),
        (["models/mine"], "could be a prompt or a model"),
        (["what", "is", "this"], 'fluvial run "what is this"'),
        (["pebble", "is", "this"], 'fluvial run pebble "is this"'),
        (["\udcff"], "not text"),
    ],
)
def test_words_that_cannot_be_meant(words, says, piped):
    piped("")
    with pytest.raises(UsageError, match=says):
        model_and_prompt(words)


def test_a_lone_file_is_not_a_prompt(media, piped, monkeypatch):
    piped("")
    monkeypatch.chdir(media)
    with pytest.raises(UsageError, match="-i and -v"):
        model_and_prompt(["image.png"])


def test_what_is_piped_in_must_be_text(piped):
    piped(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        model_and_prompt([])


def test_no_stdin_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert model_and_prompt(["hello"]) == ("pebble", "hello")
    with pytest.raises(UsageError):
        model_and_prompt([])
    monkeypatch.setattr(sys, "stdin", io.StringIO("not a file"))  # nothing to look at: not waited for
    assert model_and_prompt(["hello"]) == ("pebble", "hello")


def test_an_answer_does_not_steer_the_terminal():
    assert visible("a\x1b[2Jb\tc\nd\x7f\x9b") == "a␛[2Jb\tc\nd␡\ufffd"
    assert visible("жé漢") == "жé漢"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (224256, "219 KiB"), (2**40, "1024 GiB")],
)
def test_sizes(count, text):
    assert size(count) == text
