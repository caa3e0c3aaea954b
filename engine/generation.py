"""`Generation`: what a checkpoint's `generation_config.json` recommends, as defaults that callers may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import IntegrityError, UsageError
from fluvial.engine.sampling import SamplingParams
from fluvial.engine.tokenizer_files import read_json

TOP_K = 50  # what Transformers takes where a sampling checkpoint gives none


@dataclass(frozen=True)
class Generation:
    """`sampling` is greedy unless the file says `do_sample`; `eos_ids` and texts (`stop`) end an answer; `max_tokens`
    None: no advice."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_ids: frozenset[int] = frozenset()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path, eos_ids: Iterable[int] = ()) -> Generation:
        """From a model folder; without the file, greedy. `eos_ids`: the tokenizer's, which come from this file too.
        Errors: IntegrityError for a value that makes no sense."""
        path = folder / "generation_config.json"
        said = {key: value for key, value in read_json(path).items() if value is not None}
        chosen: dict[str, Any] = {"repetition_penalty": said.get("repetition_penalty", 1.0)}
        if said.get("do_sample"):
            chosen |= {"temperature": said.get("temperature", 1.0), "top_k": said.get("top_k", TOP_K)}
            chosen |= {key: said[key] for key in ("top_p", "min_p") if key in said}
        length = said.get("max_new_tokens")
        try:
            if length is not None and (not isinstance(length, int) or length < 1):
                raise UsageError(f"max_new_tokens is {length!r:.40}.")
            return cls(SamplingParams(**chosen), frozenset(eos_ids), length)
        except (UsageError, TypeError) as error:
            raise IntegrityError(f"{path} is damaged:", str(error), "Download the model again.") from error
