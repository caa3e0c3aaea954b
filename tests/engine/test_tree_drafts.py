"""Trees of guesses: tokens, draws and memory are those of plain decoding on every architecture; the trained head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.engine.draft import Context, Proposal, Seen
from fluvial.engine.drafts import head as head_draft
from fluvial.engine.drafts._words import Words
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.models import ahead
from fluvial.models.ahead import Ahead
from tests.engine.scripted import decoding, feed_of, said
from tests.models import zoo

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TOKENS = 12
SAMPLED = {"temperature": 1.5, "seed": 7, "repetition_penalty": 1.4, "repetition_window": 5}
each_decoder = pytest.mark.parametrize("name", zoo.NAMES)


@dataclass(frozen=True)
class Bushy:
    """Knows the `answer` that begins at token `start`; a tree of the shape `parents`, in which the truth goes down one
    path, as far as `honest` nodes, and every other node is wrong."""

    answer: Sequence[int]
    start: int
    parents: Sequence[int]
    honest: int
    seen: int = 0
    name: str = "bushy"

    def observe(self, seen: Seen) -> Bushy:
        assert seen.hidden is not None and seen.ids is not None and len(seen.hidden) == len(seen.ids)
        return replace(self, seen=self.seen + len(seen.ids))

    def propose(self, context: Context, k: int) -> Proposal:
        truth = self.answer[self.seen + 1 - self.start :]
        tokens: list[int] = []
        end, depth = -1, 0  # of the honest path
        siblings: dict[int, int] = {}
        for i, parent in enumerate(self.parents[:k]):
            siblings[parent] = siblings.get(parent, 0) + 1
            last = parent not in self.parents[i + 1 :]  # the truth is the last child, so that places differ from depths
            right = truth[depth] if depth < len(truth) else 0
            if parent == end and last and depth < min(self.honest, len(truth)):
                tokens.append(right)
                end, depth = i, depth + 1
            else:
                tokens.append((right + siblings[parent]) % zoo.VOCAB)
        return Proposal(tokens, parents=self.parents[:k])


@st.composite
def shapes(draw: st.DrawFn) -> list[int]:
    return [draw(st.integers(max(-1, i - 4), i - 1)) for i in range(draw(st.integers(1, 12)))]


@each_decoder
@settings(max_examples=5, deadline=None)
@given(parents=shapes(), honest=st.integers(0, 6), stop=st.integers(1, TOKENS), drawn=st.booleans())
def test_tokens_and_memory_are_those_of_plain_decoding(name: str, parents, honest: int, stop: int, drawn: bool) -> None:
    sampling: dict[str, Any] = SAMPLED if drawn else {"repetition_penalty": 1.4, "seed": 7}
    plain = decoding(feed_of(name, PROMPT), 0, PROMPT, **sampling)
    answer = said(plain, TOKENS)
    ahead = decoding(feed_of(name, PROMPT, Bushy(answer, len(PROMPT), parents, honest)), 16, PROMPT, **sampling)
    assert said(ahead, stop, room=TOKENS) == answer[:stop]
    mark = ahead.mark()
    assert said(ahead, TOKENS - stop, room=TOKENS) == answer[stop:]
    assert torch.equal(ahead.sampler.state(), plain.sampler.state())
    assert ahead.forwards + ahead.accepted == TOKENS
    for found, n in ((mark(), stop), (ahead.leave(), TOKENS)):
        expected = feed_of(name, [*PROMPT, *answer[:n]])
        assert zoo.distance(found.state, expected.state) <= 1e-9
        torch.testing.assert_close(found.logits, expected.logits)
        assert found.draft.seen == len(PROMPT) + n


@pytest.mark.parametrize("name", ["transformer", "gated_delta", "delta_hybrid"])
def test_an_honest_path_is_taken_whole(name: str) -> None:
    answer = said(decoding(feed_of(name, PROMPT), 0, PROMPT), TOKENS)
    draft = Bushy(answer, len(PROMPT), [-1, -1, 1, 1, 3, 3], 9)  # 1, 3, 5 are right
    ahead = decoding(feed_of(name, PROMPT, draft), 16, PROMPT)
    assert said(ahead, TOKENS, room=TOKENS) == answer
    assert (ahead.forwards, ahead.accepted, ahead.drafted) == (3, 9, 18)


def test_where_a_mixer_has_no_form_for_trees_the_likeliest_path_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = zoo.decoder("gated_delta")
    answer = said(decoding(feed_of("gated_delta", PROMPT), 0, PROMPT), TOKENS)
    monkeypatch.setattr(type(decoder.blocks[0].mixer), "trees", False)
    draft = Bushy(answer, len(PROMPT), [-1, 0, 0, 1], 9)  # 0 and 2 are right; the first path is 0, 1, 3
    ahead = decoding(feed_of("gated_delta", PROMPT, draft), 16, PROMPT)
    assert said(ahead, TOKENS, room=TOKENS) == answer
    assert ahead.accepted == 6 and ahead.drafted == 3 * ahead.forwards


def test_a_tree_is_cut_from_its_end_and_has_a_likeliest_path() -> None:
    tree = Proposal([5, 6, 7, 8, 9], parents=[-1, -1, 0, 1, 2])
    assert tree.cut(3).tokens == [5, 6, 7] and tree.cut(3).parents == [-1, -1, 0]
    assert tree.chain == Proposal([5, 7, 9])
    assert Proposal([1, 2]).chain == Proposal([1, 2])


# --- the trained head -----------------------------------------------------------------------------------------------


def with_head(name: str) -> Any:
    torch.manual_seed(4)
    cell = Ahead(zoo.D, 24).double().requires_grad_(False)
    model: Any = SimpleNamespace(decoder=zoo.decoder(name), tokenizer=SimpleNamespace(eos_ids=frozenset([11, 40])))
    return head_draft.HeadDraft(model, cell, Words())


@each_decoder
@pytest.mark.parametrize("sampling", [{}, SAMPLED])
def test_answers_with_the_head_are_the_plain_ones(name: str, sampling: dict[str, Any]) -> None:
    plain = decoding(feed_of(name, PROMPT), 0, PROMPT, **sampling)
    ahead = decoding(feed_of(name, PROMPT, with_head(name)), 9, PROMPT, **sampling)
    assert said(ahead, TOKENS, room=TOKENS) == said(plain, TOKENS)
    assert ahead.drafted > ahead.forwards


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 15), token=st.integers(0, zoo.VOCAB - 1), temperature=st.sampled_from([0.0, 0.3, 1.0]))
def test_its_tree_holds_the_likeliest_paths(k: int, token: int, temperature: float) -> None:
    draft = with_head("gated_delta")
    decoder, draft = draft.model.decoder, draft.observe(Seen([1], None, zoo.inputs(1, 1, 3)[0]))
    tree = draft.propose(Context([token], Sampler(SamplingParams(temperature=temperature, seed=1))), k)
    assert len(tree.tokens) == len(tree.parents) <= k and not {11, 40} & set(tree.tokens)
    hidden, ids, chances = {-1: draft.last}, {-1: token}, {-1: 1.0}
    for i, (id, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        assert parent < i and (id, parent) not in zip(tree.tokens[:i], tree.parents[:i], strict=True)
        after = draft.head(hidden[parent], decoder.embed(torch.tensor([[ids[parent]]]))[0, 0])
        chance = (decoder.logits(after).float() / (temperature or 1)).softmax(-1)[id]
        hidden[i], ids[i], chances[i] = after, id, chances[parent] * float(chance)
        assert chances[i] <= chances[i - 1] * (1 + 1e-5) or i == 0
    if tree.tokens:
        first = (decoder.logits(draft.head(draft.last, decoder.embed(torch.tensor([[token]]))[0, 0]))).float()
        first[[11, 40]] = -torch.inf
        assert tree.tokens[0] == int(first.argmax())


def test_behind_tokens_known_by_id_alone_it_waits() -> None:
    draft = with_head("mamba2").observe(Seen([1, 2]))
    assert not draft.propose(Context([3], Sampler()), 4).tokens
    assert Feed.start(draft.model, draft=draft).ids([4]).draft.propose(Context([3], Sampler()), 4).tokens


def test_a_head_is_kept_beside_a_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no trained head"):
        Ahead.load(tmp_path, 32, torch.float32)
    cell = Ahead(32, 24)
    cell.save(tmp_path)
    again = Ahead.load(tmp_path, 32, torch.float32)
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(x, x), cell(x, x), rtol=0.05, atol=0.05)  # bf16
    with pytest.raises(IntegrityError, match="32 wide, this is 64"):
        Ahead.load(tmp_path, 64, torch.float32)
    path = tmp_path / ahead.FILE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(IntegrityError, match="damaged"):
        Ahead.load(tmp_path, 32, torch.float32)
