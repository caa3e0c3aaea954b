"""Pictures of what `fluvial bench` found. They need the `plot` extra."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import UnsupportedError, UsageError

KINDS = (".png", ".svg", ".pdf")


def available(path: Path) -> None:
    """Errors: UnsupportedError without matplotlib, UsageError for a file that is no picture."""
    if path.suffix not in KINDS:
        raise UsageError(f"--plot: {path.name} is no picture.", "", f"It may end in {', '.join(KINDS)}.")
    if find_spec("matplotlib") is None:
        raise UnsupportedError("There is nothing to draw with.", "matplotlib is missing.", "pip install fluvial[plot]")


def plot_recall(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each task, right answers over the age of the fact by doublings, a line for each model; and one of all
    of them over the bytes that are held."""
    tasks = list(dict.fromkeys(row["task"] for report in reports for row in report["rows"]))
    columns = min(4, len(tasks) + 1)
    rows = math.ceil((len(tasks) + 1) / columns)
    figure, panels = _panels(rows, columns)
    for axes, task in zip(panels, tasks, strict=False):
        film = task.startswith("video")
        for report in reports:
            mine = [row for row in report["rows"] if row["task"] == task]
            ages, right = _curve([(row["age"], row["score"] == 1) for row in mine])
            axes.plot(ages, right, "o-", ms=4, label=_label(report))
        axes.set(title=task, xlabel="age in frames" if film else "age in tokens")
    for report in reports:
        held = [(row["state_bytes"] + row["tape_bytes"], row["score"] == 1) for row in report["rows"]]
        sizes, right = _curve(held)
        panels[len(tasks)].plot([size / 1e6 for size in sizes], right, "o-", ms=4, label=_label(report))
    panels[len(tasks)].set(title="all of them", xlabel="MB of state and tape")
    for i, axes in enumerate(panels):
        axes.set_xscale("log")
        axes.set_ylim(-0.04, 1.04)
        axes.xaxis.set_minor_formatter("")
        axes.set_visible(i <= len(tasks))
        if i % columns == 0:
            axes.set_ylabel("answers right")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(reports), frameon=False)
    figure.savefig(path, dpi=110)


def plot_memory(models: Sequence[dict[str, Any]], path: Path) -> None:
    """Bytes of state and tape, resident memory and time per token over tokens, a line for each model."""
    figure, panels = _panels(1, 3)
    for one in models:
        label = Path(one["model"]).stem if one["model"].endswith(".json") else one["model"]
        label += "" if one["kv"] == "exact" else f" ({one['kv']})"
        points = one["over_tokens"]
        tokens = [point["tokens"] for point in points]
        held = [(point["state_bytes"] + point["tape_bytes"]) / 1e6 for point in points]
        more = [(point["resident_bytes"] - points[0]["resident_bytes"]) / 1e6 for point in points]
        for axes, values in zip(panels, (held, more, [point["us_per_token"] for point in points]), strict=True):
            axes.plot(tokens, values, "o-", ms=3, label=label)
    names = ("state and tape, MB", "growth of resident memory, MB", "processor time per token, us")
    for axes, name in zip(panels, names, strict=True):
        axes.set(xscale="log", title=name, xlabel="tokens in the stream")
        axes.xaxis.set_minor_formatter("")
    for axes in (panels[0], panels[2]):
        axes.set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models), frameon=False)
    figure.savefig(path, dpi=110)


def _panels(rows: int, columns: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.2 * columns, 2.4 * rows + 0.5)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    found = [axes for row in panels for axes in row]
    for axes in found:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def _curve(points: Sequence[tuple[int, bool]]) -> tuple[list[float], list[float]]:
    """Shares of true ones by doublings of the number beside them, each at its mean."""
    bins: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for value, right in points:
        bins[int(math.log2(max(value, 1)))].append((max(value, 1), right))
    groups = [bins[octave] for octave in sorted(bins)]
    return [sum(v for v, _ in g) / len(g) for g in groups], [sum(r for _, r in g) / len(g) for g in groups]


def _label(report: dict[str, Any]) -> str:
    rows = report["rows"]
    held = max((row["state_bytes"] + row["tape_bytes"] for row in rows), default=0) / 1e6
    kv = "" if report["kv"] in ("none", "exact") else f", {report['kv']}"
    return f"{report['model']} ({'at most ' if report['kv'] != 'none' else ''}{held:.2g} MB{kv})"
