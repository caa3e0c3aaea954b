"""Qwen3.5 and Qwen3-Next against Transformers: text, pictures, videos, and positions on three axes."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.encoders import qwen_vision, towers
from fluvial.encoders.frame import Frame
from fluvial.encoders.qwen_pixels import Limits, fitted, patches, pixels
from fluvial.engine.loading import load_parts
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.parity.reference import TOLERANCE, check_family, error, perturbed, splits

IMAGE, VIDEO, START, END, VOCAB = 190, 191, 192, 193, 200
ROPE = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
MROPE = {**ROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 48,
    "num_heads": 3,
    "intermediate_size": 80,
    "out_hidden_size": 64,
    "num_position_embeddings": 49,
}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_text": ("Qwen3_5", {"tie_word_embeddings": True, "num_hidden_layers": 8}),
    "qwen3_5-biases": ("Qwen3_5", {"attention_bias": True, "rope_parameters": MROPE, "rms_norm_eps": 1e-3}),
    "qwen3_5-yarn": (
        "Qwen3_5",
        {"rope_parameters": {**MROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "qwen3_5-order": (
        "Qwen3_5",
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "linear_attention", "full_attention"]},
    ),
    "qwen3_next": ("Qwen3Next", {"num_experts": 0, "linear_conv_kernel_dim": 3}),
}


@pytest.fixture(scope="module", params=TEXTS)
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    import transformers

    kind, options = TEXTS[request.param]
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}{'' if kind == 'Qwen3Next' else 'Text'}Config")(**{**TEXT, **options})
    model = perturbed(getattr(transformers, f"{kind}ForCausalLM")(config))
    folder = tmp_path_factory.mktemp("qwen") / request.param
    model.save_pretrained(folder)
    return model, folder


def test_text(text):
    check_family(*text)


class Seen:
    """A random Qwen3.5 with its vision tower, and the same folder loaded."""

    def __init__(self, folder: Path) -> None:
        import transformers

        torch.manual_seed(8)
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
        config = transformers.Qwen3_5Config(
            text_config={**TEXT, "rope_parameters": MROPE},
            vision_config=VISION,
            vision_end_token_id=END,
            tie_word_embeddings=True,
            **ids,
        )
        self.reference: Any = perturbed(transformers.Qwen3_5ForConditionalGeneration(config))
        self.reference.save_pretrained(folder)
        self.folder, self.parts = folder, load_parts(folder)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("qwen") / "qwen3_5")


def test_text_beside_a_tower(seen):
    check_family(seen.reference, seen.folder)


# --- pixels -------------------------------------------------------------------------------------------------------


def picture(height: int, width: int, seed: int, t: float = 0.0) -> Frame:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Frame(np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width]), t)


def smooth(height: int, width: int) -> Frame:
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(rows / (9 + 4 * c) + columns / (17 - 3 * c)) for c in range(3)]
    return Frame(np.stack(waves, -1).astype(np.uint8))


def clip(count: int, height: int = 70, width: int = 110) -> list[Frame]:
    return [picture(height, width, 50 + i, t=i / 2) for i in range(count)]


SHAPES = [(1, 1), (3, 200), (31, 33), (48, 80), (100, 70), (255, 257), (300, 420), (1080, 1920), (5000, 4000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes(shape):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_resize

    limits = Limits()
    assert fitted(*shape, 32, limits.image) == smart_resize(*shape, 32, *limits.image)
    for frames in (2, 3, 5, 16, 17, 768):
        wanted = video_resize(frames, *shape, 2, 32, *limits.video)
        assert fitted(*shape, 32, limits.video, frames) == wanted


def test_a_picture_that_is_all_length_is_refused():
    with pytest.raises(UsageError, match="200 times"):
        fitted(2, 402, 32, Limits().image)


@pytest.mark.parametrize(("shape", "closeness"), [((288, 416), 1e-6), ((300, 420), 4 / 255 + 1e-6)])
def test_pixels_and_patches_are_the_published_ones(shape, closeness):
    """Where nothing is resized the same numbers. Else Pillow's bicubic, for want of torchvision, whose bytes are ours:
    the two agree within two steps of a byte where a picture has no hard edges to overshoot at."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frame, limits = smooth(*shape) if closeness > 1e-3 else picture(*shape, 3), Limits()
    size = fitted(*shape, 32, limits.image)
    options = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": limits.image[0], "longest_edge": limits.image[1]}, **options
    )
    wanted = processor(images=[frame.rgb], return_tensors="pt")
    assert wanted["image_grid_thw"].tolist() == [[1, size[0] // 16, size[1] // 16]]
    ours = patches(pixels([frame], size, limits)[:, None].expand(-1, 2, -1, -1, -1), 16, 2)[0]
    assert (ours - wanted["pixel_values"]).abs().max() <= closeness


def test_limits_of_either_processor_file():
    old = {"min_pixels": 10, "max_pixels": 20, "image_mean": [0.1, 0.2, 0.3]}
    assert Limits.read(old) == Limits((10, 20), Limits().video, (0.1, 0.2, 0.3))
    size = {"size": {"shortest_edge": 30, "longest_edge": 40}}
    assert Limits.read({"image_processor": size, "video_processor": size}) == Limits((30, 40), (30, 40))
    with pytest.raises(UnsupportedError, match="resampled"):
        Limits.read({"resample": 2})


# --- the tower ----------------------------------------------------------------------------------------------------


def published_pixels(seen: Seen, frames: list[Frame], video: bool) -> tuple[Tensor, Tensor]:
    """Patches [all, pixels] in the reference's own order, and the grid [1, 3]."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    limits = Limits()
    size = fitted(*frames[0].rgb.shape[:2], 32, *((limits.video, len(frames)) if video else (limits.image,)))
    pictures = pixels(frames, size, limits)[None]
    values, *grid = Qwen3VLVideoProcessor.patchify(None, pictures, patch_size=16, merge_size=2, temporal_patch_size=2)
    return values[0], torch.tensor([grid])


@pytest.mark.parametrize(
    ("frames", "video"), [([picture(300, 420, 1)], False), ([picture(60, 900, 2)], False), (clip(5), True)]
)
def test_vision_features(seen, frames, video):
    values, grid = published_pixels(seen, frames, video)
    low = copy.deepcopy(seen.reference).bfloat16()
    calls = [m.model.get_video_features if video else m.model.get_image_features for m in (seen.reference, low)]
    with torch.no_grad():
        wanted, reference_low = (call(values, grid).pooler_output[0].float() for call in calls)
    ours = seen.parts.tower.encode(frames, video=video)
    ours_low = load_parts(seen.folder, torch.bfloat16).tower.encode(frames, video=video).flatten(0, 1).float()
    assert len(ours) == (3 if video else 1) and ours.shape[1] <= seen.parts.tower.tokens(video)
    off, ratio = (
        error(ours.flatten(0, 1), wanted),
        ((ours_low - wanted).norm() / (reference_low - wanted).norm()).item(),
    )
    print(f"parity  qwen3_5 vision          {'video' if video else 'image'} {off:.1e}  bf16 {ratio:.2f}x")
    assert off <= TOLERANCE and ratio <= 1.25


def test_patches_are_fed_in_strips(seen, monkeypatch):
    whole = seen.parts.tower.encode(clip(4), video=True)
    monkeypatch.setattr(qwen_vision, "STRIP", 10)  # of the patches of two pairs: five of each
    assert error(seen.parts.tower.encode(clip(4), video=True), whole) <= TOLERANCE


def test_a_video_encoded_in_pieces_is_the_same(seen):
    frames, tower = clip(6, 40, 5000), seen.parts.tower
    whole = tower.encode(frames, video=True, total=300)
    pieces = [tower.encode(frames[i : i + 2], video=True, total=300) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-5)
    assert whole.shape[1] < tower.encode(frames, video=True).shape[1]  # 300 such frames share the pixels
    with pytest.raises(UsageError, match="several sizes"):
        tower.encode([*frames, picture(50, 50, 1)], video=True)
    with pytest.raises(UsageError, match="No frames"):
        tower.encode([], video=False)


# --- media in the stream ------------------------------------------------------------------------------------------

Piece = list[int] | tuple[list[Frame], bool]  # ids, or frames and whether they are a video
SAID = [[5, 9, 100, 3, START], [END, 7, 8], [END, 11, 12, 13, 14, 15]]
TURNS: dict[str, list[Piece]] = {
    "image": [SAID[0], ([picture(270, 400, 1)], False), SAID[2]],
    "two images": [SAID[0], ([picture(270, 400, 1)], False), SAID[1], ([picture(400, 200, 2)], False), SAID[2]],
    "video": [SAID[0], (clip(5), True), SAID[2]],
    "both": [SAID[0], (clip(4), True), SAID[1], ([picture(270, 400, 1)], False), SAID[2]],
}


def said(text: str) -> list[int]:
    """Ids of a layout's text: made up, but for the control tokens."""
    return [{"<|vision_start|>": START, "<|vision_end|>": END}[text]] if "|" in text else [ord(c) for c in text]


class Fed:
    """A turn as steps for the decoder: embeddings [T, D] and their positions from the step's start; and the inputs that
    the reference takes."""

    def __init__(self, seen: Seen, turn: list[Piece]) -> None:
        decoder, tower = seen.parts.decoder, seen.parts.tower
        self.steps: list[tuple[Tensor, Tensor | None]] = []
        ids: list[int] = []

        def text(more: list[int]) -> None:
            ids.extend(more)
            self.steps.append((decoder.embed(torch.tensor(more)), None))

        inputs: dict[str, list[Tensor]] = {}
        for piece in turn:
            if isinstance(piece, list):
                text(piece)
                continue
            frames, video = piece
            values, grid = published_pixels(seen, frames, video)
            names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
            for name, value in zip(names, (values, grid), strict=True):
                inputs.setdefault(name, []).append(value)
            layouts = tower.layout(frames, video=video)
            for step, layout in zip(tower.encode(frames, video=video), layouts, strict=True):
                for words in layout.before:
                    text(said(words))
                ids.extend([VIDEO if video else IMAGE] * len(step))
                self.steps.append((step, layout.positions))
                for words in layout.after:
                    text(said(words))
        self.ids = torch.tensor([ids])
        kinds = (self.ids == IMAGE) * 1 + (self.ids == VIDEO) * 2
        self.inputs = {name: torch.cat(values) for name, values in inputs.items()} | {"mm_token_type_ids": kinds.int()}

    def run(self, decoder: Decoder, state: State | None = None) -> tuple[Tensor, Tensor, State]:
        """Step by step -> logits [T, vocab], positions [3, 1, T], the state."""
        outputs, positions = [], []
        state = state or decoder.init_state()
        for x, relative in self.steps:
            at = None if relative is None else state.rotary[0] + relative[:, None]
            text = state.rotary[0] + torch.arange(len(x)).expand(3, 1, -1)
            positions.append(text if at is None else at)
            hidden, state = decoder(x[None], state, positions=at)
            outputs.append(decoder.logits(hidden[0]))
        return torch.cat(outputs), torch.cat(positions, 2), state


@pytest.mark.parametrize("name", TURNS)
@torch.no_grad()
def test_media_turns(seen, name, tmp_path):
    decoder, fed = seen.parts.decoder, Fed(seen, TURNS[name])
    ours, positions, state = fed.run(decoder)
    grids = {key: value for key, value in fed.inputs.items() if not key.startswith("pixel")}
    wanted_positions, deltas = seen.reference.model.get_rope_index(fed.ids, **grids)
    assert torch.equal(positions, wanted_positions)
    assert state.rotary[0] - state.position[0] == deltas.item() == state.shift[0]
    wanted = seen.reference(fed.ids, **fed.inputs).logits[0]
    off = {"steps": error(ours, wanted)}
    x, count = torch.cat([x for x, _ in fed.steps])[None], fed.ids.shape[1]
    cuts = [0, *np.cumsum([17 * size for size in splits(count // 17, 4)]).tolist(), count]  # anywhere, in pictures too
    split, again = None, []
    for a, b in pairwise(cuts):
        if a < b:
            hidden, split = decoder(x[:, a:b], split, positions=positions[..., a:b])
            again.append(decoder.logits(hidden[0]))
    off["split"] = error(torch.cat(again), wanted)
    split.save(tmp_path / "a.state")  # an answer goes on from the saved state, token by token
    state, more = State.restore(tmp_path / "a.state"), [21, 22, 23, 24]
    after = Fed(seen, [[id] for id in more])
    longer, kinds = torch.cat([fed.ids, torch.tensor([more])], 1), fed.inputs["mm_token_type_ids"]
    inputs = fed.inputs | {"mm_token_type_ids": torch.cat([kinds, kinds.new_zeros(1, len(more))], 1)}
    off["answer"] = error(after.run(decoder, state)[0], seen.reference(longer, **inputs).logits[0, -len(more) :])
    print(f"parity  qwen3_5 {name:15} " + "  ".join(f"{key} {value:.1e}" for key, value in off.items()))
    assert max(off.values()) <= TOLERANCE


def test_timestamps(seen):
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    indices, fps = [0, 13, 25, 38, 50], 25.0
    wanted = Qwen3VLProcessor._calculate_timestamps(None, list(indices), fps)
    frames = [picture(70, 110, i, t=index / fps) for i, index in enumerate(indices)]
    layouts = seen.parts.tower.layout(frames, video=True)
    assert [layout.before[0] for layout in layouts] == [f"<{t:.1f} seconds>" for t in wanted]


# --- what cannot be read ------------------------------------------------------------------------------------------


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden_act", "gelu"),
        ("attn_output_gate", False),
        ("num_experts", 8),
        ("layer_types", ["sliding_attention"] * 4),
        ("rope_parameters", {**MROPE, "rope_type": "dynamic"}),
        ("rope_parameters", {**MROPE, "mrope_interleaved": False}),
    ],
)
def test_an_option_that_is_not_implemented_is_named(seen, option, value):
    config = config_of(seen.folder)
    config["text_config"] = config["text_config"] | {option: value}
    said = list(value.values())[0 if value.get("rope_type") == "dynamic" else -1] if isinstance(value, dict) else None
    with pytest.raises(UnsupportedError, match=str(said) if said is not None else option.removesuffix("_types")):
        checkpoints.family("qwen3_5").decoder_config(config)


@pytest.mark.parametrize(
    ("option", "value"), [("hidden_act", "relu"), ("deepstack_visual_indexes", [3]), ("in_channels", 1)]
)
def test_a_tower_that_is_not_implemented_is_named(seen, option, value):
    config = config_of(seen.folder)
    config["vision_config"] |= {option: value}
    with pytest.raises(UnsupportedError, match=option):
        towers.build(config)


def test_experts_are_refused():
    config = {**TEXT, "model_type": "qwen3_next", "num_experts": 4, "decoder_sparse_step": 2}
    with pytest.raises(UnsupportedError, match="experts"):
        checkpoints.family("qwen3_next").decoder_config(config)


def test_tensors_that_are_nobodys_are_named(seen, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((seen.folder / "config.json").read_text())
    tensors = load_file(seen.folder / "model.safetensors")
    for odd in ("model.language_model.layers.0.mlp.up_proj.bias", "model.visual.blocks.0.norm3.weight", "mtpx.weight"):
        save_file(tensors | {odd: torch.zeros(96)}, tmp_path / "model.safetensors")
        with pytest.raises(IntegrityError, match=odd.replace(".", r"\.")):
            load_parts(tmp_path)
