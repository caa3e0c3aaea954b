"""The options that the commands of `fluvial bench` share, and how they are read."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from fluvial.adapters.errors import UsageError

COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)")
UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


@dataclass(frozen=True)
class Loading:
    """How the models are loaded, and where the figures go."""

    kv: Annotated[
        list[str] | None, Option("--kv", metavar="MODE", help="Attention's rows: exact, int8 or window:N; repeatable.")
    ] = None
    dtype: Annotated[str | None, Option("--dtype", metavar="NAME", help="fp32, bf16, fp16 or fp64.")] = None
    quant: Annotated[str | None, Option("--quant", metavar="RECIPE", help="int8, int4, int4-small ...")] = None
    state_dtype: Annotated[str, Option("--state-dtype", metavar="NAME", help="fp32, bf16 or int8.")] = "fp32"
    offline: Annotated[bool, Option("--offline", help="A hub name comes from the cache only.")] = False
    json: Annotated[Path | None, Option("--json", metavar="FILE", help="All figures, to be repeated.")] = None
    plot: Annotated[Path | None, Option("--plot", metavar="FILE", help="A picture of them (.png, .svg).")] = None

    def check(self) -> None:
        """Refuses files that could not be written, before hours of work."""
        for option, path in (("--json", self.json), ("--plot", self.plot)):
            if path is not None and not path.expanduser().absolute().parent.is_dir():
                raise UsageError(f"{option}: there is no folder {path.parent}.", "", "Make it first.")
        if self.plot is not None:
            from fluvial.cli.plots import available

            available(self.plot)

    def options(self, kv: str) -> dict[str, Any]:
        """The keyword arguments of `load_model`."""
        named = {"dtype": self.dtype, "quant": self.quant, "state_dtype": self.state_dtype}
        return {**named, "kv": kv, "offline": self.offline}

    def write(self, found: dict[str, Any]) -> None:
        """Writes the figures, atomically."""
        if self.json is not None:
            path = self.json.expanduser()
            part = path.with_name(path.name + ".part")
            part.write_text(json.dumps(found, indent=1) + "\n")
            part.replace(path)


def counts(text: str, option: str) -> list[int]:
    """Numbers with commas between them; k is 1024, M is 1024 k. Errors: UsageError."""
    found = [COUNT.fullmatch(part.strip()) for part in text.split(",")]
    numbers = [math.floor(float(one[1]) * UNITS[one[2].lower()]) if one else 0 for one in found]
    if min(numbers) < 1:
        raise UsageError(f"{option} is '{text}'.", "It must be positive numbers.", "For example: 1k,64k,1M.")
    return numbers


def single(text: str, option: str) -> list[int]:
    """One such number. Errors: UsageError."""
    if len(found := counts(text, option)) > 1:
        raise UsageError(f"{option} is '{text}'.", "It takes one number.")
    return found
