"""Dense labels for encoder pre-training: what stands in each cell of a grid over the picture.

Shape classes: 0 nothing, 1-5 the shapes, 6-15 the digits, 16-41 the capitals. Colour classes: 0 nothing, 1-8.
"""

from __future__ import annotations

import numpy as np

from .scene import AREA, COLOURS, SHAPES, Sample

SHAPE_CLASSES = ("nothing", *SHAPES, *"0123456789", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
COLOUR_CLASSES = ("nothing", *COLOURS)


def dense_labels(sample: Sample, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Two int64 [grid, grid]: a cell belongs to the thing whose centre lies in it, else to what covers most of it.

    Of two centres in one cell the one nearer to the cell's middle wins. Raises ValueError for a sample without image.
    """
    if sample.image is None:
        raise ValueError("dense labels belong to images; this sample has none")
    shape, colour = np.zeros((grid, grid), np.int64), np.zeros((grid, grid), np.int64)
    fine = 4  # points per cell side where coverage is tested
    at = (np.arange(grid * fine) + 0.5) / (grid * fine)
    for o in sample.objects:
        inside = (at[None] - o.x) ** 2 + (at[:, None] - o.y) ** 2 < o.r**2 * AREA[o.shape] / np.pi
        covered = inside.reshape(grid, fine, grid, fine).mean((1, 3)) > 0.5
        shape[covered], colour[covered] = SHAPE_CLASSES.index(o.shape), COLOUR_CLASSES.index(o.colour)
    nearest = np.full((grid, grid), np.inf)
    for o in (*sample.objects, *sample.glyphs):
        column, row = min(int(o.x * grid), grid - 1), min(int(o.y * grid), grid - 1)
        distance = (o.x * grid - column - 0.5) ** 2 + (o.y * grid - row - 0.5) ** 2
        if distance < nearest[row, column]:
            nearest[row, column] = distance
            shape[row, column], colour[row, column] = SHAPE_CLASSES.index(o.shape), COLOUR_CLASSES.index(o.colour)
    return shape, colour
