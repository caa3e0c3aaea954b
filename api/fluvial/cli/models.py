"""`fluvial models`: what there is, and the shape of a model without reading its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from fluvial.cli.console import size, waiting

CARD_HEAD = 1 << 16  # characters of a model card that may hold its header
CONSTANT = "none: the memory is constant"
Json = Annotated[bool, Option("--json", help="Print JSON.")]


def ls(as_json: Json = False) -> None:
    """List the bundled models."""
    with waiting("Looking"):
        from fluvial.engine.model import bundled

        rows = [shape(name) for name in bundled()]
    if as_json:
        typer.echo(json.dumps({"v": 1, "models": rows}))
        return
    cells = [
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
    for line in table(("NAME", "PARAMETERS", "FILE", "STATE", "TAPE PER TOKEN", "BLOCKS"), cells):
        typer.echo(line)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a table with aligned columns."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


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
        "type": about["type"] if about["architecture"] is None else f"{about['type']} ({about['architecture']})",
        "license": about["license"] or "not stated",
        "folder": about["folder"],
        "blocks": _blocks(about["blocks"]),
        "width": f"{about['width']}, vocabulary {about['vocabulary']:,}",
        "parameters": _parameters(about),
        "file": f"{about['file_bytes']:,} bytes" if about["file_bytes"] else "not downloaded",
        "state": f"{state:,} bytes in fp32, whatever the length" if state else "none",
        "tape (KV)": f"{per_token:,} bytes for each token in fp32, half of it in bf16" if per_token else CONSTANT,
        "reads": ", ".join(about["reads"]),
    }
    for key, value in rows.items():
        typer.echo(f"{key:12}{value}")


def shape(name: str) -> dict[str, Any]:
    """What a model's config says, computed on torch's meta device: no weights are read."""
    import torch

    from fluvial.engine.loading import read_shapes, stored_names
    from fluvial.engine.resolve import resolve
    from fluvial.models.tape import Tape

    folder = resolve(name, weights=False)
    shapes = read_shapes(folder)
    config, decoder, tower = shapes.config, shapes.decoder, shapes.vision
    with torch.device("meta"):
        state = decoder.init_state()
    tapes = [rows for leaf in state.leaves.values() if isinstance(leaf, Tape) for rows in leaf.rows]
    draft = shapes.draft[0] if shapes.draft is not None and shapes.holds_draft(stored_names(folder)) else None
    sizes = [sum(p.numel() for p in m.parameters()) if m else 0 for m in (decoder, tower and tower[0], draft)]
    return {
        "name": name,
        "type": config["model_type"],
        "architecture": next(iter(config.get("architectures") or []), None),
        "license": license_of(folder, config),
        "folder": str(folder),
        "blocks": decoder.config.labels,
        "width": decoder.config.d_model,
        "vocabulary": decoder.config.vocab,
        "parameters": sum(sizes),
        "vision_parameters": sizes[1],
        "draft_parameters": sizes[2],
        "file_bytes": file_bytes(folder),
        "state_bytes": state.nbytes("recurrent"),
        "tape_bytes_per_token": sum(r.shape[1] * r.shape[3] * r.element_size() for r in tapes),  # rows [1, H, 0, D]
        "reads": ["text", *(tower[0].reads if tower is not None else ())],
    }


def license_of(folder: Path, config: dict[str, Any]) -> str | None:
    """What the model card or the config says: an identifier like apache-2.0, or a license's own name."""
    from fluvial.engine.resolve import CARD

    card = folder / CARD
    head = card.read_text("utf-8", "replace")[:CARD_HEAD] if card.is_file() else ""
    front = head.split("---")[1] if head.startswith("---") and head.count("---") > 1 else ""
    said = dict(re.findall(r"^(license(?:_name)?):[ \t]*[\"']?([^\s\"'].*?)[\"']?[ \t]*$", front, re.MULTILINE))
    found = said.get("license_name") or said.get("license") or config.get("license")
    return found if isinstance(found, str) else None


def _parameters(about: dict[str, Any]) -> str:
    parts = {"vision": about["vision_parameters"], "drafting (MTP)": about["draft_parameters"]}
    named = ", ".join(f"{count:,} for {what}" for what, count in parts.items() if count)
    return f"{about['parameters']:,}" + (f" ({named})" if named else "")


def file_bytes(folder: Path) -> int:
    """What a model's weights take on disk."""
    from fluvial.adapters.pth import torch_file

    files = sorted(folder.glob("*.safetensors")) or [path for path in [torch_file(folder)] if path is not None]
    return sum(path.stat().st_size for path in files)


def _blocks(blocks: dict[str, int]) -> str:
    return " + ".join(f"{count} {kind}" for kind, count in blocks.items())
