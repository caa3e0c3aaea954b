"""What the rows of a memory test come to: shares of right answers by task and length, and by age."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from platform import python_version
from typing import Any

import torch

from fluvial.engine.model import Model
from fluvial.engine.recall.registry import TASKS
from fluvial.engine.recall.run import Row


@dataclass(frozen=True)
class Cell:
    """One task at one length. `right`: share of answers that were; `circular`: share of samples all of whose turns and
    questions were; `chance`: what guessing gives there; `age`, `state_bytes`, `tape_bytes` are means."""

    task: str
    length: int
    answers: int
    samples: int
    right: float
    score: float
    circular: float
    chance: float
    age: int
    state_bytes: int
    tape_bytes: int


def cells(rows: Iterable[Row]) -> list[Cell]:
    """In the order in which the tests ran."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.task, row.length].append(row)
    return [_cell(task, length, group) for (task, length), group in groups.items()]


def _cell(task: str, length: int, rows: Sequence[Row]) -> Cell:
    circles: dict[int, bool] = {}
    for row in rows:
        circles[row.sample] = circles.get(row.sample, True) and row.score == 1

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    return Cell(
        task, length, len(rows), len(circles), round(mean(row.score == 1 for row in rows), 4),
        round(mean(row.score for row in rows), 4), round(sum(circles.values()) / len(circles), 4), TASKS[task].chance,
        round(mean(row.age for row in rows)), round(mean(row.state_bytes for row in rows)),
        round(mean(row.tape_bytes for row in rows)),
    )  # fmt: skip


def report(model: Model, rows: Sequence[Row], arguments: dict[str, Any], version: str) -> dict[str, Any]:
    """All that is needed to repeat a test and to look at it again, ready for JSON."""
    about = model.explain()
    return {
        "v": 1,
        "kind": "recall",
        "model": model.name,
        "fingerprint": model.fingerprint(),
        **{key: about[key] for key in ("blocks", "parameters", "dtype", "quant", "state", "kv", "state_dtype")},
        "arguments": arguments,
        "versions": {"fluvial": version, "torch": torch.__version__, "python": python_version()},
        "cells": [asdict(cell) for cell in cells(rows)],
        "rows": [asdict(row) for row in rows],
    }
