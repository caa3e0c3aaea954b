"""RWKV's World tokenizer: bytes, greedily cut into the longest piece of a fixed vocabulary (65,529 of them).

A vocabulary file has one line per piece: its id, the piece as a Python literal (text or bytes), its length in bytes.
Id 0 has no line: it ends a text. In place of the published trie a table gives, for the first two bytes of a piece, the
lengths that pieces with that beginning have, longest first; the cut is the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import IntegrityError, UsageError
from fluvial.engine.tokenizer import ControlToken
from fluvial.engine.tokenizer_files import content, read_json

PATTERN = "rwkv_vocab*.txt"
END = "<|rwkv_tokenizer_end_of_text|>"
LARGEST_FILE, LONGEST_LINE = 16 << 20, 4096  # the published one has 1.1 MB and pieces of up to 128 bytes


class WorldTokenizer:
    """A vocabulary of byte strings. It has one control token, the end of a text."""

    def __init__(self, pieces: dict[int, bytes], end: str = END) -> None:
        self._pieces = pieces
        self._ids = {piece: id for id, piece in pieces.items()}
        lengths: dict[bytes, set[int]] = {}
        for piece in self._ids:
            lengths.setdefault(piece[:2], set()).add(len(piece))
        self._lengths = {start: tuple(sorted(found, reverse=True)) for start, found in lengths.items()}
        self._end = end
        self.controls: tuple[ControlToken, ...] = (ControlToken(end, 0, special=True),)
        self.names = {"bos_token": end, "eos_token": end}
        self.eos_ids = frozenset({0})
        self.vocab_size = max(pieces, default=0) + 1

    @classmethod
    def load(cls, folder: Path) -> WorldTokenizer:
        """The tokenizer of a model folder. Errors: IntegrityError for a missing or corrupt vocabulary."""
        found = sorted(folder.glob(PATTERN))
        if not found:
            raise IntegrityError(
                f"There is no {PATTERN} in {folder}.",
                hint="Put rwkv_vocab_v20230424.txt beside the model: RWKV's repositories and the rwkv package ship it.",
            )
        end = content(read_json(folder / "tokenizer_config.json").get("eos_token")) or END
        return cls(read_vocabulary(found[0]), end)

    @staticmethod
    def in_folder(folder: Path) -> bool:
        """Whether a model folder has this kind of tokenizer."""
        return any(folder.glob(PATTERN))

    def id(self, token: str) -> int | None:
        """The id of a token by its exact text."""
        return 0 if token == self._end else self._ids.get(token.encode("utf-8", "surrogatepass"))

    def encode(self, text: str, *, special: bool, first: bool = True) -> list[int]:
        """The ids of `text`; with `special`, the end's name becomes the end. `first` makes no difference here.

        Errors: UsageError for text that is not Unicode (a lone surrogate) or that the vocabulary cannot express."""
        parts = text.split(self._end) if special else [text]
        try:
            raw = [part.encode() for part in parts]
        except UnicodeEncodeError as error:
            raise UsageError("The text is not valid Unicode:", f"{error}.") from error
        ids = list(self._cut(raw[0]))
        for part in raw[1:]:
            ids += [0, *self._cut(part)]
        return ids

    def encode_bytes(self, raw: bytes) -> list[int]:
        """The ids of any bytes. Errors: UsageError for bytes that the vocabulary cannot express."""
        return list(self._cut(raw))

    def _cut(self, raw: bytes) -> Iterator[int]:
        at = 0
        while at < len(raw):
            # a lone byte has a row of its own, which stands behind those of the pairs it begins
            lengths = (*self._lengths.get(raw[at : at + 2], ()), 1)
            for length in lengths:
                id = self._ids.get(raw[at : at + length])
                if id is not None:
                    break
            else:
                raise UsageError("This model's vocabulary cannot express the text:", f"it lacks the byte {raw[at]}.")
            yield id
            at += len(self._pieces[id])

    def token_bytes(self, id: int, *, first: bool = False, skip_special: bool = True) -> bytes:
        """The bytes that a token adds to the text; none for the end unless asked. Errors: UsageError for an id outside
        the vocabulary."""
        if id == 0:
            return b"" if skip_special else self._end.encode()
        piece = self._pieces.get(id)
        if piece is None:
            raise UsageError(f"Token {id} is not in the vocabulary of {self.vocab_size}.")
        return piece

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD. Errors: UsageError for an id outside the vocabulary."""
        return b"".join(self.token_bytes(id, skip_special=skip_special) for id in ids).decode("utf-8", "replace")


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """The pieces of a vocabulary file by id. Errors: IntegrityError naming the line."""
    if path.stat().st_size > LARGEST_FILE:
        raise IntegrityError(f"{path} is no vocabulary:", f"it has {path.stat().st_size} bytes.")
    pieces: dict[int, bytes] = {}
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is corrupt:", f"{error}.", "Download it again.") from error
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a piece may hold one of its other ends
        if line.strip():
            try:
                id, piece = _entry(line)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
                raise IntegrityError(
                    f"{path} is corrupt in line {number}:", f"{error}.", "Download it again."
                ) from error
            if id in pieces or id < 1:
                raise IntegrityError(f"{path} is corrupt in line {number}:", f"{id} is taken.", "Download it again.")
            pieces[id] = piece
    return pieces


def _entry(line: str) -> tuple[int, bytes]:
    """id, literal, length: the literal may hold spaces itself."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{len(line)} characters")
    id, _, rest = line.strip().partition(" ")
    literal, _, length = rest.rpartition(" ")
    value: Any = ast.literal_eval(literal.strip())
    piece = value.encode() if isinstance(value, str) else value
    if not isinstance(piece, bytes) or not piece or len(piece) != int(length):
        raise ValueError(f"{literal[:40]} has not {length} bytes")
    return int(id), piece
