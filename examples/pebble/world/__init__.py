"""The procedural world that trains and evaluates pebble: pictures, videos and texts with questions and true answers.

Everything comes from the numpy generator handed in: same state, same pixels, same words. No files, no downloads.
"""

from .chat import chat_sample
from .corpus import corpus
from .filler import FILLER_KINDS, HELD_OUT_FILLER, filler
from .images import IMAGE_TASKS, image_sample
from .labels import COLOUR_CLASSES, SHAPE_CLASSES, dense_labels
from .phrasings import PHRASINGS, ask
from .scene import CELLS, COLOURS, QA, SHAPES, Object, Sample, Track
from .texts import TEXT_TASKS, text_sample
from .videos import VIDEO_TASKS, video_sample

__all__ = [
    "CELLS",
    "COLOURS",
    "COLOUR_CLASSES",
    "FILLER_KINDS",
    "HELD_OUT_FILLER",
    "IMAGE_TASKS",
    "PHRASINGS",
    "QA",
    "SHAPES",
    "SHAPE_CLASSES",
    "TEXT_TASKS",
    "VIDEO_TASKS",
    "Object",
    "Sample",
    "Track",
    "ask",
    "chat_sample",
    "corpus",
    "dense_labels",
    "filler",
    "image_sample",
    "text_sample",
    "video_sample",
]
