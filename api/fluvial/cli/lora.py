"""`fluvial lora`: the plugins on this machine, and whether one fits a model. State plugins are listed with them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from fluvial.cli.console import note, size, waiting, warn
from fluvial.cli.models import Json, table

SHORT = 12  # characters of a hash


def ls(
    path: Annotated[
        Path | None, Argument(help="A plugin or a folder of plugins (default: those of the bundled models).")
    ] = None,
    as_json: Json = False,
) -> None:
    """List plugins: kind, rank, targets, size and hash. No model is loaded."""
    with waiting("Looking"):
        from fluvial.engine.plugin_folders import described, found_under

        rows = [asdict(described(found)) for place in _places(path) for found in found_under(place)]
    if as_json:
        typer.echo(json.dumps({"v": 1, "plugins": rows}, default=str))
        return
    if not rows:
        note("There are no plugins.")
        return
    for line in table(("NAME", "KIND", "BASE", "RANK", "TARGETS", "FILES", "HASH", "PATH"), map(_cells, rows)):
        typer.echo(line)
    for row in rows:
        if row["problem"]:
            warn(f"{row['path']}: {row['problem']}")


def verify(
    path: Annotated[Path, Argument(help="A PEFT folder or a state plugin.")],
    model: Annotated[str, Argument(help="A bundled model, a folder, or a name on the hub.")] = "pebble",
    offline: Annotated[bool, Option("--offline", help="A hub name (org/name) comes from the cache only.")] = False,
    as_json: Json = False,
) -> None:
    """Check that a plugin fits a model: its names, shapes and numbers.

    Exit code 0 if it does, 7 if it is damaged or made for another model, 3 if there is none, 1 for what is unsupported.
    """
    with waiting(f"Loading {model}"):
        from fluvial.engine.model import load_model

        loaded = load_model(model, offline=offline)
        info = loaded.plugins.verify(path)
    if as_json:
        typer.echo(json.dumps({"v": 1, "model": model, **asdict(info)}, default=str))
        return
    rows = {
        "plugin": f"{info.name} ({info.kind})",
        "model": model,
        "trained on": info.base or "not stated",
        "changes": f"{len(info.targets)} {'modules' if info.kind == 'lora' else 'parts of the state'}",
        "values": f"{info.parameters:,}",
        "hash": info.digest,
    }
    for key, value in rows.items():
        typer.echo(f"{key:12}{value}")
    for warning in info.warnings:
        warn(warning)
    typer.echo("It fits.")


def _places(path: Path | None) -> list[Path]:
    if path is not None:
        return [path.expanduser()]
    from fluvial.engine.model import bundled, resolve
    from fluvial.engine.plugin_folders import OWN

    return [place for name in bundled() if (place := resolve(name) / OWN).is_dir()]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    base, rank, targets = row["base"] or "-", str(row["rank"] or "-"), ",".join(row["targets"]) or "-"
    kept = row["digest"][:SHORT] or "-"
    return row["name"], row["kind"], base, rank, targets, size(row["file_bytes"]), kept, str(row["path"])
