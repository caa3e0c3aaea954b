"""Learning curves as a picture: held-out accuracy during training, a panel per variant.

python -m examples.pebble.curves runs/delta --out examples/pebble/curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GROUPS = {
    "image": ("colour", "shape", "count", "count_by", "exists", "position", "describe", "number", "word", "size"),
    "video": ("first", "last", "moving", "direction", "flash_code", "video_count"),
    "text": ("recall@400", "passkey@1500", "copy@100"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, panels = plt.subplots(
        len(args.runs),
        len(GROUPS),
        figsize=(12, 3.4 * len(args.runs)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for row, run in zip(panels, args.runs, strict=True):
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        minutes = [entry["minutes"] for entry in log]
        for axes, (group, tasks) in zip(row, GROUPS.items(), strict=True):
            for task in tasks:
                axes.plot(minutes, [entry["held_out"].get(task, float("nan")) for entry in log], label=task)
            axes.set(title=f"{run.name}: {group}", xlabel="minutes", ylim=(0, 1.02))
            axes.legend(fontsize=7, frameon=False, ncols=2)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("held-out answers exactly right")
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
