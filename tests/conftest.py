"""What all tests share: one thread each (the test workers share the cores), the kernels, repeatable properties."""

from __future__ import annotations

import torch
from hypothesis import settings

from fluvial.adapters import chips

torch.set_num_threads(1)
chips.load()
settings.register_profile("fluvial", deadline=None, derandomize=True)
settings.load_profile("fluvial")
