"""RWKV World's tokenizer against its published algorithm: walk the trie of all pieces, keep the last end of one."""

from __future__ import annotations

import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from fluvial.adapters.errors import IntegrityError, UsageError
from fluvial.engine.rwkv_tokenizer import END, WorldTokenizer, read_vocabulary
from fluvial.engine.tokenizer import TextTokenizer

PIECES = [
    "the",
    " the",
    "  ",
    "    ",
    "\n\n",
    "\r\n",
    "你好",
    "你",
    "世界",
    "🙂",
    "👩",
    "\u2028",
    "\x85",
    "'",
    '"',
    "\\n",
    "aaaa",
    "aaaaaaa",
]
RAW = [b"\xf0\x9f", b"\xe4\xbd", b"\x00\x00\x00", b"\xff\xfe"]
HARD = [
    "",
    "a",
    "the the  the\n\nthe\r\n\r\n",
    "Emoji: 🙂🙃👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 and a lone \u200d.",
    "你好，世界！こんにちは世界。안녕하세요 세계. Добрый день",
    "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # no \\n here\n" + " " * 37 + "pass\n",
    "\x00\x01\x02\x1b[31m\x7f\x85\u2028\u2029\ufeff\ufffd\U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaa aaa aaaaa",
    "مرحبا بالعالم Z̷̢͝a̶͠l̴͝g̵o̷ 𝕬𝖇𝖈",
    "1234567890 3.14159e-27 0xDEADBEEF https://example.org/?q=%20&b=\u00e9e\u0301",
]


def written(folder: Path, pieces: list[str | bytes]) -> Path:
    path = folder / "rwkv_vocab_test.txt"
    sizes = [len(piece.encode() if isinstance(piece, str) else piece) for piece in pieces]
    lines = [f"{id} {piece!r} {size}\n" for id, (piece, size) in enumerate(zip(pieces, sizes, strict=True), 1)]
    for end in ("\u2028", "\x85"):  # other ends of lines, written as they are
        lines = [line.replace(f" {end!r}", f" '{end}'") for line in lines]
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> WorldTokenizer:
    folder = tmp_path_factory.mktemp("world")
    letters = [chr(i) if i < 128 else bytes([i]) for i in range(256)]
    written(folder, [*letters, *PIECES, *RAW])
    return WorldTokenizer.load(folder)


@cache
def published() -> WorldTokenizer:
    found = find_spec("rwkv")
    if found is None or found.origin is None:
        pytest.skip("the rwkv package, which ships the vocabulary, is not installed")
    return WorldTokenizer(read_vocabulary(Path(found.origin).parent / "rwkv_vocab_v20230424.txt"))


@cache
def trie(tokenizer: WorldTokenizer) -> dict:
    root: dict = {}
    for id in range(1, tokenizer.vocab_size):
        node = root
        for byte in tokenizer.token_bytes(id):
            node = node.setdefault(byte, {})
        node["id"] = id
    return root


def oracle(tokenizer: WorldTokenizer, raw: bytes) -> list[int]:
    """The longest piece at each place."""
    ids, at = [], 0
    while at < len(raw):
        node, end, id = trie(tokenizer), at, 0
        for i in range(at, len(raw)):
            if raw[i] not in node:
                break
            node = node[raw[i]]
            if "id" in node:
                end, id = i + 1, node["id"]
        assert end > at
        ids.append(id)
        at = end
    return ids


@pytest.mark.parametrize("name", ["small", "published"])
def test_the_cut_is_the_published_one(name: str, small: WorldTokenizer):
    tokenizer: TextTokenizer = small if name == "small" else published()
    assert isinstance(tokenizer, WorldTokenizer)
    draw = random.Random(1)
    mixed = ["".join(draw.choices("".join(HARD), k=200)) for _ in range(20)]
    for text in [*HARD, *mixed]:
        ids = tokenizer.encode(text, special=False)
        assert ids == oracle(tokenizer, text.encode())
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes(id) for id in ids) == text.encode()
    for size in range(1, 200, 7):
        raw = draw.randbytes(size)
        ids = tokenizer.encode_bytes(raw)
        assert ids == oracle(tokenizer, raw)
        assert b"".join(tokenizer.token_bytes(id) for id in ids) == raw


def test_the_published_vocabulary():
    tokenizer = published()
    assert tokenizer.vocab_size == 65530
    assert [len(tokenizer.token_bytes(id)) for id in range(1, 257)] == [1] * 256
    assert len({tokenizer.token_bytes(id) for id in range(1, 65530)}) == 65529
    assert tokenizer.encode("\n\n", special=False) == [261]
    assert len(tokenizer.encode("The quick brown fox jumps over the lazy dog.", special=False)) == 10


def test_only_special_text_ends(small: WorldTokenizer):
    said = f"the{END}the"
    ids = small.encode(said, special=True)
    assert ids.count(0) == 1 and small.id(END) == 0 and small.eos_ids == {0}
    assert 0 not in small.encode(said, special=False)
    assert small.decode(small.encode(said, special=False)) == said
    assert small.decode(ids) == "thethe" and small.decode(ids, skip_special=False) == said
    assert [control.text for control in small.controls] == [END]
    assert small.id("你好") == 257 + PIECES.index("你好") and small.id("none") is None


def test_bad_input_says_what_is_wrong(small: WorldTokenizer, tmp_path: Path):
    with pytest.raises(UsageError, match="not valid Unicode"):
        small.encode("\ud800", special=False)
    with pytest.raises(UsageError, match="not in the vocabulary"):
        small.token_bytes(60_000)
    with pytest.raises(UsageError, match="lacks the byte 98"):
        WorldTokenizer({1: b"a"}).encode("ab", special=False)
    with pytest.raises(IntegrityError, match="no rwkv_vocab"):
        WorldTokenizer.load(tmp_path)
    path = tmp_path / "rwkv_vocab_x.txt"
    for line in [
        "1 __import__('os').getcwd() 3",
        "1 'ab' 3",
        "1 'ab'",
        "x 'a' 1",
        "1 3 1",
        "1 '' 0",
        "0 'a' 1",
        "1 'a",
    ]:
        path.write_text(f"7 'fine' 4\n{line}\n")
        with pytest.raises(IntegrityError, match="corrupt in line 2"):
            WorldTokenizer.load(tmp_path)
    path.write_text("1 'a' 1\n1 'b' 1\n")
    with pytest.raises(IntegrityError, match="1 is taken"):
        WorldTokenizer.load(tmp_path)
    path.write_bytes(b"1 '\xff' 1\n")
    with pytest.raises(IntegrityError, match="corrupt"):
        WorldTokenizer.load(tmp_path)
