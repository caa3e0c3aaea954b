"""Contact sheets to look at: `python -m examples.pebble.world.preview --out sheet.png --kind image --level 1`."""

from __future__ import annotations

import argparse
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import image_sample, text_sample, video_sample

ZOOM = 2


def _caption(sheet: Image.Image, at: tuple[int, int], lines: list[str], width: int) -> None:
    font = ImageFont.load_default(size=13)
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, width))
    ImageDraw.Draw(sheet).multiline_text(at, text, fill=(0, 0, 0), font=font, spacing=2)


def image_sheet(
    seed: int, level: float, columns: int = 5, rows: int = 4, tasks: list[str] | None = None
) -> Image.Image:
    side, text = 128 * ZOOM, 150
    sheet = Image.new("RGB", (columns * (side + 12), rows * (side + text)), "white")
    for i in range(columns * rows):
        sample = image_sample(np.random.default_rng((seed, i)), level, tasks=tasks)
        assert sample.image is not None
        x, y = (i % columns) * (side + 12), (i // columns) * (side + text)
        sheet.paste(Image.fromarray(sample.image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        _caption(sheet, (x + 2, y + side + 3), [f"{q.question} {q.answer}" for q in sample.qa], 44)
    return sheet


def video_sheet(seed: int, level: float, rows: int = 10, tasks: list[str] | None = None) -> Image.Image:
    side, frames = 128, 8
    sheet = Image.new("RGB", (frames * (side + 3) + 330, rows * (side + 6)), "white")
    for i in range(rows):
        sample = video_sample(np.random.default_rng((seed, i)), level, frames=frames, tasks=tasks)
        assert sample.frames is not None
        for f, frame in enumerate(sample.frames):
            sheet.paste(Image.fromarray(frame), (f * (side + 3) + 3 * (f // 2), i * (side + 6)))
        lines = [f"{q.question} {q.answer}" for q in sample.qa]
        _caption(sheet, (frames * (side + 3) + 20, i * (side + 6) + 4), lines, 46)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="world.png")
    parser.add_argument("--kind", choices=("image", "video", "text"), default="image")
    parser.add_argument("--level", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="*")
    args = parser.parse_args()
    if args.kind == "text":
        for i in range(8):
            sample = text_sample(np.random.default_rng((args.seed, i)), args.level, 300, tasks=args.tasks)
            print(sample.text, *(f"  {q.question!r} -> {q.answer!r}" for q in sample.qa), "-" * 60, sep="\n")
        return
    sheet = (image_sheet if args.kind == "image" else video_sheet)(args.seed, args.level, tasks=args.tasks)
    sheet.save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
