"""What a stream costs as it gets longer: bytes of state and tape, resident memory, time per token.

A shape without weights (a config.json alone) can be measured too: memory and time do not depend on the values.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fluvial.adapters import chips
from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.adapters.packed import formats_of, matrices
from fluvial.adapters.recipes import recipe
from fluvial.encoders.frame import Frame
from fluvial.engine.model import Model, dtype_of, load_model
from fluvial.engine.session import Session
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from fluvial.models.tape import Tape

CHUNK = 512  # tokens in a forward
RECENT = 8  # forwards that a time is the median of


@dataclass(frozen=True)
class Point:
    """After `tokens` tokens, `frames` of video among them: what is held, and CPU microseconds per token just now."""

    tokens: int
    frames: int
    state_bytes: int
    tape_bytes: int
    resident_bytes: int
    us_per_token: float


def resident_bytes() -> int:
    """Memory of this process; where the system does not tell, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def decoder_of(
    name: str,
    *,
    dtype: str | None = None,
    quant: str | None = None,
    kv: str = "exact",
    state_dtype: str = "fp32",
    offline: bool = False,
) -> tuple[Decoder, Model | None]:
    """A decoder and, unless `name` is a config.json (random weights), its model. Arguments and errors as
    `load_model`."""
    if name.endswith(".json"):
        return _random(Path(name).expanduser(), dtype, quant, kv, state_dtype), None
    model = load_model(name, dtype=dtype, quant=quant, kv=kv, state_dtype=state_dtype, offline=offline)
    return model.decoder, model


def _random(path: Path, dtype: str | None, quant: str | None, kv: str, state_dtype: str) -> Decoder:
    chips.load()
    stored = None if quant is None else recipe(quant)
    computes = dtype_of(dtype) or (torch.float32 if stored is None else stored.dtype)
    try:
        config = checkpoints.identified(json.loads(path.read_text("utf-8")))
        torch.manual_seed(1)
        decoder = Decoder(checkpoints.family(config["model_type"]).decoder_config(config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} does not describe a model.", f"{error!r:.300}", "Name a config.json.") from error
    decoder = decoder.to(computes).eval().requires_grad_(False)
    modules = {"decoder": decoder}
    for layer, format in ({} if stored is None else formats_of(stored, modules)).items():
        matrices(modules)[layer].store(format)
    decoder.keep(state_dtype)
    decoder.keep_rows(kv)
    return decoder


def grows(decoder: Decoder) -> bool:
    """Whether its memory does, with the stream."""
    return any(isinstance(leaf, Tape) for leaf in decoder.init_state().leaves.values())


def over_tokens(decoder: Decoder, tokens: int) -> Iterator[Point]:
    """Feeds random tokens; a point at every doubling, at one per cent and at the end. Errors: UsageError."""
    if tokens < 1:
        raise UsageError(f"{tokens} tokens are no stream.")
    draw = torch.Generator().manual_seed(1)
    state, times, mark, early = None, deque[float](maxlen=RECENT), CHUNK, max(tokens // 100, CHUNK)
    for start in range(0, tokens, CHUNK):
        count = min(CHUNK, tokens - start)
        ids = torch.randint(0, decoder.config.vocab, (1, count), generator=draw)
        began = time.process_time()
        with torch.no_grad():
            _, state = decoder(decoder.embed(ids.to(decoder.device)), state)
        times.append((time.process_time() - began) / count * 1e6)
        end = start + count
        if end >= mark or end == tokens or start < early <= end:
            yield _point(state, 0, median(times))
            mark *= 2 if end >= mark else 1


def over_frames(model: Model, frames: int) -> Iterator[Point]:
    """Pushes random frames into a session; points as above, over frames. Errors: UnsupportedError for a model that
    cannot see, UsageError."""
    if model.tower is None:
        raise UnsupportedError(f"{model.name} reads text only.", hint="Measure it over tokens.")
    if frames < 1:
        raise UsageError(f"{frames} frames are no video.")
    rng, session = np.random.default_rng(1), Session(model)
    mark, early, before, began = 1, max(frames // 100, 1), 0, time.process_time()
    for index in range(frames):
        blocks = rng.integers(0, 256, (8, 8, 3), np.uint8)
        session.push(Frame(blocks.repeat(8, 0).repeat(8, 1), index / model.processor.fps, index))
        if index + 1 in (mark, early, frames):
            now, position = time.process_time(), session.position
            state = session.snapshot().feed.state
            yield _point(state, index + 1, (now - began) / max(position - before, 1) * 1e6)
            before, began = position, time.process_time()
            mark *= 2 if index + 1 == mark else 1


def _point(state: State, frames: int, us: float) -> Point:
    held = state.nbytes("recurrent"), state.nbytes("tape")
    return Point(state.position[0], frames, *held, resident_bytes(), round(us, 1))
