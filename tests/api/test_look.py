"""`fluvial doctor` and `fluvial models`."""

from __future__ import annotations

import importlib
import json

from fluvial.cli import doctor


def test_doctor(fluvial):
    result = fluvial("doctor")
    assert result.exit_code == 0 and "All is well." in result.stdout and "kernels" in result.stdout
    about = json.loads(fluvial("doctor", "--json").stdout)
    assert about["v"] == 1 and about["problems"] == [] and "pebble" in about["models"]
    assert {"fluvial", "python", "torch", "opencv-python", "pillow"} <= set(about["versions"])
    assert about["kernels"]["detail"] and about["kernels"]["ops"] and about["chip"]["threads"] >= 1
    assert about["memory"]["available"] is None or 0 < about["memory"]["available"] <= about["memory"]["total"]


def test_doctor_shows_what_composes(fluvial):
    assert "no [1]" in fluvial("doctor", "--matrix").stdout
    rows = json.loads(fluvial("doctor", "--matrix", "--json").stdout)["matrix"]
    mtp = next(row for row in rows if row["value"] == "mtp")
    assert mtp["refused"]["qwen3_5 hybrid"] == "" and "bring such a head" in mtp["refused"]["mamba"]


def test_doctor_says_what_is_broken(fluvial, monkeypatch):
    real = importlib.import_module

    def without_tokenizers(name, *rest):
        if name == "tokenizers":
            raise ImportError("libnothing.so.1: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", without_tokenizers)
    result = fluvial("doctor")
    assert result.exit_code == 1 and "BROKEN" in result.stdout and "libnothing.so.1" in result.stdout


def test_models(fluvial, tiny, transformer):
    listed = fluvial("models", "ls").stdout
    assert listed.startswith("NAME") and "pebble" in listed
    assert next(row["name"] for row in json.loads(fluvial("models", "ls", "--json").stdout)["models"]) == "pebble"
    recurrent = json.loads(fluvial("models", "show", tiny, "--json").stdout)
    assert recurrent["state_bytes"] > 0 and recurrent["tape_bytes_per_token"] == 0
    assert recurrent["reads"] == ["text", "image", "video"]
    growing = json.loads(fluvial("models", "show", transformer, "--json").stdout)
    assert growing["state_bytes"] == 0 and growing["tape_bytes_per_token"] > 0
    assert "for each token" in fluvial("models", "show", transformer).stdout


def test_the_shape_is_what_a_loaded_model_has(fluvial, transformer):
    import fluvial as api

    shown = json.loads(fluvial("models", "show", transformer, "--json").stdout)
    explained = api.load(transformer).explain()
    assert all(shown[key] == explained[key] for key in ("parameters", "blocks", "state_bytes", "type"))
