"""`fluvial run`: the answer on stdout, all else on stderr, and every way to fail."""

from __future__ import annotations

import json
import shutil

import pytest

import fluvial as api
from fluvial.engine.session import Session

KEYS = {"v", "model", "prompt", "answer", "reason", "usage", "warnings"}


def test_an_answer_about_an_image_and_a_video(fluvial, media):
    result = fluvial("run", "-i", media / "image.png", "-v", media / "clip.mp4", "What is there?", "-n", 8, "--offline")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("\n") and result.stdout.strip()


def test_json_is_one_object(fluvial, media):
    result = fluvial("run", "pebble", "-i", media / "image.png", "What colour?", "--json", "-n", 8)
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert set(shown) == KEYS and shown["v"] == 1 and shown["model"] == "pebble"
    assert shown["prompt"] == "What colour?" and shown["warnings"] == []
    assert shown["usage"]["media_tokens"] > 0 and shown["usage"]["state_bytes"] > 0


def test_json_lines(fluvial, tiny):
    result = fluvial("run", tiny, "hello", "--json", "--stream", "-n", 6)
    *pieces, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(set(piece) == {"v", "event", "text"} and piece["v"] == 1 for piece in pieces)
    assert set(last) == KEYS | {"event"} and last["event"] == "done" and last["reason"] == "length"
    assert "".join(piece["text"] for piece in pieces) == last["answer"]


def test_the_options_of_an_answer_arrive(fluvial, tiny, monkeypatch):
    asked = {}

    def ask(self, question, **options):
        asked.update(options, question=question)
        yield api.Done("", "end", api.Usage(1, 0, 0, 0.1, 0.1, 0, 0, 1))

    monkeypatch.setattr(Session, "ask", ask)
    words = "--temp 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repeat-penalty 1.2 --seed 3 --stop a --stop b -n 9"
    assert fluvial("run", tiny, "hello", *words.split(), stdin="").exit_code == 0
    expected = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 3}
    assert asked.items() >= (expected | {"stop": ["a", "b"], "max_tokens": 9, "question": "hello"}).items()


def test_a_draft_changes_the_figures_and_not_the_answer(fluvial, tiny):
    command = ("run", tiny, "a b a b", "-n", 40, "--stats", "--draft")
    plain, drafted = (fluvial(*command, name) for name in ("none", "ngram"))
    assert plain.stdout == drafted.stdout and plain.exit_code == drafted.exit_code == 0
    assert "draft ngram: " in drafted.stderr and "draft" not in plain.stderr
    shown = json.loads(fluvial("run", tiny, "a b a b", "-n", 40, "--draft", "ngram", "--json").stdout)
    assert shown["usage"]["forwards"] + shown["usage"]["accepted_tokens"] == 40
    wrong = fluvial("run", tiny, "hello", "--draft", "nothing")
    assert wrong.exit_code == 3 and "ngram" in wrong.stderr


def test_system_dtype_and_stats(fluvial, tiny):
    result = fluvial("run", tiny, "hello", "-s", "Be brief.", "--dtype", "bf16", "-n", 4, "--stats")
    assert result.exit_code == 0 and "out: 4 tokens" in result.stderr and "state" in result.stderr
    plain = json.loads(fluvial("run", tiny, "hello", "-n", 1, "--json").stdout)
    system = json.loads(fluvial("run", tiny, "hello", "-n", 1, "--json", "-s", "Be brief.").stdout)
    assert system["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_a_saved_conversation_goes_on_as_if_it_had_not_stopped(fluvial, tiny, tmp_path, media):
    common = ("-n", 12, "--dtype", "fp64", "--temp", 0.8)
    first = ("run", tiny, "-i", media / "image.png", "Look.", "--seed", 5, "--save-state", tmp_path / "talk.state")
    saved = fluvial(*first, *common)
    assert saved.exit_code == 0 and "Saved" in saved.stderr
    on = ("run", tiny, "And now?", "--state", tmp_path / "talk.state", "--json")
    once, twice = fluvial(*on, *common), fluvial(*on, *common)
    session = api.load(tiny, dtype="fp64").session()
    session.push(api.Image(media / "image.png"))
    assert saved.stdout == list(session.ask("Look.", max_tokens=12, temperature=0.8, seed=5))[-1].text + "\n"
    unbroken = list(session.ask("And now?", max_tokens=12, temperature=0.8))[-1]
    assert json.loads(once.stdout)["answer"] == json.loads(twice.stdout)["answer"] == unbroken.text
    assert json.loads(once.stdout)["usage"]["position"] == unbroken.usage.position


def test_a_truncated_video_is_a_warning(fluvial, media):
    result = fluvial("run", "-v", media / "half.mp4", "What is there?", "--json", "-n", 4)
    assert result.exit_code == 0 and "Warning:" in result.stderr and "truncated" in result.stderr
    assert "truncated" in json.loads(result.stdout)["warnings"][0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", ""], 2, "prompt is empty"),
        (["run", "hi", "--temp", "-1"], 2, "temperature"),
        (["run", "hi", "--top-p", "2"], 2, "top_p"),
        (["run", "hi", "-n", "0"], 2, "--max-tokens"),
        (["run", "hi", "--no-such-option"], 2, "--no-such-option"),
        (["run", "hi", "--dtype", "int3"], 2, "dtype"),
        (["run", "hi", "--stop", ""], 2, "stop string"),
        (["run", "hi", "--fps", "2"], 2, "for videos"),
        (["run", "hi", "--max-pixels", "2"], 2, "for images"),
        (["run", "hi", "-v", "{media}/clip.mp4", "--fps", "0"], 2, "--fps"),
        (["run", "hi", "-v", "{media}/clip.mp4", "--fps", "1", "--frames", "2"], 2, "two ways"),
        (["run", "hi", "--state", "{media}/nothing.state"], 2, "no file"),
        (["run", "hi", "--state", "{media}/image.png", "-s", "Be brief."], 2, "system"),
        (["run", "hi", "--save-state", "{media}/no/folder.state"], 2, "no folder"),
        (["run", "no-such-model", "hi"], 3, "No model 'no-such-model'"),
        (["run", "{media}", "hi"], 3, "config.json"),
        (["chat", "no-such-model"], 3, "No model"),
        (["models", "show", "no-such-model"], 3, "No model"),
        (["run", "-i", "{media}/nothing.jpg", "hi"], 4, "no such file"),
        (["run", "-i", "{media}", "hi"], 4, "directory"),
        (["run", "-i", "http://example.org/a.jpg", "hi"], 4, "http://example.org/a.jpg"),
        (["run", "-i", "{media}/broken.jpg", "hi"], 4, "broken.jpg"),
        (["run", "-i", "{media}/clip.mp4", "hi"], 4, "video"),
        (["run", "-v", "{media}/broken.jpg", "hi"], 4, "broken.jpg"),
        (["chat", "-i", "{media}/nothing.jpg"], 4, "no such file"),
        (["run", "-i", "{media}/image.png", "--max-pixels", "10", "hi"], 5, "too large"),
        (["run", "hi", "--state", "{media}/image.png"], 7, "damaged"),
    ],
)
def test_exit_codes(fluvial, media, words, code, says):
    result = fluvial(*(word.format(media=media) for word in words))
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert says in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_a_damaged_model_is_an_integrity_error(fluvial, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert fluvial("run", folder, "hi").exit_code == 7
    (folder / "config.json").write_text("{")
    assert fluvial("run", folder, "hi").exit_code == fluvial("models", "show", folder).exit_code == 7


def raises(error: BaseException):
    def ask(*_, **__):
        yield api.Token("Half an ans", 5)
        raise error

    return ask


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (MemoryError(), 5, "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), 5, "Out of memory"),
        (ValueError("of all things\nmore"), 1, "ValueError: of all things"),
        (api.UnsupportedError("Not here.", "Because."), 1, "Because."),
    ],
)
def test_what_ends_an_answer(fluvial, tiny, monkeypatch, tmp_path, error, code, says):
    monkeypatch.setattr(Session, "ask", raises(error))
    state = tmp_path / "talk.state"
    result = fluvial("run", tiny, "hi", "--save-state", state)
    assert result.exit_code == code and says in result.stderr and not state.exists()
    assert result.stdout == "Half an ans\n" and "Traceback" not in result.stderr
    assert ("doctor" in result.stderr) == isinstance(error, ValueError)
    assert "Traceback" in fluvial("run", tiny, "hi", "--debug").stderr


def test_an_interrupted_answer_in_json_says_so(fluvial, tiny, monkeypatch):
    monkeypatch.setattr(Session, "ask", raises(KeyboardInterrupt()))
    result = fluvial("run", tiny, "hi", "--json")
    shown = json.loads(result.stdout)
    assert result.exit_code == 130 and set(shown) == KEYS
    assert (shown["answer"], shown["reason"], shown["usage"]) == ("Half an ans", "interrupted", None)


def test_a_cache_folder_serves_the_next_run(fluvial, tiny, media, tmp_path):
    command = ("run", tiny, "What is there?", "-i", media / "image.png", "-n", 2, "--cache-disk", tmp_path / "cache")
    first, second = (fluvial(*command, "--json") for _ in range(2))
    cold, warm = (json.loads(result.stdout) for result in (first, second))
    assert cold["usage"]["cached_tokens"] == 0 and "nothing is cached" in cold["usage"]["cache_misses"]
    assert warm["usage"]["cached_tokens"] > 30 and warm["answer"] == cold["answer"]
    shown = fluvial(*command, "--stats", "--cache", "200MB")
    assert "of them cached" in shown.stderr
    wrong = fluvial("run", tiny, "hello", "--cache", "much")
    assert wrong.exit_code == 2 and "much" in wrong.stderr
