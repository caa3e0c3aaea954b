"""`make demo`: questions about a real picture and a real video, answered by the bundled models; then a long stream.

For each answer: the tokens that went in and came out, the speed, and the bytes that the session remembers with.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import fluvial

MEDIA = Path(__file__).parent / "media"
QUESTIONS = {
    "shapes.jpg": ("What do you see?", "How many shapes are there?", "What colour is the star?", "Where is the star?"),
    "clip.mp4": ("What moves in the video?", "In which direction does it move?"),
}


def ask(session: fluvial.Session, question: str) -> None:
    """Prints one question with its answer and figures."""
    *_, done = session.ask(question, max_tokens=48)
    assert isinstance(done, fluvial.Done)
    use = done.usage
    print(f"  {question:34s} {done.text}")
    print(
        f"  {'':34s} {use.prompt_tokens} tokens in ({use.media_tokens} of media, {use.prompt_rate:.0f}/s), "
        f"{use.completion_tokens} out ({use.completion_rate:.0f}/s), memory {use.state_bytes + use.tape_bytes:,} bytes"
    )


def main() -> None:
    for name in fluvial.bundled():
        engine = fluvial.load(name)
        print(f"{name}  ({', '.join(engine.explain()['blocks'])}; memory {engine.explain()['state']})")
        for file, questions in QUESTIONS.items():
            print(f" {file}")
            with engine.session() as session:
                path = MEDIA / file
                session.push(fluvial.Image(path) if path.suffix == ".jpg" else fluvial.Video(path))
                for question in questions:
                    ask(session, question)
        print()
    stream()


def stream(near: int = 800, far: int = 20_000) -> None:
    """A pass key is asked for after `near` tokens of text; then text goes on to `far` tokens in the same memory."""
    engine = fluvial.load("pebble")
    print("pebble  reads a long text")
    with engine.session() as session:
        session.push("The pass key is 48213.")
        before, began = session.nbytes(), time.perf_counter()
        read(session, near)
        ask(session, "What is the pass key?")
        read(session, far)
        seconds = time.perf_counter() - began
        print(f"  {session.position:,} tokens in {seconds:.1f} s, memory {before:,} -> {session.nbytes():,} bytes")


def read(session: fluvial.Session, tokens: int) -> None:
    """Pushes sentences until the session is `tokens` long."""
    draw = random.Random(4)
    while session.position < tokens:
        words = (draw.choice(("the quiet", "an old", "this small", "every green")) for _ in range(40))
        things = (draw.choice(("river", "mill", "teacher", "engine", "letter", "village")) for _ in range(40))
        session.push(". ".join(f"{a} {b} passes the {b}" for a, b in zip(words, things, strict=True)) + ".")


if __name__ == "__main__":
    main()
