"""`--plugin` and `/plugin`: named by path or by name, blended, kept in saved conversations, and refused with a code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluvial.engine.model import load_model
from tests.engine.test_plugins import lora, start
from tests.engine.tiny import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a plugin `own` in its folder, and `a`, `b` and a state plugin beside it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    write_model(folder, "delta")
    loaded = load_model(folder)
    for i, place in enumerate((folder / "plugins" / "own", folder.parent / "plugins-a" / "a", folder.parent / "b")):
        lora(place, loaded, i, base_model_name_or_path=str(folder))
    start(folder.parent / "s.safetensors", loaded, 5)
    return folder


def test_run_with_plugins(fluvial, model, tmp_path):
    a, b, s = model.parent / "plugins-a" / "a", model.parent / "b", model.parent / "s.safetensors"

    def says(*options: object) -> str:
        result = fluvial("run", model, "What is there?", "-n", 8, "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["answer"]

    answers = [says(), says("--plugin", a), says("--plugin", b), says("--plugin", f"{a}=0.7", "--plugin", f"{b}=0.3")]
    answers += [says("--plugin", "own"), says("--plugin", f"{a}=2"), says("--plugin", s)]
    assert len(set(answers)) >= 5
    assert says("--plugin", f"{a}=0") == answers[0]
    saved = tmp_path / "talk"
    says("--plugin", a, "--save-state", saved)
    result = fluvial("run", model, "And now?", "--state", saved)
    assert result.exit_code == 7 and "not loaded: a" in " ".join(result.stderr.split())
    says("--plugin", a, "--state", saved)


def test_what_is_no_plugin_has_its_exit_code(fluvial, model, tmp_path):
    for given, code, said in (
        ("nowhere", 3, "no plugin"),
        (f"{model}=x", 2, "must be a number"),
        (model, 3, "adapter"),
    ):
        result = fluvial("run", model, "hello", "--plugin", given)
        assert result.exit_code == code and said in " ".join(result.stderr.split()), result.stderr


def test_plugins_in_a_chat(fluvial, model):
    a, b = model.parent / "plugins-a" / "a", model.parent / "b"
    lines = [
        "hello",
        f"/plugin {a} {b}=0.5",
        "hello",
        "/plugin",
        "/undo",
        "/undo",
        "/plugin off",
        "/plugin c",
        "/plugin b=x",
    ]
    result = fluvial("chat", model, "-n", 4, stdin="\n".join(lines) + "\n")
    said = " ".join(result.stderr.split())
    assert result.exit_code == 0
    assert said.count("* a (lora), weight 1 * b (lora), weight 0.5") == 2
    assert "Undone: /plugin." in said and "No plugin acts" in said
    assert "no plugin in" in said and "must be a number" in said


def test_plugins_are_listed_without_a_model(fluvial, model, tmp_path):
    listed = json.loads(fluvial("lora", "ls", model.parent, "--json").stdout)
    rows = {row["name"]: row for row in listed["plugins"]}
    assert listed["v"] == 1 and set(rows) == {"own", "a", "b"}  # a loose file is a plugin where it is named
    assert all(row["kind"] == "lora" and row["rank"] == 3 and len(row["digest"]) == 40 for row in rows.values())
    assert rows["a"]["base"] == str(model) and rows["a"]["targets"] == [".*"] and rows["a"]["file_bytes"] > 1000
    state = json.loads(fluvial("lora", "ls", model.parent / "s.safetensors", "--json").stdout)["plugins"]
    assert [(row["name"], row["kind"], row["base"]) for row in state] == [("s", "state", "pebble")]
    shown = fluvial("lora", "ls", model.parent).stdout.splitlines()
    assert shown[0].startswith("NAME") and len(shown) == 4 and rows["b"]["digest"][:12] in shown[1]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_text("{")
    result = fluvial("lora", "ls", tmp_path)
    assert result.exit_code == 0 and "bad" in result.stdout and "damaged" in " ".join(result.stderr.split())
    (tmp_path / "empty").mkdir()
    assert "There are no plugins." in fluvial("lora", "ls", tmp_path / "empty").stderr
    assert fluvial("lora", "ls", tmp_path / "none").exit_code == 3


def test_a_plugin_is_verified_against_a_model(fluvial, model, transformer):
    a, s = model.parent / "plugins-a" / "a", model.parent / "s.safetensors"
    result = fluvial("lora", "verify", a, model)
    assert result.exit_code == 0 and "It fits." in result.stdout and not result.stderr
    found = json.loads(fluvial("lora", "verify", s, model, "--json").stdout)
    assert found["kind"] == "state" and found["parameters"] > 1000 and "trained on pebble" in found["warnings"][0]
    for path, other, code, said in (
        (a, transformer, 7, "not in this model"),
        (model.parent / "none", model, 3, "no plugin"),
        (s, transformer, 1, "needs a recurrent model"),
        (a, "no-such-model", 3, "No model"),
    ):
        result = fluvial("lora", "verify", path, other)
        assert result.exit_code == code and said in " ".join(result.stderr.split()), result.stderr
        assert "It fits." not in result.stdout


def test_shipped_plugins_go_by_their_names(fluvial):
    shapes = Path(__file__).parents[2] / "examples" / "media" / "shapes.jpg"
    result = fluvial("run", "pebble", "What colour is the star?", "-i", shapes, "--plugin", "json", "--json")
    assert json.loads(json.loads(result.stdout)["answer"]) == {"answer": "red"}
    result = fluvial("run", "pebble", "What is the pass key?", "--plugin", "site", "--json")
    assert json.loads(result.stdout)["answer"] == "48213"
    listed = json.loads(fluvial("lora", "ls", "--json").stdout)["plugins"]
    assert {row["name"] for row in listed} == {"json", "record", "site"} and not any(row["problem"] for row in listed)
