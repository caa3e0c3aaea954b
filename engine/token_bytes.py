"""The bytes of a vocabulary entry, from the decoder that `tokenizer.json` declares.

Byte-level vocabularies write each byte as one printable letter (GPT-2's `bytes_to_unicode`). Metaspace ones write a
space as `▁`, and a byte that no entry has as `<0xE4>`.
"""

from __future__ import annotations

import re
from typing import Any

from fluvial.adapters.errors import UnsupportedError


def _alphabet() -> list[str]:
    """The letter of each byte: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_LEVEL_ALPHABET = _alphabet()
_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LEVEL_ALPHABET)}
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Speller:
    """Turns vocabulary entries into bytes. `byte_level`: which of the two kinds it is."""

    def __init__(self, decoder: Any) -> None:
        """`decoder`: that part of tokenizer.json. Errors: UnsupportedError for a kind not known here."""
        kind = decoder.get("type") if isinstance(decoder, dict) else None
        steps = decoder.get("decoders", []) if kind == "Sequence" else [decoder] if kind else []
        kinds = [step.get("type") for step in steps]
        self.byte_level = "ByteLevel" in kinds
        self._fallback = "ByteFallback" in kinds
        self._replacements: list[tuple[str, str]] = []
        self._lead = 0  # leading spaces that go at the beginning of a text
        for step in steps:
            if step["type"] == "Metaspace":
                self._replacements.append((step.get("replacement", "▁"), " "))
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                self._lead = 0 if scheme == "never" else 1 << 30
            elif step["type"] == "Replace" and isinstance(step["pattern"].get("String"), str):
                self._replacements.append((step["pattern"]["String"], step["content"]))
            elif step["type"] == "Strip" and step["content"] == " " and not step["stop"]:
                self._lead = step["start"]
            elif step["type"] not in ("ByteLevel", "ByteFallback", "Fuse"):
                kinds = []
        if not kinds or (not self.byte_level and not self._replacements):
            raise UnsupportedError("This tokenizer's decoder is not supported:", f"{decoder!r}"[:200])

    def spell(self, piece: str, first: bool) -> bytes:
        """The bytes of a vocabulary entry; `first`: it begins a text."""
        if self.byte_level:
            if all(letter in _BYTES for letter in piece):
                return bytes(_BYTES[letter] for letter in piece)
            return piece.encode()
        if self._fallback and (match := _FALLBACK.fullmatch(piece)):
            raw = bytes([int(match[1], 16)])
        else:
            for old, new in self._replacements:
                piece = piece.replace(old, new)
            raw = piece.encode()
        lead = min(len(raw) - len(raw.lstrip(b" ")), self._lead) if first else 0
        return raw[lead:]
