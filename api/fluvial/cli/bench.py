"""`fluvial bench`: what a model remembers of a long stream, and what the stream costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from fluvial import __version__
from fluvial.adapters.errors import UnsupportedError
from fluvial.cli.bench_options import Loading, counts, single
from fluvial.cli.console import answer, note, size, waiting
from fluvial.cli.models import table

if TYPE_CHECKING:
    from fluvial.engine.measure import Point
    from fluvial.engine.recall.report import Cell


def recall(
    models: Annotated[list[str], Argument(help="Bundled models, folders or hub names.")],
    loading: Loading,
    tasks: Annotated[
        str, Option("--tasks", metavar="NAMES", help="text, video, or names with commas; `list` shows them.")
    ] = "all",
    lengths: Annotated[str, Option("--lengths", metavar="N,N", help="Tokens of text: 1k,64k,1M.")] = "1k,4k",
    frames: Annotated[str, Option("--frames", metavar="N,N", help="Frames of video.")] = "16,64",
    samples: Annotated[int, Option("--samples", min=1, metavar="N", help="Streams for each task and length.")] = 8,
    seed: Annotated[int, Option("--seed", min=0, metavar="N", help="The same seed gives the same streams.")] = 0,
    max_tokens: Annotated[int, Option("--max-tokens", "-n", min=1, metavar="N", help="Of an answer.")] = 64,
) -> None:
    """Test what models remember of long streams.

    Facts are hidden in generated text and video, and asked for when they are
    old. `right` is the share of right answers; `circular` that of samples that
    are right whichever option is put first, beside what guessing gives.

    [dim]fluvial bench recall pebble pebble/transformer --lengths 1k,16k --plot recall.png
    fluvial bench recall my/model --tasks needle,mqar --lengths 64k --json recall.json[/]
    """
    texts, films = counts(lengths, "--lengths"), counts(frames, "--frames")
    loading.check()
    from fluvial.engine.model import load_model
    from fluvial.engine.recall.registry import TASKS, chosen
    from fluvial.engine.recall.report import cells, report
    from fluvial.engine.recall.run import run

    if tasks == "list":
        for line in table(("TASK", "WHAT IS ASKED"), ((task.name, task.about) for task in TASKS.values())):
            answer(line + "\n")
        return
    names = ["text", "video"] if tasks == "all" else [name.strip() for name in tasks.split(",")]
    wanted, found = chosen(names), []
    arguments = {
        "tasks": [task.name for task in wanted], "lengths": texts, "frames": films, "samples": samples, "seed": seed,
        "max_tokens": max_tokens,
    }  # fmt: skip
    for name in models:
        for kv in loading.kv or ["exact"]:
            with waiting(f"Loading {name}"):
                model = load_model(name, **loading.options(kv))
            seen = [task for task in wanted if tasks != "all" or not task.video or model.tower is not None]
            rows, head = [], ""
            for row in run(model, seen, texts, films, samples=samples, seed=seed, max_tokens=max_tokens):
                if head != (head := f"{model.name}: {row.task}, {row.length:,}"):
                    note(head)
                rows.append(row)
            found.append(report(model, rows, arguments, __version__))
            answer(f"{model.name} (rows: {found[-1]['kv']})\n")
            show_cells(cells(rows))
    loading.write({"v": 1, "kind": "recall", "reports": found})
    if loading.plot is not None:
        from fluvial.cli.plots import plot_recall

        plot_recall(found, loading.plot)


def memory(
    models: Annotated[list[str], Argument(help="Bundled models, folders, or a config.json: random weights.")],
    loading: Loading,
    tokens: Annotated[str, Option("--tokens", metavar="N", help="Length of the stream: 64k, 1M.")] = "16k",
    growing: Annotated[
        str | None, Option("--growing", metavar="N", help="At most so many where memory grows with the stream.")
    ] = None,
    frames: Annotated[str | None, Option("--frames", metavar="N", help="Then so many frames in a session.")] = None,
) -> None:
    """Measure memory and time as a stream gets longer.

    Bytes of state and of attention's rows, resident memory and processor time
    for a token, at every doubling.

    [dim]fluvial bench memory pebble pebble/transformer --tokens 64k --plot memory.png
    fluvial bench memory config.json --kv exact --kv window:1024[/]
    """
    (most,) = single(tokens, "--tokens")
    (bound,) = single(growing, "--growing") if growing is not None else (most,)
    films = single(frames, "--frames") if frames is not None else []
    loading.check()
    from fluvial.engine.measure import decoder_of, grows, over_frames, over_tokens

    found: list[dict[str, Any]] = []
    for name in models:
        for kv in loading.kv or ["exact"]:
            with waiting(f"Loading {name}"):
                try:
                    decoder, model = decoder_of(name, **loading.options(kv))
                except UnsupportedError:  # constant memory has one mode, and is measured once
                    if kv == "exact":
                        raise
                    if any(one["model"] == name for one in found):
                        continue
                    decoder, model = decoder_of(name, **loading.options("exact"))
            length = min(most, bound) if grows(decoder) else most
            label = name if decoder.kv == "exact" else f"{name} ({decoder.kv})"
            points = [_show(label, point) for point in over_tokens(decoder, length)]
            one = {"model": name, "kv": decoder.kv, "growing": grows(decoder), "over_tokens": list(map(asdict, points))}
            for count in films if model is not None and model.tower is not None else ():
                assert model is not None
                one["over_frames"] = [asdict(_show(label, point)) for point in over_frames(model, count)]
            found.append(one)
    import torch

    about = {"fluvial": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    loading.write({"v": 1, "kind": "memory", **about, "dtype": loading.dtype, "quant": loading.quant, "models": found})
    if loading.plot is not None:
        from fluvial.cli.plots import plot_memory

        plot_memory(found, loading.plot)


def show_cells(found: Iterable[Cell]) -> None:
    """A line for each task and length, on stdout."""
    head = ("TASK", "LENGTH", "AGE", "RIGHT", "CIRCULAR", "CHANCE", "ANSWERS", "STATE", "TAPE")
    rows: Sequence[tuple[str, ...]] = [
        (
            cell.task, f"{cell.length:,}", f"{cell.age:,}", f"{cell.right:.2f}", f"{cell.circular:.2f}",
            f"{cell.chance:.2f}", f"{cell.answers}", size(cell.state_bytes), size(cell.tape_bytes),
        )
        for cell in found
    ]  # fmt: skip
    for line in table(head, rows):
        answer(line + "\n")


def _show(label: str, point: Point) -> Point:
    frames = f"{point.frames:,} frames, " if point.frames else ""
    tape = f" + {size(point.tape_bytes)} of tape" if point.tape_bytes else ""
    answer(
        f"{label}: {frames}{point.tokens:,} tokens, {size(point.state_bytes)} of state{tape}, "
        f"{size(point.resident_bytes)} resident, {point.us_per_token:.0f} us a token\n"
    )
    return point
