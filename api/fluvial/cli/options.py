"""The options that `run` and `chat` share, and what they come to: media to push, settings of an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from fluvial.adapters.errors import UsageError
from fluvial.cli.plugins import weighted

if TYPE_CHECKING:
    from fluvial.engine.cache.config import Cache
    from fluvial.engine.media import Image, Video

_media = partial(Option, rich_help_panel="Media")
_sampling = partial(Option, rich_help_panel="Answer", show_default=False)
_talk = partial(Option, rich_help_panel="Conversation")

# What `/set` knows, with the type of its value; the options are spelled the same.
SETTINGS: dict[str, type] = {
    "max-tokens": int,
    "temp": float,
    "top-p": float,
    "top-k": int,
    "min-p": float,
    "repeat-penalty": float,
    "seed": int,
    "stop": str,
    "fps": float,
    "max-frames": int,
    "frames": int,
    "max-pixels": int,
}


@dataclass(frozen=True)
class Options:
    """As given on the command line; `/set` in a chat makes a changed copy."""

    image: Annotated[list[str] | None, _media("--image", "-i", metavar="FILE", help="An image; repeatable.")] = None
    video: Annotated[
        list[str] | None, _media("--video", "-v", metavar="FILE", help="A video or an animation; repeatable.")
    ] = None
    fps: Annotated[
        float | None, _media("--fps", metavar="RATE", help="Frames a second to look at (default: the model's rate).")
    ] = None
    max_frames: Annotated[
        int | None, _media("--max-frames", min=1, metavar="N", help="At most so many frames of each video.")
    ] = None
    frames: Annotated[
        int | None, _media("--frames", min=1, metavar="N", help="So many frames, spread evenly, instead of --fps.")
    ] = None
    max_pixels: Annotated[
        int | None, _media("--max-pixels", min=1, metavar="N", help="Refuse larger images (default: 64 million).")
    ] = None

    max_tokens: Annotated[
        int, _sampling("--max-tokens", "-n", min=1, metavar="N", help="The answer's greatest length (256).")
    ] = 256
    temp: Annotated[
        float | None,
        _sampling("--temp", metavar="T", help="Temperature; 0 is greedy (default: the model's, or 0)."),
    ] = None
    top_p: Annotated[float | None, _sampling("--top-p", metavar="P", help="The likeliest tokens with that mass.")] = (
        None
    )
    top_k: Annotated[int | None, _sampling("--top-k", metavar="K", help="The K likeliest tokens.")] = None
    min_p: Annotated[
        float | None,
        _sampling("--min-p", metavar="P", help="Tokens with at least that share of the likeliest's probability."),
    ] = None
    repeat_penalty: Annotated[
        float | None, _sampling("--repeat-penalty", metavar="X", help="Above 1, repeats become less likely.")
    ] = None
    seed: Annotated[int | None, _sampling("--seed", metavar="N", help="The same seed gives the same answer.")] = None
    stop: Annotated[list[str] | None, _sampling("--stop", metavar="TEXT", help="End before this text; repeatable.")] = (
        None
    )

    system: Annotated[str | None, _talk("--system", "-s", metavar="TEXT", help="The system prompt.")] = None
    state: Annotated[Path | None, _talk("--state", metavar="FILE", help="Go on from a saved conversation.")] = None
    save_state: Annotated[Path | None, _talk("--save-state", metavar="FILE", help="Save it at the end.")] = None
    plugin: Annotated[
        list[str] | None,
        _talk("--plugin", metavar="PATH[=WEIGHT]", help="A LoRA (PEFT) or state plugin; several are blended."),
    ] = None
    draft: Annotated[
        str | None,
        _talk(
            "--draft",
            metavar="NAME",
            help="Guess ahead, for speed: ngram, head, mtp, or a smaller model with the same tokens.",
        ),
    ] = None
    dtype: Annotated[
        str | None, _talk("--dtype", metavar="NAME", help="Compute in fp32 (the default), bf16, fp16 or fp64.")
    ] = None
    quant: Annotated[
        str | None,
        _talk(
            "--quant",
            metavar="RECIPE",
            help="Store the weights as int8, int4, int4-small (-a8 behind: long prompts sooner), bf16 or fp16.",
        ),
    ] = None
    state_dtype: Annotated[
        str, _talk("--state-dtype", metavar="NAME", help="Keep recurrent memories in fp32, bf16 or int8.")
    ] = "fp32"
    cache: Annotated[
        str | None,
        _talk("--cache", metavar="SIZE", help="Keep shared beginnings of conversations in so much memory, like 1GB."),
    ] = None
    cache_disk: Annotated[
        Path | None, _talk("--cache-disk", metavar="FOLDER", help="Keep them in a folder too, for the next runs.")
    ] = None
    kv: Annotated[
        str, _talk("--kv", metavar="MODE", help="Keep attention's rows exact, in int8, or window:N, the last N.")
    ] = "exact"
    offline: Annotated[bool, _talk("--offline", help="A hub name (org/name) comes from the cache only.")] = False
    stats: Annotated[bool, Option("--stats", help="Tokens, speed and memory, on stderr.", rich_help_panel="Output")] = (
        False
    )

    def check(self, *, all_media: bool) -> None:
        """Refuses what cannot be meant, before anything heavy happens; `all_media`: none will come later."""
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"--fps is {self.fps}.", "It must be a positive number.")
        if self.fps is not None and self.frames is not None:
            raise UsageError("--fps and --frames are both given.", "They are two ways to choose frames.", "Give one.")
        if all_media and not self.video:
            idle = [name for name in ("fps", "frames", "max_frames") if getattr(self, name) is not None]
            if idle:
                raise UsageError(f"--{idle[0].replace('_', '-')} is for videos, and there is none.", "", "Add -v FILE.")
        if all_media and not self.image and self.max_pixels is not None:
            raise UsageError("--max-pixels is for images, and there is none.", "", "Add -i FILE.")
        if self.state is not None and self.system is not None:
            raise UsageError(
                "--state and --system are both given.", "A saved conversation has its own system prompt.", "Give one."
            )
        if self.state is not None and not self.state.expanduser().is_file():
            raise UsageError(f"--state: there is no file {self.state}.", "", "Check the path.")
        if self.save_state is not None and not self.save_state.expanduser().absolute().parent.is_dir():
            raise UsageError(
                f"--save-state: there is no folder {self.save_state.expanduser().absolute().parent}.",
                "",
                "Make it first, or choose another.",
            )
        for spec in self.plugin or ():
            weighted(spec)
        for kind, paths in (("image", self.image), ("video", self.video)):
            if paths:
                from fluvial.encoders.source import local

                for path in paths:
                    local(path, kind)

    def sampling(self) -> dict[str, Any]:
        """The keyword arguments of `Session.ask`; raises `UsageError` for a value out of range."""
        from fluvial.engine.sampling import SamplingParams

        said = {
            "temperature": self.temp,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repeat_penalty,
            "seed": self.seed,
        }
        given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        SamplingParams(**given)  # refuses what is out of range before the model loads
        return given | {"max_tokens": self.max_tokens, "stop": self.stop or ()}

    def state_cache(self) -> Cache | None:
        """The cache of `load`, if one is asked for."""
        if self.cache is None and self.cache_disk is None:
            return None
        from fluvial.engine.cache.config import Cache

        return Cache(self.cache or Cache.ram, disk=self.cache_disk)

    def image_at(self, path: str) -> Image:
        from fluvial.engine.media import Image

        return Image(path) if self.max_pixels is None else Image(path, self.max_pixels)

    def video_at(self, path: str) -> Video:
        from fluvial.engine.media import Video

        return Video(path, fps=self.fps, frames=self.frames, max_frames=self.max_frames)

    def media(self) -> list[Image | Video]:
        """Images first, then videos, each in the order given."""
        return [*map(self.image_at, self.image or ()), *map(self.video_at, self.video or ())]

    def setting(self, name: str) -> Any:
        return getattr(self, name.replace("-", "_"))

    def with_setting(self, name: str, text: str) -> Options:
        """A copy with the setting changed to what the text says; "off" goes back to the default."""
        if name not in SETTINGS:
            raise UsageError(f"There is no setting '{name}'.", "", f"Settings: {', '.join(SETTINGS)}.")
        field = name.replace("-", "_")
        if text == "off":
            return replace(self, **{field: getattr(Options, field)})
        try:
            value: Any = SETTINGS[name](text)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}[SETTINGS[name]]
            raise UsageError(f"{name} is '{text}'.", f"It must be {kind}.", "`off` takes the default.") from None
        if SETTINGS[name] is int and name not in ("top-k", "seed") and value < 1:
            raise UsageError(f"{name} is {value}.", "It must be at least 1.", "`off` takes the default.")
        changes: dict[str, Any] = {field: [value] if name == "stop" else value}
        changed = replace(self, **changes)
        changed.check(all_media=False)
        changed.sampling()
        return changed
