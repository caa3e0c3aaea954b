"""Qwen3-VL against Transformers: text, pictures and videos whose inner features reach the first decoder layers."""

from __future__ import annotations

import copy
import json
import shutil
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.encoders import towers
from fluvial.encoders.frame import Frame
from fluvial.encoders.qwen_pixels import Limits
from fluvial.encoders.video import open_video, sample
from fluvial.engine import feed
from fluvial.engine.loading import load_parts, processor_of, read_shapes
from fluvial.engine.media import Image, Video
from fluvial.engine.model import load_model
from fluvial.engine.session import Session
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.engine import small_tokenizers
from tests.media.media_files import animation
from tests.parity.reference import GREEDY, TOLERANCE, check_family, error, greedy_reference, perturbed, splits
from tests.parity.test_qwen3_5 import (
    IMAGE,
    START,
    TURNS,
    VIDEO,
    VISION,
    VOCAB,
    Fed,
    clip,
    picture,
    published_pixels,
)

MROPE = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_parameters": MROPE,
}
TOWER = VISION | {"depth": 4, "deepstack_visual_indexes": [0, 2, 3]}
WIDTH = TEXT["hidden_size"]


def made(folder: Path, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """A random Qwen3-VL, saved to `folder`."""
    import transformers

    torch.manual_seed(8)
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | (text or {}), **{"vision_config": TOWER, "tie_word_embeddings": True, **ids, **options}
    )
    reference = perturbed(transformers.Qwen3VLForConditionalGeneration(config))
    reference.save_pretrained(folder)
    return reference


class Seen:
    """A random Qwen3-VL and the same folder loaded."""

    def __init__(self, folder: Path) -> None:
        self.reference: Any = made(folder)
        self.folder, self.parts = folder, load_parts(folder)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("qwen") / "qwen3_vl")


# --- text ---------------------------------------------------------------------------------------------------------


def test_text(seen):
    check_family(seen.reference, seen.folder)


def test_text_with_other_options(tmp_path):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5000.0}
    text = {"attention_bias": True, "rms_norm_eps": 1e-3, "rope_parameters": rope}
    folder = tmp_path / "qwen3_vl-untied"
    check_family(made(folder, text, tie_word_embeddings=False), folder)


def test_the_published_spelling(seen, tmp_path):
    """`rope_theta` beside `rope_scaling`, the tower called as the whole, tied in both parts."""
    folder = tmp_path / "older"
    shutil.copytree(seen.folder, folder)
    config = config_of(seen)
    text, rope = config["text_config"], {**MROPE}
    del text["rope_parameters"]
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "tie_word_embeddings": True}
    config["vision_config"]["model_type"] = "qwen3_vl"
    del config["vision_config"]["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    parts = load_parts(folder)
    assert parts.decoder.fingerprint() == seen.parts.decoder.fingerprint()
    assert parts.tower.config == seen.parts.tower.config


def test_the_shape_of_a_published_model(tmp_path):
    """Qwen3-VL-2B has 2,127,532,032 parameters."""
    text = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6}
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048}
    vision |= {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304}
    vision |= {"deepstack_visual_indexes": [5, 11, 17], "hidden_act": "gelu_pytorch_tanh"}
    config = {"model_type": "qwen3_vl", "tie_word_embeddings": True, "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = read_shapes(tmp_path)
    assert shapes.vision is not None and shapes.decoder.config.deepstack == (1, 3, 5)
    assert sum(p.numel() for module in (shapes.decoder, shapes.vision[0]) for p in module.parameters()) == 2127532032
    attention = shapes.decoder.config.blocks[0].options
    assert attention["theta"] == 500000.0 and attention["sections"] == (24, 20, 20)


# --- the tower ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "video"), [([picture(300, 420, 1)], False), ([picture(60, 900, 2)], False), (clip(5), True)]
)
@torch.no_grad()
def test_vision_features(seen, frames, video):
    values, grid = published_pixels(seen, frames, video)

    def features(model: Any) -> Tensor:
        out = (model.model.get_video_features if video else model.model.get_image_features)(values, grid)
        return torch.stack([part[0] for part in (out.pooler_output, *out.deepstack_features)]).float()

    wanted, low = features(seen.reference), features(copy.deepcopy(seen.reference).bfloat16())
    towers_ = seen.parts.tower, load_parts(seen.folder, torch.bfloat16).tower
    ours, ours_low = (
        torch.stack(tower.encode(frames, video=video).flatten(0, 1).float().split(WIDTH, -1)) for tower in towers_
    )
    off = [error(a, b) for a, b in zip(ours, wanted, strict=True)]
    ratio = ((ours_low - wanted).norm() / (low - wanted).norm()).item()
    print(f"parity  qwen3_vl vision         {'video' if video else 'image'} {max(off):.1e}  bf16 {ratio:.2f}x")
    assert len(off) == 4 and max(off) <= TOLERANCE and ratio <= 1.25


def test_limits_of_the_published_files(seen, tmp_path):
    picture_ = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "image_mean": [0.5] * 3, "patch_size": 16}
    video = {"size": {"longest_edge": 25165824, "shortest_edge": 4096}, "fps": 2, "max_frames": 768}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(picture_))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    config = config_of(seen)
    built = towers.build(config, processor_of(tmp_path))
    assert built is not None and built[0].config.limits == Limits()
    video["size"]["longest_edge"] = 786432
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    built = towers.build(config, processor_of(tmp_path))
    assert built is not None and built[0].config.limits.video == (4096, 786432)
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video | {"cap_pixels_per_frame": True}))
    built = towers.build(config, processor_of(tmp_path))
    assert built is not None and built[0].config.limits.capped


# --- media in the stream ------------------------------------------------------------------------------------------


def wide(x: Tensor) -> Tensor:
    """Embeddings [..., D (1 + n)], zeros in what text lacks."""
    return F.pad(x, (0, WIDTH * 4 - x.shape[-1]))


def as_text(logits: Tensor) -> Tensor:
    """Logits without the pads, for which the reference would want pictures."""
    return logits.index_fill(-1, torch.tensor([IMAGE, VIDEO]), float("-inf"))


class Turn:
    """A turn's embeddings x [1, T, D (1 + n)] and positions [3, 1, T], and what the reference says to it."""

    def __init__(self, seen: Seen, name: str) -> None:
        self.fed = Fed(seen, TURNS[name])
        self.steps, self.positions, self.state = self.fed.run(seen.parts.decoder)
        self.x = torch.cat([wide(x) for x, _ in self.fed.steps])[None]
        self.wanted = self.says(seen.reference, self.fed.ids)[0]

    def says(self, reference: Any, ids: Tensor) -> Tensor:
        """The reference's logits of the turn, with more ids behind it or without."""
        kinds = self.fed.inputs["mm_token_type_ids"]
        kinds = F.pad(kinds, (0, ids.shape[1] - kinds.shape[1]))
        logits: Tensor = reference(ids, **self.fed.inputs | {"mm_token_type_ids": kinds}).logits.float()
        return logits

    def in_pieces(self, decoder: Decoder, sizes: list[int]) -> tuple[Tensor, State]:
        state, outputs = None, []
        for end, size in zip(accumulate(sizes), sizes, strict=True):
            cut = slice(end - size, end)
            hidden, state = decoder(self.x[:, cut], state, positions=self.positions[..., cut])
            outputs.append(decoder.logits(hidden[0]).float())
        assert state is not None
        return torch.cat(outputs), state


@pytest.mark.parametrize("name", TURNS)
@torch.no_grad()
def test_media_turns(seen, name, tmp_path):
    decoder, turn = seen.parts.decoder, Turn(seen, name)
    count = turn.x.shape[1]
    grids = {key: value for key, value in turn.fed.inputs.items() if not key.startswith("pixel")}
    positions, deltas = seen.reference.model.get_rope_index(turn.fed.ids, **grids)
    assert torch.equal(turn.positions, positions) and turn.state.shift[0] == deltas.item()
    off = {"narrow": error(turn.steps, turn.wanted)}  # text goes in as wide as it is
    for way, sizes in {"one-shot": [count], "split": splits(count, 4), "step": [1] * count}.items():
        outputs, state = turn.in_pieces(decoder, sizes)
        off[way] = error(outputs, turn.wanted)
    state.save(tmp_path / "a.state")
    state, words = State.restore(tmp_path / "a.state"), []
    said = turn.steps[-1]
    while len(words) < GREEDY:  # text behind the media, token by token
        words.append(int(as_text(said).argmax()))
        hidden, state = decoder(decoder.embed(torch.tensor([words[-1:]])), state)
        said = decoder.logits(hidden[0, -1])
    wanted = greedy_reference(lambda ids: as_text(turn.says(seen.reference, ids)), turn.fed.ids)
    print(f"parity  qwen3_vl {name:14} " + "  ".join(f"{key} {value:.1e}" for key, value in off.items()))
    assert max(off.values()) <= TOLERANCE and words == wanted


@torch.no_grad()
def test_what_inner_blocks_say_matters(seen):
    """Without the parts the numbers are others: the parity above is not blind to them."""
    turn = Turn(seen, "image")
    bare, _ = seen.parts.decoder(turn.x[..., :WIDTH], positions=turn.positions)
    assert error(seen.parts.decoder.logits(bare[0]), turn.wanted) > 0.01


@torch.no_grad()
def test_bf16(seen):
    turn = Turn(seen, "both")
    low = turn.says(copy.deepcopy(seen.reference).bfloat16(), turn.fed.ids)[0]
    parts = load_parts(seen.folder, torch.bfloat16)
    ours = Fed(SimpleNamespace(parts=parts), TURNS["both"]).run(parts.decoder)[0].float()  # type: ignore[arg-type]
    ratio = ((ours - turn.wanted).norm() / (low - turn.wanted).norm()).item()
    print(f"parity  qwen3_vl both           bf16 {ratio:.2f}x")
    assert ratio <= 1.25


@torch.no_grad()
def test_a_part_of_a_picture_can_be_committed(seen):
    """What a journal commits inside a picture is the state of a forward that ended there."""
    decoder, turn = seen.parts.decoder, Turn(seen, "image")
    _, journal = decoder(turn.x, positions=turn.positions, journal=True)
    for n in (0, 3, 50, turn.x.shape[1]):
        state = journal.commit(n)
        if n:
            assert state.rotary == turn.in_pieces(decoder, [n])[1].rotary
        if n < turn.x.shape[1]:
            hidden, _ = decoder(turn.x[:, n:], state, positions=turn.positions[..., n:])
            assert error(decoder.logits(hidden[0]), turn.wanted[n:]) <= TOLERANCE


@torch.no_grad()
def test_rows_of_several_lengths(seen):
    """A batch of turns with rubbish for padding: each row as if it were alone, and so is what follows."""
    decoder, turns = seen.parts.decoder, [Turn(seen, name) for name in ("image", "video", "two images")]
    lengths = [turn.x.shape[1] for turn in turns]
    most = max(lengths)
    x = torch.cat([F.pad(turn.x, (0, 0, 0, most - n), value=1e4) for turn, n in zip(turns, lengths, strict=True)])
    positions = torch.cat([F.pad(turn.positions, (0, most - turn.x.shape[1])) for turn in turns], 1)
    hidden, state = decoder(x, lengths=lengths, positions=positions)
    assert state.shift == tuple(turn.state.shift[0] for turn in turns)
    after, _ = decoder(decoder.embed(torch.tensor([[21, 22]] * 3)), state)
    for b, (turn, n) in enumerate(zip(turns, lengths, strict=True)):
        assert error(decoder.logits(hidden[b, :n]), turn.wanted) <= TOLERANCE
        longer = torch.cat([turn.fed.ids, torch.tensor([[21, 22]])], 1)
        assert error(decoder.logits(after[b]), turn.says(seen.reference, longer)[0, -2:]) <= TOLERANCE


@pytest.mark.parametrize("width", [WIDTH - 1, 2 * WIDTH, 5 * WIDTH])
def test_embeddings_of_another_width_are_refused(seen, width):
    with pytest.raises(UsageError, match=f"{width} wide"):
        seen.parts.decoder(torch.zeros(1, 2, width))


# --- a conversation -----------------------------------------------------------------------------------------------

PAD = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


def expanded(text: str, grid: Tensor, span: Tensor, times: list[float]) -> str:
    """A prompt as the reference writes it out, for pictures of `grid` and a video of `span` [1, 3] seen at `times`."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    merged = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    own = SimpleNamespace(
        image_token=PAD["image"], video_token=PAD["video"], image_processor=merged, video_processor=merged
    )
    own.vision_start_token, own.vision_end_token, own.all_special_multimodal_tokens = (
        "<|vision_start|>",
        "<|vision_end|>",
        list(PAD.values()),
    )
    own._calculate_timestamps = lambda *given: Qwen3VLProcessor._calculate_timestamps(own, *given)
    seen_at = SimpleNamespace(fps=1000, frames_indices=[round(1000 * t) for t in times])
    image = Qwen3VLProcessor.replace_image_token(own, {"image_grid_thw": grid}, 0)
    video = Qwen3VLProcessor.replace_video_token(own, {"video_grid_thw": span, "video_metadata": [seen_at]}, 0)
    written: str = Qwen3VLProcessor.get_text_with_replacements(own, [text], [image], [video])[0][0]
    return written


@torch.no_grad()
def test_a_conversation(tmp_path, monkeypatch):
    """Text, a picture, an answer, a video of five frames, in chunks that cut everything, through a saved session."""
    tokenizer, folder = small_tokenizers.byte_level(), tmp_path / "chat"
    small_tokenizers.save(folder, tokenizer, eos_token="<|im_end|>", chat_template=small_tokenizers.CHATML)
    ids = {f"{kind}_token_id": tokenizer.token_to_id(pad) for kind, pad in PAD.items()}
    reference = made(folder, {"vocab_size": tokenizer.get_vocab_size()}, **ids)
    model = load_model(folder)
    monkeypatch.setattr(feed, "chunk_size", lambda width: 7)
    pictures, file = [picture(80, 96, i).rgb for i in range(5)], tmp_path / "clip.webp"
    file.write_bytes(animation("WEBP", pictures, [500] * 5, lossless=True))
    image = picture(270, 400, 9)
    session = Session(model)
    session.push("Look here.")
    session.push(Image(image.rgb))
    said = [event.id for event in session.ask("What is it?", max_tokens=5) if getattr(event, "id", -1) >= 0]
    snapshot = session.snapshot()
    session.push("No.")
    session.restore(snapshot)
    session.push(Video(file, fps=2))
    session.save(tmp_path / "talk.session")
    session = Session.load(model, tmp_path / "talk.session")

    with open_video(file) as reader:
        frames = list(sample(reader, fps=2))
    values, grid = published_pixels(None, [Frame(image.rgb)], False)  # type: ignore[arg-type]
    moving, span = published_pixels(None, frames, True)  # type: ignore[arg-type]
    shown = {kind: f"<|vision_start|>{pad}<|vision_end|>" for kind, pad in PAD.items()}
    before = f"<|im_start|>user\nLook here.\n{shown['image']}What is it?<|im_end|>\n<|im_start|>assistant\n"
    text = expanded(
        f"{before}|||<|im_end|>\n<|im_start|>user\n{shown['video']}", grid, span, [frame.t for frame in frames]
    )
    assert "<0.2 seconds><|vision_start|><|video_pad|>" in text
    left, right = (tokenizer.encode(part).ids for part in text.split("|||"))
    prompt = torch.tensor([[*left, *said, *right]])
    kinds = (prompt == ids["image_token_id"]) * 1 + (prompt == ids["video_token_id"]) * 2
    grids = {"image_grid_thw": grid, "video_grid_thw": span, "mm_token_type_ids": kinds.int()}
    wanted = reference(prompt, pixel_values=values, pixel_values_videos=moving, **grids).logits[0, -1]
    assert session.position == prompt.shape[1]
    off = error(session._now.feed.logits, wanted)
    print(f"parity  qwen3_vl conversation   {off:.1e}")
    assert off <= TOLERANCE


# --- what cannot be read ------------------------------------------------------------------------------------------


def config_of(seen: Seen) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((seen.folder / "config.json").read_text())
    return config


def test_experts_are_another_family(seen, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_of(seen) | {"model_type": "qwen3_vl_moe"}))
    with pytest.raises(UnsupportedError, match=r"qwen3_vl_moe.*not supported.*qwen3_vl,"):
        read_shapes(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("hidden_act", "gelu", "hidden_act"),
        ("num_experts", 8, "num_experts"),
        ("use_sliding_window", True, "use_sliding_window"),
        ("rope_parameters", {**MROPE, "rope_type": "dynamic"}, "dynamic"),
        ("rope_parameters", {**MROPE, "mrope_interleaved": False}, "mrope_interleaved"),
        ("rope_parameters", {**MROPE, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_an_option_that_is_not_implemented_is_named(seen, option, value, said):
    config = config_of(seen)
    config["text_config"] |= {option: value}
    with pytest.raises(UnsupportedError, match=said):
        checkpoints.family("qwen3_vl").decoder_config(config)


@pytest.mark.parametrize("deepstack", [[2, 0], [1, 1], [-1], [4]])
def test_blocks_out_of_order_are_refused(seen, deepstack):
    config = config_of(seen)
    config["vision_config"]["deepstack_visual_indexes"] = deepstack
    with pytest.raises(UnsupportedError, match="deepstack_visual_indexes"):
        towers.build(config)


def test_more_parts_than_layers_are_damage(seen, tmp_path):
    config = config_of(seen)
    config["text_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="3 deepstack_visual_indexes for 2 layers"):
        read_shapes(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.visual.deepstack_merger_list.1.norm.weight"), r"lacks.*vision\.deepstack\.1\.norm"),
        (lambda t: t.pop("model.language_model.layers.3.self_attn.q_norm.weight"), r"lacks.*decoder\.blocks\.6"),
        (lambda t: t.update({"model.visual.deepstack_merger_list.3.norm.bias": torch.zeros(192)}), r"list\.3\.norm"),
        (lambda t: t.update({"model.visual.merger.linear_fc3.bias": torch.zeros(64)}), "linear_fc3"),
        (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.zeros(32)}), r"unknown.*model\.layers"),
        (lambda t: t.update({"model.visual.deepstack_merger_list.0.norm.bias": torch.zeros(48)}), "48"),
    ],
)
def test_tensors_that_do_not_fit_are_named(seen, tmp_path, change, said):
    from safetensors.torch import load_file, save_file

    tensors = load_file(seen.folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(seen.folder / "config.json", tmp_path)
    with pytest.raises(IntegrityError, match=said):
        load_parts(tmp_path)
