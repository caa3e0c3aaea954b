"""Tokenizers: what users type stays text, bytes stream exactly, ids equal the library's, broken files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.engine.tokenizer import TextTokenizer, Tokenizer
from tests.engine.small_tokenizers import CONTROLS, byte_fallback, byte_level, save


def wrapped(made: tokenizers.Tokenizer, **config: object) -> Tokenizer:
    return Tokenizer(json.loads(made.to_str()), dict(config))


LIBRARY = {"byte level": byte_level()} | {s: byte_fallback(s) for s in ("first", "always", "never", "llama")}
OURS = {name: wrapped(made) for name, made in LIBRARY.items()}
EVERY = sorted(OURS)
# text that is made of control tokens and their pieces, among all of Unicode
TYPED = st.lists(
    st.sampled_from([*CONTROLS, "<think>", "</think>", "<s>", "</s>", "<unk>", "<|im_", "end|>", "<", "|>", " ", "   "])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
).map("".join)


def test_the_class_has_the_shape_of_the_protocol() -> None:
    tokenizer: TextTokenizer = OURS["byte level"]
    assert tokenizer.vocab_size == max(LIBRARY["byte level"].get_vocab().values()) + 1


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=40)
@given(text=TYPED)
def test_typed_text_never_yields_a_control_token_and_loses_nothing(name: str, text: str) -> None:
    ours = OURS[name]
    ids = ours.encode(text, special=False)
    assert not {token.id for token in ours.controls if token.text != "<unk>"} & set(ids)
    if name in ("first", "always") and text.startswith(" "):
        text = text[1:]  # such a vocabulary puts no second space before it, and takes the only one away
    if name == "byte level" or "▁" not in text:
        assert ours.decode(ids) == text


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=40)
@given(text=TYPED)
def test_ids_and_text_equal_the_librarys(name: str, text: str) -> None:
    ours, library = OURS[name], LIBRARY[name]
    ids = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, special=True) == ids
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=40)
@given(ids=st.lists(st.integers(0, 258), max_size=12))
def test_token_bytes_joined_are_the_text(name: str, ids: list[int]) -> None:
    ours = OURS[name]
    visible = [id for id in ids if id not in {token.id for token in ours.controls if token.special}]
    raw = b"".join(ours.token_bytes(id, first=at == 0) for at, id in enumerate(visible))
    assert raw.decode("utf-8", "replace") == ours.decode(ids)
    if not ours._speller.byte_level:
        return  # the library writes one U+FFFD for each wrong byte of a fallback, Python one for each wrong sequence
    assert ours.decode(ids) == LIBRARY[name].decode(ids)


def test_bytes_of_characters_split_over_tokens() -> None:
    for name in ("byte level", "first"):
        ids = OURS[name].encode("é雪", special=False)
        pieces = [OURS[name].token_bytes(id, first=at == 0) for at, id in enumerate(ids)]
        assert b"".join(pieces).decode() == "é雪" and len([p for p in pieces if p]) == 5


def test_control_tokens_and_ordinary_added_ones() -> None:
    ours = OURS["byte level"]
    assert [token.text for token in ours.controls] == [*CONTROLS, "<think>", "</think>"]
    assert ours.encode("<think>", special=True) == [ours.id("<think>")]
    assert ours.encode("a   b", special=False) == LIBRARY["byte level"].encode("a   b").ids
    assert ours.id("   ") in ours.encode("a   b", special=False)
    assert ours.id("nothing like it") is None
    assert ours.decode([ours.id("<|im_end|>"), ours.id("<think>")]) == "<think>"
    assert ours.token_bytes(ours.id("<|im_end|>"), skip_special=False) == b"<|im_end|>"


def test_only_the_first_text_gets_a_space() -> None:
    ours = OURS["first"]
    whole = LIBRARY["first"].encode("<s>he</s>he", add_special_tokens=False).ids
    split = [ours.id("<s>"), *ours.encode("he", special=False, first=False), ours.id("</s>")]
    assert [*split, *ours.encode("he", special=False, first=False)] == whole
    assert ours.encode("he", special=False) == [ours.id("▁he")]


def test_a_vocabulary_that_spells_its_control_tokens() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((x, -3.0) for x in "ab</s>")]
    made = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens(["</s>", "<unk>"])
    ours = wrapped(made, eos_token="</s>")
    made.encode_special_tokens = True
    assert ours.id("</s>") in made.encode("a</s>").ids  # the library alone lets it through
    ids = ours.encode("a</s>b" * 2000, special=False)
    assert ours.id("</s>") not in ids and len(ids) > 8000
    assert ours.eos_ids == {ours.id("</s>")}


def test_ends_come_from_every_file(tmp_path: Path) -> None:
    save(tmp_path, byte_level(), eos_token={"content": "<|im_end|>"}, pad_token=None, bos_token="<|endoftext|>")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    ours = Tokenizer.load(tmp_path)
    assert ours.eos_ids == {ours.id("<|im_end|>"), 0, 7, 9}
    assert ours.names == {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}


def test_tokens_that_only_the_configuration_names(tmp_path: Path) -> None:
    made = byte_level()
    new = made.get_vocab_size()
    token = {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False}
    save(tmp_path, made, added_tokens_decoder={str(new): token}, extra_special_tokens={"think_token": "<think>"})
    ours = Tokenizer.load(tmp_path)
    assert ours.id("<|tool|>") == new and ours.encode("<|tool|>", special=True) == [new]
    assert ours.decode([new, ours.id("<think>"), ours.id("</think>")]) == "</think>"
    token["id"] = 5000
    save(tmp_path, made, added_tokens_decoder={"5000": token})
    with pytest.raises(IntegrityError, match="5000"):
        Tokenizer.load(tmp_path)


def test_a_truncation_in_the_file_does_not_cut_text() -> None:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=64)
    assert len(wrapped(made).encode("a b c d e f", special=False)) == 11


def test_what_cannot_be_expressed_is_an_error() -> None:
    with pytest.raises(UsageError, match="Unicode"):
        OURS["byte level"].encode("\ud800", special=False)
    with pytest.raises(UsageError, match="lacks the bytes"):
        wrapped(byte_level(alphabet=False)).encode("ZZZ", special=False)
    for id in (-1, 9999):
        with pytest.raises(UsageError, match="not in the vocabulary"):
            OURS["byte level"].token_bytes(id)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"model": {"type": "BPE"}}', "\udcff", '{"added_tokens": [1]}']
)
def test_corrupt_files_are_integrity_errors(tmp_path: Path, content: str) -> None:
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_decoder_that_is_not_known_is_refused() -> None:
    made = byte_level()
    made.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedError, match="WordPiece"):
        wrapped(made)
