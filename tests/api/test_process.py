"""The command as a process: signals, pipes, terminals, and what it imports."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "fluvial"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


@pytest.mark.parametrize("words", [["--version"], ["run", "--help"], ["chat", "--help"], ["models", "--help"]])
def test_help_does_not_import_torch(words, tmp_path):
    code = f"import sys, fluvial.__main__ as m; sys.argv[1:] = {words}\ntry: m.main()\nfinally: print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    modules = set(shown.stdout.splitlines()[-1].split())
    assert shown.returncode == 0 and "typer" in modules
    assert not modules & {"torch", "numpy", "cv2", "PIL", "tokenizers"}


_SPEAK = """
import sys, torch, fluvial
from fluvial.models.decoder import Decoder, DecoderConfig
from tests.models.zoo import BLOCKS, D, VOCAB
with torch.device("meta"):
    for blocks in BLOCKS.values():
        Decoder(DecoderConfig(VOCAB, D, tuple(blocks), "layer"))
session = fluvial.load().session()
session.push(fluvial.Image(torch.zeros(96, 96, 3, dtype=torch.uint8).numpy()))
list(session.ask("What is this?", max_tokens=3))
print(*sys.modules)
"""


def test_a_model_is_built_loaded_and_asked_without_torchs_compiler():
    """Importing it costs a second and 75 MB; torch does so by itself for some arithmetic on the meta device."""
    shown = subprocess.run([sys.executable, "-c", _SPEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(shown.stdout.split()) & {"torch._dynamo", "sympy"}


def test_nothing_after_fluvial_is_help():
    shown = subprocess.run(COMMAND, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert shown.returncode == 0 and "Commands" in shown.stdout


@contextmanager
def started(*words: str, stdin: int) -> Iterator[subprocess.Popen[bytes]]:
    """`fluvial WORDS` with pipes; killed at the end, whatever became of it."""
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what started the tests may ignore it
    with subprocess.Popen([*COMMAND, *words], stdin=stdin, stdout=pipe, stderr=pipe) as process:
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


@posix
def test_ctrl_c_ends_an_answer_with_130(tiny):
    with started("run", str(tiny), "hello", "-n", "1000000", stdin=subprocess.DEVNULL) as process:
        assert process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1].decode()
        assert (process.returncode, errors) == (130, "Interrupted.\n")


@posix
def test_a_reader_that_goes_away_is_no_error(tiny):
    with started("run", str(tiny), "-", "-n", "1000000", stdin=subprocess.PIPE) as process:
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read(1)
        process.stdout.close()
        assert (process.wait(120), process.stderr.read()) == (141, b"")


@posix
def test_a_chat_in_a_terminal(tiny, media):
    """Ctrl-C stops a video and an answer, not the chat; Ctrl-D leaves."""
    import pty

    command = [*COMMAND, "chat", str(tiny), "-n", "1000000", "-v", str(media / "clip.mp4")]
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command[0], command)
    screen = b""

    def wait_for(text: bytes, seconds: float = 120) -> None:
        nonlocal screen
        end = time.monotonic() + seconds
        while text not in screen:
            assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], screen.decode()
            screen += os.read(terminal, 4096)
        screen = screen.partition(text)[2]

    try:
        wait_for(b"Loading")
        wait_for(b"Watching clip.mp4")
        wait_for(b"frames")
        wait_for(b"/help lists the commands")
        wait_for(b">>> ")
        os.write(terminal, b"hello\n")
        wait_for(b"hello")
        time.sleep(1)
        os.write(terminal, b"\x03")
        wait_for(b"Stopped.")
        wait_for(b">>> ")
        time.sleep(0.5)  # until it reads: a Ctrl-C just before is seen with the next key only
        os.write(terminal, b"half a line\x03")
        wait_for(b"Ctrl-D or /bye leaves.")
        os.write(terminal, b"/memory\n")
        wait_for(b"2 steps to undo")
        for _ in range(240):  # a Ctrl-D from before it reads is lost: the terminal was in another mode
            time.sleep(0.5)
            os.write(terminal, b"\x04")
            left, status = os.waitpid(process_id, os.WNOHANG)
            if left:
                process_id = 0
                break
        assert not process_id and os.waitstatus_to_exitcode(status) == 0
    finally:
        if process_id:
            os.kill(process_id, signal.SIGKILL)
            os.waitpid(process_id, 0)
        os.close(terminal)
