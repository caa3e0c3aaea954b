"""`fluvial doctor --matrix`: which features work on which architectures, and why the others cannot."""

from __future__ import annotations

from fluvial.engine.matrix import ARCHITECTURES, FEATURES, refusal


def lines() -> list[str]:
    """The table as text, with numbered reasons under it."""
    notes: dict[str, int] = {}
    rows = [["", *ARCHITECTURES]]
    for feature in FEATURES:
        row = [f"{feature.axis} {feature.value}"]
        for architecture in ARCHITECTURES:
            why = refusal(architecture, {feature.axis: feature.value})
            note = why or (f"with {feature.brings}" if feature.brings else "")
            mark = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
            row.append(("no" if why else "yes") + mark)
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [
        *table,
        "",
        "yes: together with whatever else is yes in its column, greedy answers are those of the plain run of the same",
        "weights and plugin (state_dtype: fed alike, since memories are rounded after each forward).",
        "no: asking for it raises an UnsupportedError.",
        *(f"[{number}] {note}" for note, number in notes.items()),
    ]
