"""Idefics3 and SmolVLM2 against Transformers: pictures cut into squares, videos with their times in words."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.encoders import smolvlm, towers
from fluvial.encoders.frame import Frame
from fluvial.encoders.idefics3 import around
from fluvial.encoders.idefics3_tiles import Tiling
from fluvial.encoders.layout import Layout
from fluvial.encoders.number_words import in_words
from fluvial.engine.loading import load_parts
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.parity.reference import TOLERANCE, check_family, error, perturbed, splits
from tests.parity.test_qwen3_5 import clip, picture, smooth

FAKE, IMAGE, VOCAB, SIDE = 190, 191, 200, 70
TEXT: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "image_size": SIDE,
    "patch_size": 11,  # 6 of them on a side: a rest of 4 pixels is not seen
}
PROCESSOR = {"size": {"longest_edge": 4 * SIDE}, "max_image_size": {"longest_edge": SIDE}, "resample": 1}
SAMPLING = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": SIDE}}}


class Seen:
    """A random model of the family, and the same folder loaded. SmolVLM merges 2 x 2 patches and has a tied head."""

    def __init__(self, kind: str, folder: Path) -> None:
        import transformers

        torch.manual_seed(8)
        self.small, name = kind == "smolvlm", {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
        config = getattr(transformers, f"{name}Config")(
            text_config=TEXT,
            vision_config=VISION,
            scale_factor=2 if self.small else 3,
            image_token_id=IMAGE,
            tie_word_embeddings=self.small,
        )
        self.reference: Any = perturbed(getattr(transformers, f"{name}ForConditionalGeneration")(config))
        self.reference.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | (SAMPLING if self.small else {})))
        self.kind, self.folder, self.parts = kind, folder, load_parts(folder)
        self.processor = Path(f"{name}ImageProcessorPil")


@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(request.param, tmp_path_factory.mktemp("seen") / request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen("smolvlm", tmp_path_factory.mktemp("small") / "smolvlm")


def test_text(seen):
    check_family(seen.reference, seen.folder)


def test_a_config_that_leaves_out_the_defaults(seen):
    """Nested configs of published folders hold only what differs from the classes' own defaults."""
    import transformers

    text = {key: value for key, value in TEXT.items() if key in ("hidden_size", "model_type")}
    ours = checkpoints.family(seen.kind).decoder_config({"model_type": seen.kind, "text_config": text})
    wanted = transformers.LlamaConfig(**text)
    attention, mlp = ours.blocks[0].options, ours.blocks[1].options
    assert (ours.vocab, len(ours.blocks), ours.norm_eps) == (
        wanted.vocab_size,
        2 * wanted.num_hidden_layers,
        wanted.rms_norm_eps,
    )
    heads = (attention["heads"], attention["kv_heads"], attention["d_head"], attention["theta"], mlp["d_ff"])
    rope = wanted.rope_parameters["rope_theta"]
    assert heads == (32, wanted.num_key_value_heads, wanted.head_dim, rope, wanted.intermediate_size)
    squares = {"max_image_size": {"longest_edge": 224}}
    config = {"model_type": seen.kind, "text_config": text, "vision_config": {}, "scale_factor": 7}
    with torch.device("meta"):
        tower, _ = towers.build(config, squares) or (None, None)
    vision = type(seen.reference.config.vision_config)()
    siglip = tower.config.siglip
    assert (siglip.width, siglip.depth, siglip.heads) == (vision.hidden_size, 12, vision.num_attention_heads)
    assert (siglip.d_ff, siglip.patch, siglip.side, siglip.gelu, siglip.eps) == (3072, 32, 7, "tanh", 1e-6)


# --- pixels -------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1), (3, 200), (70, 70), (31, 33), (48, 80), (255, 257), (300, 420), (420, 300), (9, 2000), (2000, 9)]


def published(seen: Seen, frame: Frame, **options: Any) -> Any:
    """What the published image processor makes of a picture; Pillow's, which needs no torchvision."""
    import transformers

    made = getattr(transformers, seen.processor.name)(**PROCESSOR, **options)
    return made(images=[Image.fromarray(frame.rgb)], return_tensors="pt", return_row_col_info=True)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_the_published_ones(seen, shape, split):
    frame = picture(*shape, 3)
    wanted = published(seen, frame, do_image_splitting=split)
    tiling = Tiling.read(PROCESSOR | {"do_image_splitting": split})
    ours, grid = tiling.squares(frame.rgb), tiling.grid(*shape)
    assert ours.shape == wanted["pixel_values"][0].shape
    assert (ours - wanted["pixel_values"][0]).abs().max() <= 1e-6
    assert wanted["pixel_attention_mask"].all()
    assert (wanted["rows"][0][0], wanted["cols"][0][0]) == (grid if grid != (1, 1) else (0, 0))


@pytest.mark.parametrize("longest", [364, 4 * 364, 2048, 5000])
def test_grids_are_the_published_ones(longest):
    """As pictures are cut; what the published processor foretells (`get_number_of_image_patches`) differs at times."""
    from transformers.models.idefics3 import image_processing_pil_idefics3 as module

    held, generator = SimpleNamespace(resize=lambda image, size, resample: size), np.random.default_rng(0)
    tiling = Tiling(longest=longest)
    for height, width in [(1, 5000), (5000, 1), (364, 364), *generator.integers(1, 3000, (200, 2)).tolist()]:
        size = module.get_resize_output_image_size(np.broadcast_to(0, (1, height, width)), longest)
        assert tiling.enlarged(height, width) == size
        empty = np.broadcast_to(0, (1, *size))
        size = module.Idefics3ImageProcessorPil.resize_for_vision_encoder(held, empty, 364)
        assert tiling.grid(height, width) == (size.height / 364, size.width / 364), (height, width)


@pytest.mark.parametrize("shape", [(1, 1), (48, 80), (80, 48), (9, 900), (70, 70)])
def test_frames_are_the_published_squares(shape):
    """A frame is resized twice, first to the size of a picture that is cut. Published in torch's Lanczos, which old
    versions lack: ours is Pillow's, as for pictures, and the two agree within two steps of a byte."""
    from transformers.models.smolvlm.video_processing_smolvlm import get_resize_output_image_size

    def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.nn.functional.interpolate(pictures, size, mode="lanczos", antialias=True)

    tiling, frame = smolvlm.Watching.read(PROCESSOR | SAMPLING).tiling, smooth(*shape)
    bytes_ = torch.as_tensor(frame.rgb).movedim(-1, 0)[None]
    try:
        twice = resized(resized(bytes_, get_resize_output_image_size(bytes_, tiling.longest)), (SIDE, SIDE))
    except (NotImplementedError, ValueError):
        pytest.skip("this torch has no Lanczos")
    assert (tiling.squares(frame.rgb) - (twice.float() / 127.5 - 1)).abs().max() <= 2 / 127.5 + 1e-6


def test_options_of_either_processor_file():
    tiling = Tiling.read(PROCESSOR | {"do_image_splitting": False, "image_mean": [0.1, 0.2, 0.3]})
    assert tiling == Tiling(4 * SIDE, SIDE, False, (0.1, 0.2, 0.3))
    for option in ({"resample": 3}, {"do_rescale": False}, {"size": {"height": 9, "width": 9}}):
        with pytest.raises(UnsupportedError, match=next(iter(option))):
            Tiling.read(option)
    for option in ({"max_image_size": {"longest_edge": 0}}, {"max_image_size": {"longest_edge": 1}}):
        with pytest.raises(ValueError, match=r"is|squares of 1"):
            Tiling.read(option)
    watching = smolvlm.Watching.read({"size": {"longest_edge": 99999}, "num_frames": 7, "fps": 2})
    assert (watching.fps, watching.frames, watching.tiling.longest) == (2.0, 7, 4096)


# --- words --------------------------------------------------------------------------------------------------------


def told(layouts: list[Layout], tokens: int) -> str:
    return "".join("".join([x.lead, *x.before, "<image>" * tokens, *x.after]) for x in layouts)


def words_of_a_picture(rows: int, columns: int, tokens: int) -> str:
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    return get_image_prompt_string(rows, columns, tokens, "<fake_token_around_image>", "<image>", "<global-img>")


def words_of_a_video(times: list[float], seconds: float, tokens: int) -> str:
    from transformers.models.smolvlm import processing_smolvlm as module

    names = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    processor = SimpleNamespace(image_seq_len=tokens, global_image_token="<global-img>", **names)
    metadata = SimpleNamespace(fps=1.0, timestamps=times, duration=seconds)
    video = {"pixel_values": torch.zeros(1, len(times), 3, 1, 1), "video_metadata": [metadata]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "num2words", in_words)  # the package that it takes for this is not installed
        said: str = module.SmolVLMProcessor.replace_video_token(processor, video, 0)
    return said


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (3, 1), (2, 4), (7, 7)])
def test_words_around_a_picture(grid):
    from transformers import Idefics3Processor

    rows, columns = grid if grid != (1, 1) else (0, 0)
    names = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    processor = SimpleNamespace(image_seq_len=5, global_image_tag="<global-img>", **names)
    wanted = Idefics3Processor.replace_image_token(processor, {"rows": [[rows]], "cols": [[columns]]}, 0)
    assert told(around(*grid), 5) == wanted == words_of_a_picture(rows, columns, 5)


def test_numbers_in_words():
    numbers = {
        0: "zero",
        11: "eleven",
        20: "twenty",
        64: "sixty-four",
        100: "one hundred",
        305: "three hundred and five",
    }
    numbers |= {1001: "one thousand and one", 21100: "twenty-one thousand, one hundred"}
    assert {number: in_words(number) for number in numbers} == numbers
    with pytest.raises(ValueError):
        in_words(-1)


@pytest.mark.parametrize("rate", [1.0, 7.5, 23.976, 30.0])
def test_frames_that_are_looked_at(rate):
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    sample = vars(SmolVLMVideoProcessor)["sample_frames"]  # the class itself asks for torchvision
    for total in (1, 2, 5, 23, 100, 299, 2000, 2004, 5000):
        seconds = total / rate
        for fps, most in ((None, None), (2.0, None), (0.5, 8), (None, 1)):
            metadata = {"total_num_frames": total, "fps": rate, "duration": seconds}
            held = type("Metadata", (dict,), {"fps": rate, "total_num_frames": total})(metadata)
            rule = SimpleNamespace(num_frames=64, fps=1.0)
            wanted = sample(rule, held, num_frames=most, fps=fps)
            assert smolvlm.Watching().indices(total, seconds, fps, None, most) == wanted.tolist()
    assert smolvlm.Watching().indices(100, 4.0, None, 9, None) == np.linspace(0, 99, 9, dtype=int).tolist()


# --- the tower ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 3, 6, 14, 26, 27, 32, 49])
@torch.no_grad()
def test_positions_are_the_published_ones(cells):
    """Which row of the table a patch takes is decided by rounding where both grids have a border."""
    import transformers
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

    options = {"hidden_size": 1, "num_attention_heads": 1, "image_size": 2 * cells, "patch_size": 2}
    embeddings = Idefics3VisionEmbeddings(transformers.Idefics3VisionConfig(**options))
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.bias.zero_()
    embeddings.position_embedding.weight.copy_(torch.arange(cells**2)[:, None])
    processor = {"size": {"longest_edge": 200}, "max_image_size": {"longest_edge": 100}}
    config = {"model_type": "idefics3", "vision_config": options, "text_config": {}, "scale_factor": 1}
    tower, _ = towers.build(config, processor) or (None, None)
    for side in (*range(1, 34), 49):
        pixels, mask = torch.zeros(1, 3, 2 * side, 2 * side), torch.ones(1, side, side, dtype=torch.bool)
        assert torch.equal(tower._places(side), embeddings(pixels, mask)[0, :, 0].long()), side


@pytest.mark.parametrize("shape", [(300, 420), (60, 900), (33, 31), (1, 1)])
def test_vision_features(seen, shape):
    frame = picture(*shape, 1)
    values = published(seen, frame)["pixel_values"]
    low = copy.deepcopy(seen.reference).bfloat16()
    with torch.no_grad():
        calls = [m.model.get_image_features for m in (seen.reference, low)]
        wanted, reference_low = (torch.cat(list(call(values).pooler_output)).float() for call in calls)
    ours = seen.parts.tower.encode([frame], video=False)
    ours_low = load_parts(seen.folder, torch.bfloat16).tower.encode([frame], video=False).flatten(0, 1).float()
    assert ours.shape[:2] == (values.shape[1], seen.parts.tower.tokens(False))
    off = error(ours.flatten(0, 1), wanted)
    ratio = ((ours_low - wanted).norm() / (reference_low - wanted).norm()).item()
    print(f"parity  {seen.kind:9} vision         {len(ours):2} squares  {off:.1e}  bf16 {ratio:.2f}x")
    assert off <= TOLERANCE and ratio <= 1.25


def test_several_frames_at_once(small):
    frames, tower = clip(6), small.parts.tower
    whole = tower.encode(frames, video=True)
    torch.testing.assert_close(torch.cat([tower.encode([f], video=True) for f in frames]), whole, rtol=1e-4, atol=1e-5)
    pictures = [picture(30, 40, 1), picture(200, 90, 2)]
    alone = [tower.encode([frame], video=False) for frame in pictures]
    torch.testing.assert_close(tower.encode(pictures, video=False), torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert len(tower.layout(pictures, video=False)) == sum(map(len, alone))
    with pytest.raises(UsageError, match="No frames"):
        tower.encode([], video=False)


def test_idefics3_reads_no_videos(tmp_path):
    tower = Seen("idefics3", tmp_path / "idefics3").parts.tower
    for call in (tower.encode, tower.layout):
        with pytest.raises(UnsupportedError, match="no videos"):
            call(clip(2), video=True)


# --- media in the stream ------------------------------------------------------------------------------------------

Piece = list[int] | tuple[list[Frame], bool]  # ids, or frames and whether they are a video
SAID = [[5, 9, 100, 3], [7, 8], [11, 12, 13, 14, 15]]
TURNS: dict[str, list[Piece]] = {
    "image": [SAID[0], ([picture(33, 31, 1)], False), SAID[2]],
    "two images": [SAID[0], ([picture(270, 400, 1)], False), SAID[1], ([picture(9, 900, 2)], False), SAID[2]],
    "video": [SAID[0], (clip(3), True), SAID[2]],
    "both": [SAID[0], (clip(2), True), SAID[1], ([picture(270, 400, 1)], False), SAID[2]],
}


def said(text: str) -> list[int]:
    """A made-up id for a layout's text, but for the control token."""
    return [FAKE if text == "<fake_token_around_image>" else sum(map(ord, text)) % FAKE] if text else []


class Fed:
    """A turn as embeddings [T, D] for the decoder; and the inputs that the reference takes."""

    def __init__(self, seen: Seen, turn: list[Piece]) -> None:
        decoder, tower = seen.parts.decoder, seen.parts.tower
        steps, squares, ids = [], [], []

        def text(more: list[int]) -> None:
            ids.extend(more)
            steps.append(decoder.embed(torch.tensor(more, dtype=torch.long)))

        for piece in turn:
            if isinstance(piece, list):
                text(piece)
                continue
            frames, video = piece
            cut = tower.config.watching.tiling if video else tower.config.tiling
            squares += [cut.squares(frame.rgb) for frame in frames]
            layouts = tower.layout(frames, video=video)
            for step, layout in zip(tower.encode(frames, video=video), layouts, strict=True):
                text([id for words in (layout.lead, *layout.before) for id in said(words)])
                ids.extend([IMAGE] * len(step))
                steps.append(step)
                text([id for words in layout.after for id in said(words)])
        self.x, self.ids, self.pixels = torch.cat(steps)[None], torch.tensor([ids]), torch.cat(squares)[None]


def logits(decoder: Decoder, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    hidden, state = decoder(x, state)
    return decoder.logits(hidden[0]).float(), state


@pytest.mark.parametrize("name", TURNS)
@torch.no_grad()
def test_media_turns(seen, name, tmp_path):
    if seen.kind == "idefics3" and name in ("video", "both"):
        return
    decoder, fed = seen.parts.decoder, Fed(seen, TURNS[name])
    wanted = seen.reference(fed.ids, pixel_values=fed.pixels).logits[0]
    ours, state = logits(decoder, fed.x)
    off, count = {"one-shot": error(ours, wanted)}, fed.ids.shape[1]
    for key, sizes in {"split": [17 * size for size in splits(count // 17, 4)], "step": [1] * count}.items():
        cuts, chunk, again = [0, *np.cumsum(sizes).tolist(), count], None, []
        for a, b in pairwise(cuts):
            if a < b:
                out, chunk = logits(decoder, fed.x[:, a:b], chunk)
                again.append(out)
        off[key] = error(torch.cat(again), wanted)
    state.save(tmp_path / "a.state")  # greedy words go on from the saved state
    words, ids, next_ = [], fed.ids, ours[-1]
    state = State.restore(tmp_path / "a.state")
    while len(words) < 6:
        words.append(int(next_.argmax()))
        ids = torch.cat([ids, torch.tensor([words[-1:]])], 1)
        out, state = logits(decoder, decoder.embed(ids[:, -1:]), state)
        next_ = out[-1]
    longer = seen.reference(ids, pixel_values=fed.pixels).logits[0]
    off["answer"] = error(next_[None], longer[-1:])
    print(f"parity  {seen.kind:9} {name:15}" + "  ".join(f"{key} {value:.1e}" for key, value in off.items()))
    assert max(off.values()) <= TOLERANCE
    assert words == longer[count - 1 : -1].argmax(-1).tolist()


@torch.no_grad()
def test_media_turns_in_bf16(seen):
    truth, low = Fed(seen, TURNS["two images"]), copy.deepcopy(seen.reference).bfloat16()
    wanted = seen.reference(truth.ids, pixel_values=truth.pixels).logits
    theirs = low(truth.ids, pixel_values=truth.pixels).logits.float()
    half = copy.copy(seen)
    half.parts = load_parts(seen.folder, torch.bfloat16)
    ours = logits(half.parts.decoder, Fed(half, TURNS["two images"]).x)[0]
    ratio = ((ours - wanted[0]).norm() / (theirs - wanted).norm()).item()
    print(f"parity  {seen.kind:9} two images      bf16 {ratio:.2f}x")
    assert ratio <= 1.25


# --- what cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change", "error", "named"),
    [
        ("text_config", {"model_type": "mistral"}, UnsupportedError, "mistral"),
        ("text_config", {"hidden_act": "gelu"}, UnsupportedError, "gelu"),
        ("vision_config", {"hidden_act": "relu"}, UnsupportedError, "hidden_act"),
        ("vision_config", {"image_size": [70, 70]}, UnsupportedError, "image_size"),
        ("vision_config", {"patch_size": 0}, IntegrityError, "config.json"),
        ("vision_config", {"patch_size": 90}, IntegrityError, "config.json"),
        ("vision_config", {"num_attention_heads": 5}, IntegrityError, "heads"),
        ("", {"scale_factor": 4}, IntegrityError, "4 of them merged"),
        ("", {"scale_factor": 0}, IntegrityError, "merged"),
        ("", {"text_config": None}, IntegrityError, "config.json"),
        ("processor", {"resample": 2}, UnsupportedError, "resample"),
        ("processor", {"max_image_size": {"longest_edge": 2}}, IntegrityError, "squares of 2"),
        ("processor", {"image_mean": [0.5]}, IntegrityError, "mean"),
    ],
)
def test_what_is_not_implemented_or_damaged_is_named(seen, tmp_path, part, change, error, named):
    config = json.loads((seen.folder / "config.json").read_text())
    processor = json.loads((seen.folder / "preprocessor_config.json").read_text())
    changed = {"processor": processor, "": config}.get(part) if part in ("processor", "") else config[part]
    changed |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "model.safetensors").symlink_to(seen.folder / "model.safetensors")
    with pytest.raises(error, match=named):
        load_parts(tmp_path)


def test_unknown_tensors_are_named(seen, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((seen.folder / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    tensors = load_file(seen.folder / "model.safetensors")
    for odd in ("model.layers.0.mlp.up_proj.weight", "model.vision_model.head.weight", "model.connector.proj.weight"):
        save_file(tensors | {odd: torch.zeros(96)}, tmp_path / "model.safetensors")
        with pytest.raises(IntegrityError, match=odd.replace(".", r"\.")):
            load_parts(tmp_path)
