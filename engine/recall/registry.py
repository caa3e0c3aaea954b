"""All tasks by name. A further one is a generator in a file of its own, named here."""

from __future__ import annotations

from collections.abc import Sequence

from fluvial.adapters.errors import UsageError
from fluvial.engine.recall import association, needles, states, tracking, video, words
from fluvial.engine.recall.task import Task

ALL = (*needles.TASKS, *tracking.TASKS, *words.TASKS, *association.TASKS, *states.TASKS, *video.TASKS)
TASKS = {task.name: task for task in ALL}


def chosen(names: Sequence[str]) -> list[Task]:
    """The tasks with these names; "text" and "video" name all of a kind. Errors: UsageError that lists them."""
    found: dict[str, Task] = {}
    for name in names:
        group = [task for task in ALL if name in (task.name, "video" if task.video else "text")]
        if not group:
            raise UsageError(f"There is no task '{name}'.", hint=f"Tasks: text, video, {', '.join(TASKS)}.")
        found |= {task.name: task for task in group}
    return list(found.values())
