"""Storage formats of a weight matrix: how `Linear` keeps it. A file per format; `pack`/`unpack` alone make one run."""

from fluvial.adapters.formats import int4, int8  # noqa: F401  (they register)
from fluvial.adapters.formats.base import Format, by_name, register
from fluvial.adapters.formats.dense import DENSE

__all__ = ["DENSE", "Format", "by_name", "register"]
