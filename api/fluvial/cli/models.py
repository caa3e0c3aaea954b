"""`fluvial models`: what there is, and the shape of a model without reading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from fluvial.cli.console import size, waiting

Json = Annotated[bool, Option("--json", help="Print JSON.")]


def ls(as_json: Json = False) -> None:
    """List the bundled models."""
    with waiting("Looking"):
        from fluvial.engine.model import bundled

        rows = [shape(name) for name in bundled()]
    if as_json:
        typer.echo(json.dumps({"v": 1, "models": rows}))
        return
    table = [("NAME", "PARAMETERS", "FILE", "STATE", "TAPE PER TOKEN", "BLOCKS")]
    table += [
        (
            row["name"],
            f"{row['parameters'] / 1e6:.1f} M",
            size(row["file_bytes"]),
            size(row["state_bytes"]),
            size(row["tape_bytes_per_token"]),
            _blocks(row["blocks"]),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show(name: Annotated[str, Argument(help="A bundled model or a folder.")], as_json: Json = False) -> None:
    """Show a model's architecture, size and memory."""
    with waiting("Looking"):
        about = shape(name)
    if as_json:
        typer.echo(json.dumps({"v": 1, **about}))
        return
    state, per_token = about["state_bytes"], about["tape_bytes_per_token"]
    rows = {
        "name": about["name"],
        "type": about["type"],
        "folder": about["folder"],
        "blocks": _blocks(about["blocks"]),
        "width": f"{about['width']}, vocabulary {about['vocabulary']:,}",
        "parameters": f"{about['parameters']:,} ({about['vision_parameters']:,} of them for vision)",
        "file": f"{about['file_bytes']:,} bytes",
        "state": f"{state:,} bytes in fp32, whatever the length" if state else "none",
        "tape (KV)": f"{per_token:,} bytes for each token in fp32" if per_token else "none: the memory is constant",
        "reads": ", ".join(about["reads"]),
    }
    for key, value in rows.items():
        typer.echo(f"{key:12}{value}")


def shape(name: str) -> dict[str, Any]:
    """What a model's config says, computed on torch's meta device: no weights are read."""
    import torch

    from fluvial.engine.loading import read_shapes
    from fluvial.engine.resolve import resolve
    from fluvial.models.tape import Tape

    folder = resolve(name, weights=False)
    shapes = read_shapes(folder)
    config, decoder, tower = shapes.config, shapes.decoder, shapes.vision
    with torch.device("meta"):
        state = decoder.init_state()
    tapes = [rows for leaf in state.leaves.values() if isinstance(leaf, Tape) for rows in leaf.rows]
    kinds = [block.kind for block in decoder.config.blocks]
    vision = sum(p.numel() for p in tower[0].parameters()) if tower is not None else 0
    return {
        "name": name,
        "type": config["model_type"],
        "folder": str(folder),
        "blocks": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "width": decoder.config.d_model,
        "vocabulary": decoder.config.vocab,
        "parameters": sum(p.numel() for p in decoder.parameters()) + vision,
        "vision_parameters": vision,
        "file_bytes": _file_bytes(folder),
        "state_bytes": state.nbytes("recurrent"),
        "tape_bytes_per_token": sum(r.shape[1] * r.shape[3] * r.element_size() for r in tapes),  # rows [1, H, 0, D]
        "reads": ["text"] if tower is None else ["text", "image", "video"],
    }


def _file_bytes(folder: Path) -> int:
    files = folder.glob("*.safetensors") if folder.is_dir() else [folder]
    return sum(path.stat().st_size for path in files)


def _blocks(blocks: dict[str, int]) -> str:
    return " + ".join(f"{count} {kind}" for kind, count in blocks.items())
