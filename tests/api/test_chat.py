"""`fluvial chat`, scripted through stdin: nothing inside ends it, and every step can be undone."""

from __future__ import annotations

import signal

import pytest

import fluvial as api
from fluvial.cli import conversation, slash
from fluvial.cli.interrupts import Interrupts
from fluvial.cli.talking import stream_answer
from fluvial.encoders.frame import Gap
from fluvial.engine.session import Session
from tests.engine.tiny import frames


@pytest.fixture
def chat(fluvial, tiny, monkeypatch):
    """Runs a chat of these lines and gives (the answers, the lines that were noted)."""
    answers: list[str] = []

    def recorded(*given):
        done = stream_answer(*given)
        answers.append(done.text)
        return done

    monkeypatch.setattr(conversation, "stream_answer", recorded)

    def run(*lines: object, options: tuple[object, ...] = ()) -> tuple[list[str], list[str]]:
        answers.clear()
        stdin = "".join(f"{line}\n" for line in lines)
        result = fluvial("chat", tiny, "-n", 6, "--dtype", "fp64", *options, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == "".join(f"{answer}\n" for answer in answers)
        return list(answers), result.stderr.splitlines()

    return run


def test_a_conversation_is_one_session(chat, tiny):
    answers, _ = chat("hello", "", "and now?")
    session = api.load(tiny, dtype="fp64").session()
    expected = [list(session.ask(question, max_tokens=6))[-1].text for question in ("hello", "and now?")]
    assert answers == expected


def test_undo_goes_back_step_by_step(chat, media):
    image = media / "image.png"
    _, notes = chat("/memory", f"/image {image}", "hello", "/undo", "/undo", "/memory", "/undo")
    assert [note for note in notes if note.startswith("Undone")] == [
        "Undone: the question “hello”.",
        f"Undone: the image {image}.",
    ]
    assert notes[:4] == notes[-5:-1] and notes[0] == "0 tokens in 0 messages"
    assert notes[-1] == "Error: There is nothing to undo."
    once, _ = chat("hello", "and now?")
    again, _ = chat("hello", "something else", "/undo", "and now?")
    assert (again[0], again[-1]) == (once[0], once[-1])


def test_a_fork_goes_its_own_way(chat):
    straight, _ = chat("hello", "and now?")
    forked, notes = chat("hello", "/fork", "something else", "/fork 1", "and now?", "/fork 2", "/undo", "and now?")
    assert forked[0] == straight[0] and forked[-1] == forked[-2] == straight[-1]
    assert notes[0] == "In branch 2, a copy of branch 1; /fork 1 goes back."
    assert "There is no branch 7." in chat("/fork 7")[1][0]


def test_save_load_and_clear(chat, tmp_path):
    file = tmp_path / "my talk.state"
    straight, _ = chat("hello", "and now?")
    back, notes = chat("hello", f'/save "{file}"', "/clear", "/memory", f"/load {file}", "and now?")
    assert back == straight and file.is_file()
    assert "Cleared." in notes and "0 tokens in 0 messages" in notes
    assert chat("/load nothing.state", "hello")[0] == straight[:1]
    other = tmp_path / "end.state"
    chat("hello", options=("--save-state", other))
    assert chat("and now?", options=("--state", other))[0] == straight[1:]


def test_settings(chat):
    answers, notes = chat("/set max-tokens 2", "hello", "/set max-tokens off", "/set temp 3", "/set seed 4", "/set")
    assert len(answers) == 1 and "temp            3.0" in notes and "max-tokens      256" in notes
    for wrong in ("/set temp x", "/set temp -1", "/set max-tokens 0", "/set nothing 3", "/set temp", "/set frames 1.5"):
        assert chat(wrong, "hello")[1][0].startswith("Error: "), wrong


def test_system_prompt(chat):
    _, notes = chat("/system", "/system Be brief.", "/system", "hello", "/system Be long.", "/clear", "/system")
    assert [notes[0], notes[2], notes[-1]] == ["There is no system prompt.", "Be brief.", "Be long."]


def test_stats_and_help(chat):
    _, notes = chat("/stats", "hello", "/stats", "/stats on", "hello", "/help")
    assert notes[0] == "No answer yet." and sum(note.startswith("in: ") for note in notes) == 2
    assert all(any(note.startswith(f"/{name}") for note in notes) for name in slash.COMMANDS)


def test_errors_do_not_end_it(chat, media, monkeypatch):
    wrong = ["/image", "/image nothing.jpg", f"/image {media / 'broken.jpg'}", f"/video {media / 'image.png'}x"]
    wrong += ["/nothing", "/undo now", "/fork x", "/load nothing", "/save /no/such/folder/x", "/stats maybe"]
    answers, notes = chat(*wrong, "hello", "/bye", "not reached")
    assert len(answers) == 1 and sum(note.startswith("Error: ") for note in notes) == len(wrong)
    assert chat("/hlep")[1][1] == "  Did you mean /help?"
    monkeypatch.setattr(Session, "push", lambda *_, **__: 1 / 0)
    assert "ZeroDivisionError" in chat(f"/image {media / 'image.png'}", "hello")[1][1]


def test_a_camera_in_a_chat(chat, monkeypatch):
    seen = [*frames(9), Gap(5.5, 2.0), *frames(30)]
    monkeypatch.setattr("fluvial.encoders.live_sources.open_source", lambda where, fps: seen if where == 1 else 1 / 0)
    answers, notes = chat("/camera 1 3", "What is there?", "/undo", "/undo", "/camera 1 x", "/camera x")
    assert len(answers) == 1 and notes[0].startswith("camera 1: 7 frames, ")
    assert "what camera 1 saw" in notes[2]
    assert sum("is not known" in line for line in notes) == 2


def test_a_truncated_video_in_a_chat(chat, media):
    _, notes = chat(f"/video {media / 'half.mp4'}", "/set fps 1", f"/video {media / 'clip.mp4'}")
    assert notes[0].startswith("Warning: ") and "frames" in notes[1] and "1 frame, " in notes[-1]


def test_several_lines_are_one_message(chat, tiny):
    answers, _ = chat('"""first', 'second"""')
    session = api.load(tiny, dtype="fp64").session()
    assert answers == [list(session.ask("first\nsecond", max_tokens=6))[-1].text]


def test_a_transformer_says_that_it_grows(fluvial, transformer):
    stdin = "hello\n/memory\n"
    notes = fluvial("chat", transformer, "-n", 4, stdin=stdin).stderr
    assert "of attention tape, growing" in notes


def test_completions(media):
    assert "/image " in slash.completions("/im") and "/undo" in slash.completions("/")
    assert f"/image {media / 'image.png'}" in slash.completions(f"/image {media}/im")
    assert "/set temp " in slash.completions("/set t") and slash.completions("hello") == []


def test_a_second_ctrl_c_does_not_tear_what_cleans_up():
    cleaned = False
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                cleaned = True
        signal.raise_signal(signal.SIGINT)
    assert cleaned
