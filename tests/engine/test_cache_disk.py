"""The cache's disk tier: another process goes on from it, damage is a miss, the cap holds, two writers do no harm."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from fluvial.adapters.errors import UsageError
from fluvial.encoders.layout import Layout
from fluvial.engine.cache.cache import StateCache
from fluvial.engine.cache.disk import Disk
from fluvial.engine.media import Facts, Image
from fluvial.engine.session import Session
from tests.engine.test_cache import ask, cached
from tests.engine.test_cache_tree import KEYS, Reader
from tests.engine.tiny import picture, tiny
from tests.models.zoo import distance

CPU = torch.device("cpu")


def look(model) -> tuple[Session, str, int, int]:
    """A session that sees an image: itself, its answer, cached tokens, tokens that were read."""
    session = Session(model, system="Be brief.")
    session.push(Image(picture(1)))
    done = ask(session, "What is there?", max_tokens=2)
    return session, done.text, done.usage.cached_tokens, done.usage.prompt_tokens - done.usage.cached_tokens


@pytest.mark.parametrize("variant", ["delta", "transformer", "hybrid"])
def test_another_process_goes_on_from_the_folder(variant, tmp_path, monkeypatch):
    model = cached(variant, disk=tmp_path / "cache")
    plain, text, _, _ = look(tiny(variant))
    assert look(model)[1:3] == (text, 0)
    model.cache = StateCache(model.cache.config, model)  # as another process would
    monkeypatch.setattr(model, "encode", None)  # nothing is encoded again
    session, again, known, read = look(model)
    assert again == text and known > 60 and read <= 2
    assert distance(session._now.feed.state, plain._now.feed.state) <= 1e-9
    about = model.cache.inspect()
    assert 0 < about["disk_bytes"] <= 10**10 and about["bytes"] > 0
    assert model.explain()["cache"]["disk"] == str(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_damage_is_a_miss_with_a_reason_and_goes(tmp_path):
    model = cached("delta", disk=tmp_path)
    _, text, _, _ = look(model)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) >= 3
    for n, file in enumerate(files):
        raw = bytearray(file.read_bytes())
        raw[-20 - n] ^= 1
        file.write_bytes(raw[: len(raw) // 2] if n == 1 else raw)
    model.cache = StateCache(model.cache.config, model)
    _, again, known, _ = look(model)
    assert again == text and known == 0
    assert model.cache.inspect()["misses"]["a file on disk was damaged"] >= 2
    model.cache = StateCache(model.cache.config, model)
    assert look(model)[2] > 60  # written anew


def test_the_cap_holds_and_what_was_not_used_for_longest_goes(tmp_path):
    disk = Disk(tmp_path, 400_000, CPU)
    (tmp_path / ".x.tmp").write_bytes(b"left by a writer that was killed")
    for n in range(12):
        disk.put_medium(f"m{n}", Facts("", "", "", 1, 1, ""), [])
        disk.put_medium(f"w{n}", Facts("", "", "", 1, 1, ""), [(torch.zeros(20_000), Layout())])
        assert disk.used() <= disk.size
        assert disk.find_medium("w0") is not None
    assert disk.find_medium("w2") is None and disk.find_medium("w11") is not None
    assert not disk.problems and not list(tmp_path.glob(".*.tmp"))
    disk.put_medium("big", Facts("", "", "", 1, 1, ""), [(torch.zeros(10**6), Layout())])
    assert disk.problems == ["there was no room on disk to keep it"] and disk.find_medium("w11") is not None
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Cannot keep a cache"):
        Disk(tmp_path / "file", 1, CPU)


def work(folder: Path, seed: int, results) -> None:
    """Writes and reads states of eight chains in any order, in a folder with room for a few."""
    torch.manual_seed(seed)
    disk, found, wrong = Disk(folder, 200_000, CPU), 0, []
    for _ in range(60):
        reader = Reader(KEYS[0], "both")
        reader.on([int(torch.randint(8, ()))] * 30)
        state = reader.state
        if torch.rand(()) < 0.5:
            disk.put(KEYS[0], reader.chain.whole(), state, torch.zeros(7))
            continue
        stored = disk.find(KEYS[0], tuple(reader.read), 0, "model")
        if stored is not None:
            found += 1
            wrong += [1] if distance(stored.state, state) or stored.state.position != (30,) else []
    results.put((found, len(wrong), list(disk.problems)))


def test_two_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=work, args=(tmp_path, seed, results)) for seed in (1, 2)]
    for process in processes:
        process.start()
    reports = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert all(found > 3 and not wrong and not problems for found, wrong, problems in reports)
    assert Disk(tmp_path, 200_000, CPU).used() <= 200_000
