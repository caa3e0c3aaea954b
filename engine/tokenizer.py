"""Text to token ids and back, by the `tokenizers` library, with the two guarantees that it does not give.

A *control token* is an added token that is marked special, or that holds a character which is no letter, digit or
space (`<think>`; not the runs of spaces that some vocabularies add). Text encoded with `special=False` never yields
one, whatever it says: "<|im_end|>" becomes ordinary pieces. And each id has exact bytes, so that a stream can be
decoded token by token: byte-level vocabularies and metaspace ones with byte fallback alike (`token_bytes.py`).

Another kind of tokenizer is another file with a class of the shape of `TextTokenizer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import tokenizers

from fluvial.adapters.errors import IntegrityError, UsageError
from fluvial.engine.token_bytes import BYTE_LEVEL_ALPHABET, Speller
from fluvial.engine.tokenizer_files import added_tokens, content, mapping, read_json, replaced, unknown_token


@dataclass(frozen=True, slots=True)
class ControlToken:
    """One control token. `lstrip`, `rstrip`: it swallows the white space on that side. `special`: it is not text."""

    text: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False


class TextTokenizer(Protocol):
    """What the engine needs of a tokenizer. `names` has the texts of `bos_token`, `eos_token` and their like."""

    controls: tuple[ControlToken, ...]
    names: dict[str, str]
    eos_ids: frozenset[int]

    @property
    def vocab_size(self) -> int: ...
    def id(self, token: str) -> int | None: ...
    def encode(self, text: str, *, special: bool, first: bool = True) -> list[int]: ...
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str: ...
    def token_bytes(self, id: int, *, first: bool = False, skip_special: bool = True) -> bytes: ...


class Tokenizer:
    """A `tokenizer.json` with its `tokenizer_config.json`."""

    def __init__(self, data: dict[str, Any], config: dict[str, Any] | None = None, eos_ids: Iterable[int] = ()) -> None:
        """`data`: the parsed tokenizer.json; `config`: the parsed tokenizer_config.json; `eos_ids`: further ends.

        Errors: IntegrityError if the tokenizer cannot be built, UnsupportedError for an unknown kind of decoder."""
        config = config or {}
        self.names = {key: content(value) for key, value in config.items() if key.endswith("_token") and value}
        self.names |= {key: content(value) for key, value in mapping(config.get("extra_special_tokens")).items()}
        added = added_tokens(data, config, set(self.names.values()))
        self.controls = tuple(
            ControlToken(token["content"], token["id"], token["special"], bool(token["lstrip"]), bool(token["rstrip"]))
            for token in added
            if token["special"] or re.search(r"[^\w\s▁]", token["content"])
        )
        # the library leaves out "special" tokens on demand: mark every control token so, for its eyes only
        ours = {token.id for token in self.controls}
        marked = [token | {"special": token["special"] or token["id"] in ours} for token in added]
        data = data | {"added_tokens": marked, "truncation": None, "padding": None}
        self._whole = _build(data)
        # a text that is not the first of its sequence gets no space before it, where only the first one gets it
        later = replaced(data.get("pre_tokenizer"), "prepend_scheme", "first", "never")
        self._later = _build(data | {"pre_tokenizer": later}) if later != data.get("pre_tokenizer") else self._whole
        self._lock = Lock()  # the library's switch for special tokens belongs to the object, not to the call
        self._texts: dict[int, str] = {token["id"]: token["content"] for token in added}
        self._hidden = {token.id for token in self.controls if token.special}
        self._speller = Speller(data.get("decoder"))
        vocab = self._whole.get_vocab(with_added_tokens=True)
        for token in self.controls:
            if vocab.get(token.text) != token.id:
                raise IntegrityError(
                    f"Token {token.text!r} has id {vocab.get(token.text)}, not {token.id} as its file says."
                )
        self.vocab_size = max(vocab.values(), default=-1) + 1
        unknown = unknown_token(mapping(data.get("model")))
        ends = set(eos_ids) | {vocab[name] for name in (self.names.get("eos_token"),) if name in vocab}
        self.eos_ids = frozenset(ends)
        self._forbidden = ours - ({vocab[unknown]} - ends if unknown in vocab else set())
        self._missing_bytes = frozenset(
            byte for byte, letter in enumerate(BYTE_LEVEL_ALPHABET) if self._speller.byte_level and letter not in vocab
        )

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model folder. Errors: IntegrityError for a missing or corrupt file."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise IntegrityError(f"There is no tokenizer.json in {folder}.", hint="Download the model again.")
        config = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
        ends: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            found = read_json(folder / name).get("eos_token_id")
            ends |= {end for end in (found if isinstance(found, list) else [found]) if isinstance(end, int)}
        try:
            return cls(read_json(path), config, ends)
        except (KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path} is not a tokenizer:", f"{type(error).__name__}: {error}.") from error

    def id(self, token: str) -> int | None:
        """The id of a token by its exact name in the vocabulary."""
        return self._whole.token_to_id(token)

    def encode(self, text: str, *, special: bool, first: bool = True) -> list[int]:
        """The ids of `text`; nothing is added before or after it. `special=False` for whatever a user, a tool or a file
        said: no control token comes out. `first`: the text begins its sequence.

        Errors: UsageError for text that is not Unicode (a lone surrogate) or that the vocabulary cannot express."""
        try:
            raw = set(text.encode())
        except UnicodeEncodeError as error:
            raise UsageError("The text is not valid Unicode:", f"{error}.") from error
        if not special and (lost := raw & self._missing_bytes):
            raise UsageError("This model's vocabulary cannot express the text:", f"it lacks the bytes {sorted(lost)}.")
        with self._lock:
            tokenizer = self._whole if first else self._later
            tokenizer.encode_special_tokens = not special
            encoding = tokenizer.encode(text, add_special_tokens=False)
        if special or self._forbidden.isdisjoint(encoding.ids):
            return encoding.ids
        # a vocabulary that spells control tokens by itself (Unigram): cut the text inside each of them
        spans = [span for id, span in zip(encoding.ids, encoding.offsets, strict=True) if id in self._forbidden]
        if any(end - at < 2 for at, end in spans):
            raise UsageError("This model's vocabulary cannot express the text:", "a part of it has no plain piece.")
        cuts = [0, *(at + 1 for at, _ in spans), len(text)]
        pieces = [text[at:end] for at, end in pairwise(cuts)]
        return [id for i, x in enumerate(pieces) for id in self.encode(x, special=False, first=first and not i)]

    def token_bytes(self, id: int, *, first: bool = False, skip_special: bool = True) -> bytes:
        """The bytes that a token adds to the text; none for a special token unless asked. `first`: the token begins a
        text (a metaspace vocabulary's leading space goes). Errors: UsageError for an id outside the vocabulary."""
        if skip_special and id in self._hidden:
            return b""
        if (literal := self._texts.get(id)) is not None:
            return literal.encode()
        if id < 0 or (piece := self._whole.id_to_token(id)) is None:
            raise UsageError(f"Token {id} is not in the vocabulary of {self.vocab_size}.")
        return self._speller.spell(piece, first)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD. Errors: UsageError for an id outside the vocabulary."""
        shown = [id for id in ids if not (skip_special and id in self._hidden)]
        raw = b"".join(self.token_bytes(id, first=i == 0, skip_special=False) for i, id in enumerate(shown))
        return raw.decode("utf-8", "replace")


def _build(data: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(data))
    except BaseException as error:  # the library's panics are no Exceptions
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise IntegrityError(
                "tokenizer.json is not a tokenizer:", f"{error}.", "Download the model again."
            ) from error
        raise
