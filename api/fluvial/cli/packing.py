"""`fluvial models pack` and `fluvial models plan`: a model in fewer bits, and how much memory it will take."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from fluvial.cli.console import note, size, waiting
from fluvial.cli.models import Json, file_bytes

Offline = Annotated[bool, Option("--offline", help="A hub name (org/name) comes from the cache only.")]
RECIPES = "int8, int4, int4-small (with -a8 behind: long prompts sooner, activations of 8 bits), bf16, fp16 or fp32"


def pack(
    source: Annotated[str, Argument(help="A bundled model, a folder, or a name on the hub.")],
    target: Annotated[Path, Argument(help="The new folder.")],
    quant: Annotated[str, Option("--quant", metavar="RECIPE", help=f"{RECIPES}.")],
    offline: Offline = False,
) -> None:
    """Write a model with its weights packed: it loads by mapping the file."""
    with waiting(f"Packing {source}"):
        from fluvial.engine.packing import pack as packed

        folder = packed(source, target, quant, offline=offline)
    note(f"{folder}: {size(file_bytes(folder))}.")


def plan(
    name: Annotated[str, Argument(help="A bundled model, a folder, or a name on the hub.")],
    quant: Annotated[str | None, Option("--quant", metavar="RECIPE", help=f"{RECIPES}.")] = None,
    dtype: Annotated[
        str | None, Option("--dtype", metavar="NAME", help="Compute in fp32 (the default), bf16, fp16 or fp64.")
    ] = None,
    context: Annotated[int, Option("--context", min=0, metavar="N", help="Tokens of text in the session.")] = 0,
    images: Annotated[
        int, Option("--images", min=0, metavar="K", help="Images of about a megapixel in the session.")
    ] = 0,
    state_dtype: Annotated[
        str, Option("--state-dtype", metavar="NAME", help="Keep recurrent memories in fp32, bf16 or int8.")
    ] = "fp32",
    kv: Annotated[str, Option("--kv", metavar="MODE", help="Keep attention's rows exact, int8 or window:N.")] = "exact",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show how much memory a model will take; no weights are read."""
    with waiting("Looking"):
        from fluvial.adapters.recipes import recipe
        from fluvial.engine.model import dtype_of
        from fluvial.engine.plan import plan as planned
        from fluvial.engine.resolve import resolve

        chosen, computes = None if quant is None else recipe(quant), dtype_of(dtype)
        place, session = resolve(name, offline=offline, weights=False), {"context": context, "images": images}
        found = planned(place, chosen, computes, **session, state_dtype=state_dtype, kv=kv)
    if as_json:
        typer.echo(json.dumps({"v": 1, "name": name, **asdict(found), "total": found.total}))
        return
    rows = {f"weights: {part}": count for part, count in found.weights.items()}
    rows |= {"state": found.state, f"tape (KV), {found.tokens:,} tokens": found.tape}
    rows |= {"workspace of a chunk": found.workspace, "total": found.total}
    for part, count in rows.items():
        typer.echo(f"{part:40}{size(count):>10}")
