"""Ways to draft: a file named after the method, with `start(model)`, the draft before the first token. It raises
`UnsupportedError` where the method cannot apply. Any other name is that of a smaller model with the same vocabulary.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import ModelNotFoundError
from fluvial.engine.draft import Draft
from fluvial.engine.model import Model


def methods() -> list[str]:
    """The methods by name; files that start with an underscore are none."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in names if not name.startswith("_"))


def drafting(name: str, model: Model, *, offline: bool = False) -> Draft:
    """The draft of that name for sessions with `model`, before the first token: a method, or a model as `load_model`
    takes it. Errors: those of `load_model`, and UnsupportedError for what does not fit this model."""
    if name in methods():
        module: Any = importlib.import_module(f"{__name__}.{name}")
        draft: Draft = module.start(model)
        return draft
    from fluvial.engine.drafts import _model

    try:
        return _model.start(model, name, offline=offline)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"There is no draft '{name}'.", str(error), f"Give a model, or one of {', '.join(methods())}."
        ) from error
