"""Saved sessions: whole whenever the writer is killed, refused after any change, the same in another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fluvial.adapters.errors import IntegrityError
from fluvial.engine.session import Session
from fluvial.engine.state_report import compare, describe, read
from fluvial.models import state_file
from fluvial.models.state import State
from tests.engine.tiny import VARIANTS, tiny, write_model

OLD = State({"0.S": torch.arange(3000.0)}, (7,), "model")
NEW = State({"0.S": torch.arange(3000.0) + 1, "1.S": torch.zeros(2, 2)}, (9,), "model")


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(tensors: dict[str, torch.Tensor], path: str, metadata: dict[str, str]) -> None:
    save_file(tensors, path, metadata=metadata)
    os.truncate(path, os.path.getsize(path) // 2)
    die()


def last(function: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> None:
        function(*args, **kwargs)
        die()

    return call


POINTS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "before the file": (state_file.tempfile, "mkstemp", die),
    "after the empty file": (state_file.tempfile, "mkstemp", last(state_file.tempfile.mkstemp)),
    "half written": (state_file, "save_file", half_written),
    "written": (state_file, "save_file", last(save_file)),
    "synced": (state_file, "_sync", last(state_file._sync)),
    "before the name": (state_file.os, "replace", die),
    "named": (state_file.os, "replace", last(os.replace)),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_while_writing_the_old_or_the_new_file_is_whole(point: str, tmp_path: Path, monkeypatch):
    path = tmp_path / "a.state"
    OLD.save(path)
    monkeypatch.setattr(*POINTS[point])
    child = os.fork()
    if not child:
        try:
            NEW.save(path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.undo()
    found = State.restore(path)
    wanted = NEW if point == "named" else OLD
    assert found.position == wanted.position and torch.equal(found.leaves["0.S"], wanted.leaves["0.S"])
    NEW.save(path)  # what the killed one left is in nobody's way
    assert State.restore(path).position == NEW.position


@pytest.fixture(scope="module")
def session_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    session = Session(tiny("hybrid"))
    list(session.ask("What is there?", max_tokens=4, temperature=1.0, seed=3))
    path = tmp_path_factory.mktemp("saved") / "talk.state"
    session.save(path)
    return path


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans(), header=st.booleans())
def test_a_changed_or_cut_file_is_refused(session_file: Path, at: float, bit: int, cut: bool, header: bool):
    whole = session_file.read_bytes()
    place = int(at * (8 + int.from_bytes(whole[:8], "little") if header else len(whole)))
    changed = session_file.with_suffix(".changed")
    changed.write_bytes(whole[:place] if cut else whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        found = read(changed)
    except IntegrityError as error:
        assert error.what and error.why  # says what is wrong
    else:  # a blank of the header's padding
        assert not cut and compare(found, read(session_file))["equal"]


def test_another_process_goes_on_bit_for_bit(tmp_path: Path):
    """Sampled: the logits, the sampler's state and every leaf are needed."""
    from fluvial.engine.engine import load

    (folder := tmp_path / "model").mkdir()
    engine = load(write_model(folder, "hybrid"))
    session = engine.session()
    list(session.ask("What is there?", max_tokens=6, temperature=1.0, seed=5))
    session.save(tmp_path / "talk.state")
    program = """if True:
        import sys, fluvial
        session = fluvial.load(sys.argv[1]).load_session(sys.argv[2])
        events = session.ask("And now?", max_tokens=12, temperature=1.0)
        print(ascii("".join(event.text for event in events if hasattr(event, "id"))))
        session.save(sys.argv[3])
    """
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "talk.state"), str(tmp_path / "there.state")]
    there = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.strip()
    here = [event for event in session.ask("And now?", max_tokens=12, temperature=1.0) if hasattr(event, "id")]
    session.save(tmp_path / "here.state")
    assert there == ascii("".join(event.text for event in here))
    assert compare(read(tmp_path / "here.state"), read(tmp_path / "there.state"))["equal"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_report_names_what_was_said_and_where_two_part(variant: str, tmp_path: Path):
    session = Session(tiny(variant), system="Be brief.")
    list(session.ask("One?", max_tokens=3))
    session.save(tmp_path / "a.state")
    fork = session.fork()
    list(session.ask("Two?", max_tokens=3))
    session.save(tmp_path / "b.state")
    list(fork.ask("Three?", max_tokens=3))
    fork.save(tmp_path / "c.state")
    a, b, c = (read(tmp_path / f"{name}.state") for name in "abc")
    about = describe(b)
    assert [m["role"] for m in about["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert about["position"] == [session.position] and about["state_bytes"] == session.nbytes("recurrent")
    assert json.loads(json.dumps(about)) == about
    assert compare(a, a)["equal"]
    other = Session(tiny(variant), system="Be brief.")
    list(other.ask("One?", max_tokens=3))
    other.save(tmp_path / "d.state")
    histories = [describe(saved)["history"] for saved in (a, b, c, read(tmp_path / "d.state"))]
    assert len(set(histories)) == 3 and histories[0] == histories[3]
    found = compare(b, c)
    assert not found["equal"] and found["shared"]["messages"] == 3
    assert all(gap is None or gap > 0 for gap in found["leaves"].values()) and found["leaves"]
