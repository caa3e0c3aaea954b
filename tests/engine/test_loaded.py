"""A loaded session goes on as if it had never been saved: the same draft, the same cache, and no trust in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fluvial.engine import saved
from fluvial.engine.cache.cache import StateCache
from fluvial.engine.draft import Context
from fluvial.engine.media import Image
from fluvial.engine.model import Model
from fluvial.engine.sampling import Sampler
from fluvial.engine.session import Session
from tests.engine.test_cache import ask, cached
from tests.engine.test_drafts import draft_of, session_of
from tests.engine.tiny import picture, tiny

KINDS = ("ngram", "head", "mtp", "itself")


@pytest.mark.parametrize("kind", KINDS)
def test_the_draft_goes_on(kind: str, tmp_path: Path) -> None:
    session = session_of(tiny("hybrid"), kind)
    session.push("Gate 3 is closed today. Gate 4 is open.")
    ask(session, "What is there?")
    session.push(Image(picture(1)))
    session.push("Gate 5 is open.")
    session.save(tmp_path / "talk.session")
    again = Session.load(session.model, tmp_path / "talk.session", draft_of(kind, session.model))
    drafts = [each._now.feed.draft for each in (session, again)]
    packed = [draft.pack() for draft in drafts]
    assert packed[0][1] == packed[1][1] and packed[0][0].keys() == packed[1][0].keys()
    assert all(torch.equal(tensor, packed[1][0][name]) for name, tensor in packed[0][0].items()) and packed[0][0]
    history = [*session._now.ids, session._now.ids[-9]]
    guesses = [draft.propose(Context(history, Sampler()), 5) for draft in drafts]
    assert guesses[0].tokens == guesses[1].tokens and guesses[0].parents == guesses[1].parents
    done = [ask(each, "And now?") for each in (session, again)]
    assert done[0].text == done[1].text and done[0].usage.forwards == done[1].usage.forwards


def test_another_draft_begins_with_the_recent_tokens(tmp_path: Path) -> None:
    session = session_of(tiny("delta"), "ngram")
    ask(session, "What is there?")
    session.save(tmp_path / "talk.session")
    texts = [ask(session, "And now?").text]
    for kind in ("head", "mtp", "itself", "other"):
        again = Session.load(session.model, tmp_path / "talk.session", draft_of(kind, session.model))
        texts.append(ask(again, "And now?").text)
    assert len(set(texts)) == 1


def begun(model: Model, folder: Path, draft: str = "none") -> tuple[Session, Path]:
    """A conversation, saved."""
    session = Session(model, system="Be brief. " * 20, draft=draft_of(draft, model))
    session.push(Image(picture(1)))
    ask(session, "What is there?")
    session.save(folder / "talk.session")
    return session, folder / "talk.session"


@pytest.mark.parametrize(("variant", "place"), [("delta", "ram"), ("transformer", "ram"), ("hybrid", "disk")])
def test_what_others_read_behind_the_same_past_is_known(variant: str, place: str, tmp_path: Path) -> None:
    model = cached(variant, disk=tmp_path / "cache" if place == "disk" else None)
    session, path = begun(model, tmp_path, "ngram")
    words = "Gate 3 is closed. " * 20
    texts = [ask(session, words).text]
    if place == "disk":
        model.cache = StateCache(model.cache.config, model)  # another process
    for _ in range(2):
        again = Session.load(model, path, draft_of("ngram", model))
        done = ask(again, words)
        texts.append(done.text)
        assert done.usage.cached_tokens >= 80
    plain, _ = begun(tiny(variant), tmp_path)
    assert {ask(plain, words).text} == set(texts)


@pytest.mark.parametrize("variant", ["hybrid", "transformer"])
def test_where_the_past_is_gone_the_file_stands_for_it(variant: str, tmp_path: Path) -> None:
    """Two loads of one file share what is new."""
    plain, path = begun(tiny(variant), tmp_path)
    expected, words = ask(plain, "Gate 3 is closed. " * 20), "Gate 3 is closed. " * 20
    model, known = cached(variant), []
    for _ in range(2):
        done = ask(Session.load(model, path), words)
        known.append(done.usage.cached_tokens)
        assert done.text == expected.text
    assert known[0] == 0 and known[1] >= 80
    assert ask(Session.load(model, path, tenant="b"), words).usage.cached_tokens == 0


def test_a_file_that_lies_about_its_past_is_not_shared(tmp_path: Path) -> None:
    plain, _ = begun(tiny("delta"), tmp_path)
    expected = ask(plain, "And now?").text
    model = cached("delta")
    session, path = begun(model, tmp_path)
    now = session.snapshot()
    leaves = {name: leaf + 1 for name, leaf in now.feed.state.leaves.items()}
    lie = replace(now, feed=replace(now.feed, state=replace(now.feed.state, leaves=leaves)))
    saved.save(lie, path)
    liar = Session.load(model, path)
    assert ask(liar, "And now?").text != expected
    for honest in (session, begun(model, tmp_path)[0]):
        assert ask(honest, "And now?").text == expected


def test_an_empty_cache_and_a_past_that_was_given_up(tmp_path: Path) -> None:
    """A session that never knew its past is saved without; a cache with no room changes no word."""
    plain, path = begun(tiny("hybrid"), tmp_path)
    expected = ask(plain, "And now?").text
    for options in ({"ram": "1KB"}, {"ram": "64MB"}):
        model = cached("hybrid", **options)
        assert ask(Session.load(model, path), "And now?").text == expected
