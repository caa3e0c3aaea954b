"""The chat form that RWKV's author publishes, for files that come without a template."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from fluvial.engine.model import Model, load_model
from fluvial.engine.rwkv_chat import STOP, TEMPLATE, chat_template
from fluvial.engine.rwkv_tokenizer import WorldTokenizer
from fluvial.engine.session import Session
from tests.parity.test_rwkv import official

VOCAB = 80
PIECES = ["\n", "\n\n", *"User: Asistant. System, bcdfghlopqvwHBx?1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random `.pth` beside a small vocabulary, as the official files lie."""
    folder = tmp_path_factory.mktemp("rwkv")
    torch.save(official(), folder / "model.pth")
    pieces = dict.fromkeys(PIECES)
    lines = [f"{id} {piece!r} {len(ast.literal_eval(repr(piece)).encode())}" for id, piece in enumerate(pieces, 1)]
    lines += [f"{id} {chr(id + 200)!r} 2" for id in range(len(lines) + 1, VOCAB)]
    (folder / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines), "utf-8")
    return load_model(folder / "model.pth", dtype="fp64")


def test_the_published_form():
    template = chat_template(WorldTokenizer({1: b"a"}))
    said = [{"role": "system", "content": "Be brief.\n\n"}, {"role": "user", "content": "hi"}]
    said += [{"role": "assistant", "content": " Hi. I am here.\n\nAsk. "}]
    said += [{"role": "user", "content": " xxx\r\n\r\nyyy\n\n\nz "}]
    wanted = "System: Be brief.\n\nUser: hi\n\nAssistant: Hi. I am here.\n\nAsk.\n\nUser: xxx\nyyy\nz\n\nAssistant:"
    assert template.render(said) == wanted
    assert template.render(said, add_generation_prompt=False) == wanted.removesuffix("Assistant:")


def test_a_conversation_goes_on_where_it_stands(model: Model):
    """Two turns, pushed in pieces: what was fed is the text that the template writes, and nothing twice."""
    assert model.template is not None and model.template.source == TEMPLATE
    session = Session(model, system="Be\n\nbad")
    session.push("abc")
    for question in ("Hm?\n\n\nHm?", "dog"):
        for _ in session.ask(question, max_tokens=5):
            pass
    text = model.template.render(session.messages, add_generation_prompt=False).rstrip("\n")
    assert text.startswith("System: Be\nbad\n\nUser: abc\nHm?\nHm?\n\nAssistant: ")
    assert "\n\nUser: dog\n\nAssistant: " in text
    fed = model.tokenizer.decode(session._now.ids)  # random words lack their space: then a turn is fed anew
    assert fed.removesuffix("\n\nUser: ") == text and len(session._now.ids) == session.position


def test_an_answer_ends_at_the_next_turn_or_at_token_0(model: Model, monkeypatch: pytest.MonkeyPatch):
    tokenizer, said = model.tokenizer, iter(())
    from fluvial.engine.sampling import Sampler

    monkeypatch.setattr(Sampler, "sample", lambda *_: next(said))

    def answered(text: str, *more: int, **options: object) -> tuple[str, str]:
        nonlocal said
        said = iter([*tokenizer.encode(text, special=False), *more])
        done = [*Session(model).ask("hi", **options)][-1]
        return done.text, done.reason

    assert model.generation.stop == STOP and model.generation.eos_ids == {0}
    assert answered(" Hi\n\nSo.\n\nUser: more") == (" Hi\n\nSo.", "stop")
    assert answered(" Hi\n\nUs", 0) == (" Hi\n\nUs", "end")
    assert answered(" Hi. So", stop=".") == (" Hi", "stop")
    assert answered(" Hi\n\nUser: a", stop=["."]) == (" Hi", "stop")


def test_a_template_beside_the_file_goes_first(model: Model, tmp_path: Path):
    for path in model.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other = load_model(tmp_path / "model.pth")
    assert other.template is not None and other.template.source != TEMPLATE and other.generation.stop == ()
