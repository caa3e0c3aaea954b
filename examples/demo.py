"""`make demo`: questions about a real picture and a real video, answered by the bundled models; then a long stream.

For each answer: the tokens that went in and came out, the speed, and the bytes that the session remembers with.
"""

from __future__ import annotations

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


def stream(words: int = 20000) -> None:
    """A long text through the default model: its memory does not grow."""
    engine = fluvial.load("pebble")
    print(f"pebble  remembers a pass key through {words:,} words of text")
    with engine.session() as session:
        session.push("The pass key is 48213.")
        before, began = session.nbytes(), time.perf_counter()
        while session.position < words * 1.3:
            session.push("The quiet river passes the old mill and the children walk home. " * 40)
        seconds = time.perf_counter() - began
        print(f"  {session.position:,} tokens in {seconds:.1f} s, memory {before:,} -> {session.nbytes():,} bytes")
        ask(session, "What is the pass key?")


if __name__ == "__main__":
    main()
