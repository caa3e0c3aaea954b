"""LFM2-VL against Transformers: what it sees of a picture, the words around it, features, logits, a conversation.

The published processor takes no videos: ours shows the frames as uncut images, which it takes in a row.
"""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.encoders import towers
from fluvial.encoders.frame import Frame
from fluvial.encoders.lfm2_pixels import Tiling, cut, views
from fluvial.encoders.siglip import patches
from fluvial.engine.loading import load_parts
from fluvial.engine.media import Image, Video
from fluvial.engine.model import load_model
from fluvial.engine.session import Session
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.media.media_files import animation
from tests.parity import lfm2_published as published
from tests.parity.reference import GREEDY, TOLERANCE, check_family, error, splits
from tests.parity.test_qwen3_5 import picture

BYTE = 2 / 255  # a step of a byte in pixels of -1..1
SHAPES = [(1, 1), (3, 200), (31, 33), (100, 70), (300, 420), (512, 512), (720, 740), (640, 832), (1080, 1920)]
SHAPES += [(2000, 700), (5000, 400), (33, 8000)]
TILINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "whole": {"do_image_splitting": False},
    "small": {**published.SMALL, "use_thumbnail": False},
    "one": {"min_tiles": 1, "max_tiles": 1},
    "odd": {"min_image_tokens": 1, "max_image_tokens": 3, "max_pixels_tolerance": 1.3, "min_tiles": 3, "tile_size": 32},
}


# --- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels(shape):
    """The same sizes and patches. Pillow resizes for the reference, and never differs by more than a step of a byte."""
    frame, tiling = picture(*shape, 3), Tiling(16, 2)
    wanted, plan = published.seen([frame]), cut(*shape, tiling)
    assert [plan.rows, plan.columns] == [wanted["image_rows"], wanted["image_cols"]]
    ours = [rows for view in views(frame, plan, tiling) for rows in patches(view, 16)]
    assert [len(rows) for rows in ours] == wanted["pixel_attention_mask"].sum(1).tolist()
    off = [(a - b[: len(a)]).abs().max() for a, b in zip(ours, wanted["pixel_values"], strict=True)]
    assert max(off) <= BYTE + 1e-6


@pytest.mark.parametrize("name", TILINGS)
def test_sizes_of_any_picture(name):
    reference, tiling = published.image_processor(**TILINGS[name]), Tiling.read(TILINGS[name], 16, 2)
    limits = {key: getattr(reference, key) for key in ("downsample_factor", "encoder_patch_size", "max_image_tokens")}
    smart = limits | {"min_image_tokens": reference.min_image_tokens}
    sides = np.exp(np.random.default_rng(4).uniform(0, np.log(5000), (400, 2))).astype(int).tolist()
    for height, width in [*sides, *((n, n) for n in range(1, 1500, 37)), (16, 24), (1024, 1280), (640, 512)]:
        whole = reference.smart_resize(height, width, **smart)[::-1]
        grid = (1, 1)
        large = {"max_pixels_tolerance": reference.max_pixels_tolerance} | limits
        if tiling.tiles != (1, 1) and reference._is_image_too_large(height, width, **large):
            columns, rows, *_ = reference._get_grid_layout(height, width, *tiling.tiles, tiling.side)
            grid = (rows, columns)
        seen_whole = grid == (1, 1) or tiling.thumbnail
        if seen_whole and whole[0] * whole[1] > 256 * reference.max_num_patches:  # more than it has room for
            with pytest.raises(UsageError, match="strip"):
                cut(height, width, tiling)
            continue
        plan = cut(height, width, tiling)
        assert (plan.rows, plan.columns, plan.whole) == (*grid, whole), (height, width)


def test_a_strip_is_refused_only_if_it_is_seen_whole():
    with pytest.raises(UsageError, match=r"takes \d+ tokens; at most 256"):
        cut(10, 9000, Tiling(16, 2))
    with pytest.raises(UsageError, match="strip"):
        cut(40, 20000, Tiling(16, 2))
    assert cut(40, 20000, Tiling(16, 2, thumbnail=False)).tiles == 10


def test_tilings_of_either_processor_file():
    nested = {"image_processor": {"max_tiles": 4, "resample": 3, "do_convert_rgb": None}, "use_thumbnail": False}
    assert Tiling.read(nested, 16, 2) == Tiling(16, 2, tiles=(2, 4), thumbnail=False, resample="bicubic")
    for odd in ({"encoder_patch_size": 14}, {"resample": 1}, {"do_rescale": False}, {"rescale_factor": 1.0}):
        with pytest.raises(UnsupportedError, match=next(iter(odd))):
            Tiling.read({"image_processor": odd}, 16, 2)
    for damaged in ({"tile_size": 500}, {"min_tiles": 5, "max_tiles": 4}, {"max_image_tokens": 0}, {"image_mean": []}):
        with pytest.raises(ValueError, match=r"\d"):
            Tiling.read(damaged, 16, 2)


# --- the tower ----------------------------------------------------------------------------------------------------


class Seen:
    """A random LFM2-VL, and the same folder loaded."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.reference, self.folder = published.make(folder, **options), folder
        self.parts, self.tokenizer = load_parts(folder), published.tokenizer()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("lfm2") / "lfm2_vl")


PLAIN: dict[str, Any] = {"projector_use_layernorm": False, "projector_bias": False, "tie_word_embeddings": False}
PLAIN |= {"projector_hidden_act": "gelu_pytorch_tanh", "vision": {"num_patches": 4, "hidden_act": "gelu"}}


def test_text_beside_a_tower(seen):
    check_family(seen.reference, seen.folder)


def features(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    names = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    with torch.no_grad():
        found = model.model.get_image_features(**{name: inputs[name] for name in names}).pooler_output
    return [rows.float() for rows in found]


VIEWED = [picture(*shape, 1) for shape in ((1, 1), (30, 44), (64, 64), (100, 150), (400, 61), (20, 300))]


@pytest.mark.parametrize("frame", VIEWED, ids=lambda frame: f"{frame.height}x{frame.width}")
def test_vision_features(seen, frame):
    wanted = features(seen.reference, published.processed("<image>", [frame]))
    ours = seen.parts.tower.encode([frame], video=False)
    assert [len(rows) for rows in ours] == [len(rows) for rows in wanted]
    assert sum(map(len, ours)) <= seen.parts.tower.tokens(False)
    off = error(torch.cat(ours), torch.cat(wanted))
    print(f"parity  lfm2_vl vision          {frame.height}x{frame.width} in {len(ours)} views {off:.1e}")
    assert off <= TOLERANCE


def test_vision_features_in_bf16(seen):
    inputs = published.processed("<image>" * len(VIEWED), VIEWED)
    low, ours = copy.deepcopy(seen.reference).bfloat16(), load_parts(seen.folder, torch.bfloat16).tower
    truth, theirs = (torch.cat(features(model, inputs)) for model in (seen.reference, low))
    ratio = (torch.cat(ours.encode(VIEWED, video=False)) - truth).norm() / (theirs - truth).norm()
    print(f"parity  lfm2_vl vision          bf16 {ratio:.2f}x")
    assert ratio <= 1.25


def test_the_plain_projector_and_a_small_table(tmp_path):
    seen, frame = Seen(tmp_path / "plain", **PLAIN), picture(100, 150, 1)
    wanted = torch.cat(features(seen.reference, published.processed("<image>", [frame])))
    assert error(torch.cat(seen.parts.tower.encode([frame], video=False)), wanted) <= TOLERANCE
    check_family(seen.reference, seen.folder, bf16=False)


# --- media in the stream ------------------------------------------------------------------------------------------

CLIP = [picture(70, 110, 50 + i, t=i / 2) for i in range(3)]
ONE, MANY, TINY, LONG = picture(60, 80, 1), picture(100, 150, 2), picture(2, 3, 3), picture(20, 300, 4)
Piece = str | tuple[list[Frame], bool]  # text, or frames and whether they are a video
TURNS: dict[str, list[Piece]] = {
    "one view": ["look: ", ([ONE], False), " what is it?"],
    "tiles": ["look: ", ([MANY], False), " what is it?"],
    "tiny and long": ["first ", ([TINY], False), ([LONG], False), " then?"],
    "two images": ["first ", ([MANY], False), "\nthen ", ([ONE], False), " what changed?"],
    "video": ["watch: ", (CLIP, True), " what happens?"],
}


class Fed:
    """A turn as our steps (embeddings [T, D]), as ids, and as the reference's inputs."""

    def __init__(self, seen: Seen, turn: list[Piece], **options: Any) -> None:
        decoder, tower, image = seen.parts.decoder, seen.parts.tower, seen.tokenizer.token_to_id(published.IMAGE)
        self.steps: list[Tensor] = []
        ids: list[int] = []

        def text(words: str) -> None:
            more = seen.tokenizer.encode(words, add_special_tokens=False).ids
            ids.extend(more)
            self.steps.append(decoder.embed(torch.tensor(more, dtype=torch.long)))

        said, frames = "", []
        for piece in turn:
            if isinstance(piece, str):
                said += piece
                text(piece)
                continue
            said += published.IMAGE * len(piece[0])
            frames += piece[0]
            options |= {"do_image_splitting": False} if piece[1] else {}
            encoded, layouts = (call(piece[0], video=piece[1]) for call in (tower.encode, tower.layout))
            for step, layout in zip(encoded, layouts, strict=True):
                text("".join(layout.before))
                ids.extend([image] * len(step))
                self.steps.append(step)
                text("".join(layout.after))
        self.inputs, self.ids = published.processed(said, frames, **options), torch.tensor([ids])

    def run(self, decoder: Decoder, cuts: list[int]) -> tuple[Tensor, State | None]:
        """Chunks between the cuts -> logits [T, vocab], the state."""
        x, state, outputs = torch.cat(self.steps)[None], None, []
        for a, b in pairwise(cuts):
            hidden, state = decoder(x[:, a:b], state)
            outputs.append(decoder.logits(hidden[0]))
        return torch.cat(outputs), state


@pytest.mark.parametrize("name", TURNS)
@torch.no_grad()
def test_media_turns(seen, name):
    decoder, fed = seen.parts.decoder, Fed(seen, TURNS[name])
    assert torch.equal(fed.ids, fed.inputs["input_ids"])
    wanted, count = seen.reference(**fed.inputs).logits[0], fed.ids.shape[1]
    anywhere = [0, *np.cumsum(splits(count, 4)).tolist()]
    runs = {"one-shot": [0, count], "split": anywhere, "step": list(range(count + 1))}
    off = {key: error(fed.run(decoder, cuts)[0], wanted) for key, cuts in runs.items()}
    logits, state = fed.run(decoder, [0, count])
    inputs, said = dict(fed.inputs), []
    for _ in range(GREEDY):
        said.append(int(logits[-1].argmax()))
        theirs = seen.reference(**inputs).logits[0, -1].argmax()
        assert said[-1] == theirs
        inputs["input_ids"] = torch.cat([inputs["input_ids"], theirs.view(1, 1)], 1)
        hidden, state = decoder(decoder.embed(torch.tensor([said[-1:]])), state)
        logits = decoder.logits(hidden[0])
    print(f"parity  lfm2_vl {name:15} " + "  ".join(f"{key} {value:.1e}" for key, value in off.items()))
    assert max(off.values()) <= TOLERANCE


@torch.no_grad()
def test_media_turns_in_bf16(seen):
    low, turn = copy.deepcopy(seen.reference).bfloat16(), TURNS["two images"]
    ours = Seen.__new__(Seen)
    ours.parts, ours.tokenizer = load_parts(seen.folder, torch.bfloat16), seen.tokenizer
    fed = Fed(ours, turn)
    truth, theirs = seen.reference(**fed.inputs).logits[0], low(**fed.inputs).logits[0].float()
    mine = fed.run(ours.parts.decoder, [0, fed.ids.shape[1]])[0].float()
    ratio = (mine - truth).norm() / (theirs - truth).norm()
    print(f"parity  lfm2_vl two images      bf16 {ratio:.2f}x")
    assert ratio <= 1.25


@pytest.mark.parametrize("options", [{"use_thumbnail": False}, {"use_image_special_tokens": False}])
def test_words_around_tiles(seen, options, tmp_path):
    ours = Seen.__new__(Seen)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(seen.folder / name)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": published.SMALL, **options}))
    ours.parts, ours.tokenizer = load_parts(tmp_path), seen.tokenizer
    marks = options.pop("use_image_special_tokens", True)
    fed = Fed(ours, TURNS["two images"], **options)
    wanted, drop = fed.inputs["input_ids"], {seen.tokenizer.token_to_id(mark) for mark in published.MARKS}
    assert fed.ids.tolist() == [[id for id in wanted[0].tolist() if marks or id not in drop]]


@torch.no_grad()
def test_a_conversation(seen, tmp_path):
    model, clip = load_model(seen.folder), tmp_path / "clip.webp"
    clip.write_bytes(animation("WEBP", [frame.rgb for frame in CLIP], [500] * 3, lossless=True))
    session = Session(model)
    session.push("Look here.")
    session.push(Image(MANY.rgb))
    said = [event.id for event in session.ask("What is it?", max_tokens=5) if getattr(event, "id", -1) >= 0]
    assert session.push(Video(clip, fps=2)).frames == 3
    session.save(tmp_path / "talk.session")
    session = Session.load(model, tmp_path / "talk.session")
    session.push(ONE)  # as from a live source
    before = "<|startoftext|><|im_start|>user\nLook here.\n<image>What is it?<|im_end|>\n<|im_start|>assistant\n"
    split, whole = published.processed(before, [MANY]), {"do_image_splitting": False}
    after = published.processed("<|im_end|>\n<|im_start|>user\n<image><image><image><image>", [*CLIP, ONE], **whole)
    inputs = {name: torch.cat([split[name], after[name]]) for name in split if name != "input_ids"}
    ids = torch.cat([split["input_ids"], torch.tensor([said]), after["input_ids"]], 1)
    assert session.position == ids.shape[1]
    off = error(session._now.feed.logits, seen.reference(ids, **inputs).logits[0, -1])
    print(f"parity  lfm2_vl conversation    {off:.1e}")
    assert off <= TOLERANCE


def test_what_cannot_be_seen_leaves_the_session_as_it_was(seen):
    session = Session(load_model(seen.folder))
    session.push("Look here.")
    before = session.position
    with pytest.raises(UsageError, match="Cut it into pieces"):
        session.push(Image(np.zeros((2, 4000, 3), np.uint8)))
    assert session.position == before
    with pytest.raises(UsageError, match="No frames"):
        seen.parts.tower.encode([], video=False)


# --- checkpoints --------------------------------------------------------------------------------------------------


def config_of(seen: Seen) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((seen.folder / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "num_channels", 1),
        ("vision_config", "patch_size", [16, 16]),
        ("", "projector_hidden_act", "silu"),
        ("", "vision_feature_layer", -2),
    ],
)
def test_a_tower_that_is_not_implemented_is_named(seen, part, option, value):
    config = config_of(seen)
    (config[part] if part else config)[option] = value
    with pytest.raises(UnsupportedError, match=option):
        towers.build(config)


def test_a_decoder_that_is_not_implemented_is_named(seen):
    config = config_of(seen)
    config["text_config"]["model_type"] = "lfm2_moe"
    with pytest.raises(UnsupportedError, match="lfm2_moe"):
        checkpoints.family("lfm2_vl").decoder_config(config)


def saved(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], processor: Any = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps(processor or {}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_older_names_and_weights_without_a_use(seen, tmp_path):
    """As first released: another model_type, `vision_model` in names; a pooling head and a norm that are not used."""
    tensors = load_file(seen.folder / "model.safetensors")
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in tensors.items()}
    older["model.vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 48)
    config = config_of(seen) | {"model_type": "lfm2-vl"}
    again = load_parts(saved(tmp_path, config, older, {"image_processor": published.SMALL}))
    assert again.config["model_type"] == "lfm2_vl"
    ours, wanted = (parts.tower.encode([ONE], video=False)[0] for parts in (again, seen.parts))
    assert torch.equal(ours, wanted)
    assert load_parts(saved(tmp_path, config | {"projector_use_layernorm": False}, older)).tower.norm is None


def test_odd_tensors_and_damaged_numbers_are_named(seen, tmp_path):
    tensors, config = load_file(seen.folder / "model.safetensors"), config_of(seen)
    tower, language = "model.vision_tower.encoder.layers.0", "model.language_model.layers.0"
    for odd in (f"{tower}.mlp.fc3.weight", f"{language}.conv.extra.weight", "model.layers.0.ffn_norm.weight"):
        with pytest.raises(IntegrityError, match=odd.replace(".", r"\.")):
            load_parts(saved(tmp_path, config, tensors | {odd: torch.zeros(8)}))
    lacking = {name: value for name, value in tensors.items() if name != "model.multi_modal_projector.layer_norm.bias"}
    with pytest.raises(IntegrityError, match=r"vision\.norm\.shift"):
        load_parts(saved(tmp_path, config, lacking))
    for key, value in (("num_patches", 26), ("num_attention_heads", 5), ("hidden_size", None)):
        damaged = config | {"vision_config": {**config["vision_config"], key: value}}
        with pytest.raises(IntegrityError, match="does not describe"):
            load_parts(saved(tmp_path, damaged, tensors))
    with pytest.raises(IntegrityError, match="does not describe"):
        load_parts(saved(tmp_path, config, tensors, {"tile_size": "large"}))
