"""`fluvial state show` and `fluvial state diff`: what a saved conversation holds, and where two of them part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument

from fluvial.cli.console import size, visible
from fluvial.cli.models import Json

File = Annotated[Path, Argument(help="A file of --save-state, /save or Session.save.")]
WIDTH = 72  # characters of a message shown


def show(path: File, as_json: Json = False) -> None:
    """Show what a saved conversation holds, without loading its model."""
    from fluvial.engine.state_report import describe, read

    about = describe(read(path))
    if as_json:
        typer.echo(json.dumps({"v": 1, **about}))
        return
    plugins = ", ".join(f"{one['name']} x {one['strength']:g}" for one in about["plugins"].values())
    tape = f"{size(about['tape_bytes'])} for {about['tape_tokens']:,} tokens" if about["tape_bytes"] else "none"
    rows = {
        "kind": f"{about['kind']}, version {about['version']}",
        "model": f"{about['model']} ({about['fingerprint'][:12]})".strip(),
        "plugins": plugins or "none",
        "position": ", ".join(f"{n:,}" for n in about["position"]) + " tokens",
        "state": f"{size(about['state_bytes'])} in {about['leaves']} leaves, {about['state_dtype']}",
        "tape (KV)": tape,
        "history": about["history"][:12] or "not kept",
        "media": len(about["media"]),
        "messages": len(about["messages"]),
    }
    for key, value in rows.items():
        typer.echo(f"{key:12}{visible(str(value))}")
    for message in about["messages"]:
        typer.echo(f"  {message['role']:10}{_line(message['content'])}")
    if about["open_turn"]:
        typer.echo(f"  {'user ...':10}{_line(about['open_turn'])}")


def diff(one: File, other: File, as_json: Json = False) -> None:
    """Show where two saved conversations part; the exit code is 1 if they do."""
    from fluvial.engine.state_report import compare, read

    found = compare(read(one), read(other))
    if as_json:
        typer.echo(json.dumps({"v": 1, **found}))
    elif found["equal"]:
        typer.echo("The same, bit for bit.")
    else:
        for key, (left, right) in found["fields"].items():
            typer.echo(f"{key:14}{visible(str(left))} | {visible(str(right))}")
        typer.echo(
            f"{'in common':14}the first {found['shared']['messages']} messages, {found['shared']['media']} media"
        )
        gaps = {name: gap for name, gap in found["leaves"].items() if gap is not None}
        if other_shape := len(found["leaves"]) - len(gaps):
            typer.echo(f"{'leaves':14}{other_shape} of another shape")
        if gaps:
            worst = max(gaps, key=gaps.__getitem__)
            typer.echo(f"{'leaves':14}{len(gaps)} differ, by up to {gaps[worst]:.2g} of the largest value ({worst})")
    if not found["equal"]:
        raise typer.Exit(1)


def _line(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text = " ".join(part.get("text", "").strip() or f"<{part['type']}>" for part in parts)
    line = visible(" ".join(text.split()))
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
