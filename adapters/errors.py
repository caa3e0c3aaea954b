"""The errors a user meets: what happened, why, and what to do next.

Every room raises one of these for bad input; the command line turns `exit_code` into the process's exit status.
"""

from __future__ import annotations


class FluvialError(Exception):
    """What went wrong (`what`), the reason (`why`) and the next step (`hint`)."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__(" ".join(part for part in (what, why, hint) if part))


class UsageError(FluvialError):
    """The call itself is wrong: an empty prompt, an option out of range."""

    exit_code = 2


class ModelNotFoundError(FluvialError):
    """No model or plugin by that name or path."""

    exit_code = 3


class MediaError(FluvialError):
    """An image, a video or a live source that cannot be read."""

    exit_code = 4


class OutOfMemoryError(FluvialError):
    """A limit on memory (host, pixels, context) would be passed."""

    exit_code = 5


class IntegrityError(FluvialError):
    """A file is truncated, altered, or belongs to another model, plugin or format."""

    exit_code = 7


class UnsupportedError(FluvialError):
    """A feature that cannot apply here; never a silent no-op."""

    exit_code = 1
