"""The state cache: warm equals cold, hits as far as prefixes go, nothing is shared that differs, no byte too many."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image as PIL

from fluvial.adapters.errors import UsageError
from fluvial.engine.cache.cache import StateCache
from fluvial.engine.cache.config import Cache, size_of
from fluvial.engine.events import Done, Token
from fluvial.engine.feed import Feed
from fluvial.engine.media import Image, Medium
from fluvial.engine.model import Model, load_model
from fluvial.engine.reading import Piece, Reading, read
from fluvial.engine.session import Session
from fluvial.engine.template import ChatTemplate
from fluvial.models.decoder import Decoder
from tests.engine.test_plugins import lora, start
from tests.engine.tiny import VARIANTS, frames, picture, tiny, write_model
from tests.models.zoo import distance, gap

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def cached(variant: str, **options: object) -> Model:
    """The tiny model with a cache of its own."""
    model = copy.copy(tiny(variant))
    model.cache = StateCache(Cache(**options), model)
    return model


def ask(session: Session, question: str, **options: object) -> Done:
    *tokens, done = session.ask(question, **({"max_tokens": 4} | options))
    ask.ids = [token.id for token in tokens]
    return done


def talk(model: Model, question: str = "What is there?") -> tuple[Session, list[list[int]], list[int]]:
    """A conversation with an image, live frames and text: answers, and cached tokens of each."""
    session, answers, known = Session(model, system="Be brief. " * 20), [], []
    session.push(Image(picture(1)))
    for words in ("Hello there.", question):
        known.append(ask(session, words).usage.cached_tokens)
        answers.append(ask.ids)
    for frame in frames(3):
        session.push(frame)
    session.push("Gate 3 is closed. " * 30)
    known.append(ask(session, "Which gate?").usage.cached_tokens)
    answers.append(ask.ids)
    return session, answers, known


@each_variant
def test_a_warm_session_equals_a_cold_one(variant):
    model = cached(variant)
    plain, expected, none = talk(tiny(variant))
    first, answers, cold = talk(model)
    second, again, warm = talk(model)
    assert answers == again == expected
    assert none == [0, 0, 0] and sum(cold) < 16 and warm[0] > 200 and warm[1] > 4 and warm[2] > 300
    for session in (first, second):
        assert distance(session._now.feed.state, plain._now.feed.state) <= 1e-9
        assert gap(session._now.feed.logits, plain._now.feed.logits) <= 1e-5
        assert session.messages == plain.messages and session._now.media == plain._now.media
    third, changed, partly = talk(model, "What else is there?")
    assert partly[0] == warm[0] and partly[1] < warm[1]
    other, changed_cold, _ = talk(tiny(variant), "What else is there?")
    assert changed == changed_cold and distance(third._now.feed.state, other._now.feed.state) <= 1e-9


@pytest.mark.parametrize("variant", ["delta", "transformer", "hybrid"])
def test_a_stateless_caller_pays_for_what_is_new_alone(variant):
    """Every turn sends the whole conversation again, images included, to a new session."""
    model, messages = cached(variant), []
    for turn, question in enumerate(("Hello there.", "What is there?", "And now?", "Why?")):
        content = [{"type": "text", "text": question}]
        sessions = [Session(each, messages=messages) for each in (tiny(variant), model)]
        if turn in (1, 2):
            content.insert(0, {"type": "image", "image": Image(picture(turn))})
            for session in sessions:
                session.push(Image(picture(turn)))
        plain, done = (ask(session, question) for session in sessions)
        assert done.text == plain.text and done.usage.position == plain.usage.position
        assert distance(*(session._now.feed.state for session in sessions)) <= 1e-9
        assert plain.usage.prompt_tokens == done.usage.prompt_tokens
        assert done.usage.prompt_tokens - done.usage.cached_tokens < 30 + 80 * (turn in (1, 2))
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": done.text}]
    assert model.cache.inspect()["media_new"] == 2


def question_of(model: Model, *, medium: Medium | None = None, **options: object) -> Done:
    """One short conversation from nothing."""
    session = Session(model, system="You are a gate keeper.", **options)
    session.push(medium or Image(picture(1)))
    return ask(session, "What is there?", max_tokens=1)


def changed(model: Model, **parts: object) -> Model:
    """The model with other parts, as if it had been loaded so."""
    other = copy.copy(model)
    other.__dict__.update(parts, _fingerprint="")
    return other


def other_weight(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with one number of one tensor moved a little."""
    module = copy.deepcopy(module)
    next(p for p in module.parameters() if p.ndim == 2).data.view(-1)[7] += 1e-3
    if isinstance(module, Decoder):
        module.identify()
    return module


def test_nothing_is_shared_where_anything_differs(tmp_path):
    """The key: each part changed alone must not find what the others kept; changed back, it must."""
    folder = write_model(tmp_path / "model", "delta")
    model = load_model(folder)
    model.cache = StateCache(Cache(), model)
    info = model.plugins.load(lora(tmp_path / "lora", model, 1))
    model.plugins.load(lora(tmp_path / "other", model, 2))
    state = model.plugins.load(start(tmp_path / "start.safetensors", model, 3))
    PIL.fromarray(picture(1)).save(tmp_path / "a.png")
    PIL.fromarray(picture(2)).save(tmp_path / "b.png")
    template = copy.copy(model.template)
    template = ChatTemplate(template.source + " ", controls=model.tokenizer.controls, media=template.media)
    tower = copy.deepcopy(model.tower)
    tower.config = replace(tower.config, tokens=tower.config.tokens // 4)
    models = {
        "weights": changed(model, decoder=other_weight(model.decoder)),
        "encoder": changed(model, tower=other_weight(model.tower)),
        "encoder settings": changed(model, tower=tower),
        "processor": changed(model, processor=replace(model.processor, keep_token=not model.processor.keep_token)),
        "template": changed(model, template=template),
        "quantization": load_model(folder, quant="int8"),
        "recipe": load_model(folder, quant="int4"),
        "dtype": load_model(folder, dtype="bf16"),
        "memory": load_model(folder, state_dtype="int8"),
    }
    for other in models.values():
        other.cache = model.cache
    cases = [(name, other, {}) for name, other in models.items()]
    cases += [("plain", model, {}), ("tenant", model, {"tenant": "alice"})]
    cases += [("plugins", model, {"plugin": choice}) for choice in (info.name, "other", {info.name: 0.5}, state.name)]
    cases += [("plugins", model, {"plugin": {info.name: 0.5, "other": 0.5}})]
    cases += [("plugins", model, {"plugin": {info.name: 0.5, "other": 0.25}})]
    cases += [("file", model, {"medium": Image(tmp_path / "a.png")})]
    cases += [("bytes", model, {"medium": Image(tmp_path / "b.png")})]
    cases += [("max_pixels", model, {"medium": Image(tmp_path / "a.png", max_pixels=100_000)})]
    texts = []
    for name, each, options in cases:
        done = question_of(each, **options)
        assert done.usage.cached_tokens <= (20 if "medium" in options else 0), name
        texts.append((done.text, done.usage.prompt_tokens))
        if name in ("tenant", "plugins", "weights", "dtype"):
            assert (
                any(why.startswith("another") and name in why for why in done.usage.cache_misses) or name == "weights"
            )
    for (name, each, options), text in zip(cases, texts, strict=True):
        again = question_of(each, **options)
        assert again.usage.prompt_tokens - again.usage.cached_tokens <= 2, name
        assert (again.text, again.usage.prompt_tokens) == text
    salted = StateCache(Cache(salt="x"), model)
    keys = [each.start(Feed.start(model)).chain.key for each in (salted, model.cache)]
    assert keys[0] != keys[1]
    PIL.fromarray(picture(3)).save(tmp_path / "a.png")  # another picture under the same name
    assert question_of(model, medium=Image(tmp_path / "a.png")).usage.cached_tokens <= 20


def read_ids(model: Model, ids: list[int]) -> tuple[Reading, Feed]:
    """A new session that reads ids, and the same without a cache."""
    reading = read(Feed.start(model), [Piece(tuple(ids))])
    cold = Feed.start(changed(model, cache=None)).ids(ids)
    assert distance(reading.feed.state, cold.state) <= 1e-9
    assert gap(reading.feed.logits, cold.logits) <= 1e-5 and reading.feed.position == len(ids)
    return reading, cold


@pytest.mark.parametrize("variant", ["delta", "transformer", "hybrid"])
def test_hits_go_as_far_as_the_common_beginning(variant):
    """The same again, a longer one, another end, 100 tokens less in the middle."""
    model, ids = cached(variant), torch.randint(20, 1000, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = variant == "transformer"
    first, _ = read_ids(model, ids)
    assert first.cached_tokens == 0 and first.misses == ["nothing is cached"]
    again, _ = read_ids(model, ids)
    assert again.cached_tokens == 400 and not again.misses
    longer, _ = read_ids(model, ids + ids[:40])
    assert longer.cached_tokens == 400 and longer.misses == ["it is new"]
    for common, other in ((380, ids[:380]), (250, ids[:250] + ids[350:])):
        for tail in ([5, 6, 7], [8, 9]):  # where chains have parted, the state is kept
            changed_end, _ = read_ids(model, other + tail)
            exact = rows or tail == [8, 9]
            assert 0.5 * common <= changed_end.cached_tokens <= len(other)
            assert changed_end.cached_tokens >= common or not exact
            assert any("it goes on differently" in why for why in changed_end.misses)


def test_a_change_of_plugins_in_the_middle_is_part_of_the_key(tmp_path):
    folder = write_model(tmp_path / "model", "delta")
    model = load_model(folder, dtype="fp64")
    model.cache = StateCache(Cache(), model)
    model.plugins.load(lora(tmp_path / "lora", model, 1), "a")
    answers = []
    for choice in (None, "a", None, "a", {"a": 0.5}):
        session = Session(model)
        session.push("Gate 3 is closed. " * 10)
        session.use(choice)
        done = ask(session, "Which gate is it?")
        answers.append((ask.ids, done.usage.cached_tokens))
        assert done.usage.cached_tokens >= 70 * (len(answers) > 1)
    assert answers[0][0] == answers[2][0] and answers[1][0] == answers[3][0]
    plain, read_now, same, also_same, other = (known for _, known in answers)
    assert plain == 0 and same == also_same > read_now == other


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, monkeypatch):
    model, path = cached("delta"), tmp_path / "a.png"
    PIL.fromarray(picture(1)).save(path)
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda *a, **k: (path.write_bytes(path.read_bytes() + b" "), encode(*a, **k))[1]
    )
    session = Session(model)
    session.push(Image(path))
    assert model.cache.inspect()["media"] == 0
    fresh = Session(model)
    fresh.push(Image(path))
    assert fresh._now.new_cached_tokens < 10


def test_sessions_on_threads_share_one_cache():
    model, texts = cached("delta", ram="3MB"), [f"Gate {n} is closed. " * 12 for n in range(3)]

    def run(n: int) -> list[list[int]]:
        answers = []
        for turn in range(4):
            session = Session(model)
            session.push(texts[(n + turn) % 3])
            ask_here = [e.id for e in session.ask("Which?", max_tokens=2) if isinstance(e, Token)]
            answers.append(((n + turn) % 3, tuple(ask_here)))
        return answers

    with ThreadPoolExecutor(3) as pool:
        answers = {answer for answers in pool.map(run, range(3)) for answer in answers}
    assert len(answers) == 3
    about = model.cache.inspect()
    assert about["hits"] > 0 and about["peak"] <= about["limit"] == 3_000_000


def test_explain_and_sizes():
    assert tiny("delta").explain()["cache"] == "off"
    assert cached("delta", ram="2MiB").explain()["cache"] == {"ram": 2 * 2**20}
    assert [size_of(text) for text in (5, "7", "1.5 kB", "2GiB")] == [5, 7, 1500, 2**31]
    for wrong in ("", "GB", "-1GB", "1XB", 0, True):
        with pytest.raises(UsageError, match="size"):
            Cache(ram=wrong)
    with pytest.raises(UsageError, match="last of the messages"):
        Session(tiny("delta"), messages=[{"role": "user", "content": "Hello."}])
    with pytest.raises(UsageError, match="Cannot push"):
        Session(tiny("delta"), messages=[{"role": "user", "content": [{"type": "image"}]}])
