"""A whole conversation with Qwen3.5: folder, template, a picture and a video file in, the reference's logits out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fluvial.encoders.frame import Frame
from fluvial.encoders.video import open_video, sample
from fluvial.engine.media import Image, Video
from fluvial.engine.model import load_model
from fluvial.engine.session import Session
from tests.engine import small_tokenizers
from tests.media.media_files import animation
from tests.parity.reference import TOLERANCE, error, perturbed
from tests.parity.test_qwen3_5 import MROPE, TEXT, VISION, picture, published_pixels

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The reference, the same folder loaded, and the library's own tokenizer."""
    import transformers

    tokenizer, folder = small_tokenizers.byte_level(), tmp_path_factory.mktemp("qwen") / "chat"
    small_tokenizers.save(folder, tokenizer, eos_token="<|im_end|>", chat_template=small_tokenizers.CHATML)
    ids = {f"{kind}_token_id": tokenizer.token_to_id(f"<|{kind}_pad|>") for kind in ("image", "video")}
    text = {**TEXT, "vocab_size": tokenizer.get_vocab_size(), "rope_parameters": MROPE}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=True, **ids)
    torch.manual_seed(9)
    reference = perturbed(transformers.Qwen3_5ForConditionalGeneration(config))
    reference.save_pretrained(folder)
    return reference, load_model(folder), tokenizer


@torch.no_grad()
def test_a_conversation(made, tmp_path: Path):
    reference, model, tokenizer = made
    pictures, clip = [picture(80, 96, i).rgb for i in range(5)], tmp_path / "clip.webp"
    clip.write_bytes(animation("WEBP", pictures, [500] * 5, lossless=True))
    image = picture(270, 400, 9)
    session = Session(model)
    session.push("Look here.")
    session.push(Image(image.rgb))
    said = [event.id for event in session.ask("What is it?", max_tokens=5) if getattr(event, "id", -1) >= 0]
    session.push(Video(clip, fps=2))
    session.save(tmp_path / "talk.session")
    session = Session.load(model, tmp_path / "talk.session")

    with open_video(clip) as reader:
        frames = list(sample(reader, fps=2))
    assert [(frame.rgb == rgb).all() for frame, rgb in zip(frames, pictures, strict=True)] == [True] * 5
    values, grid = published_pixels(None, [Frame(image.rgb)], False)
    moving, span = published_pixels(None, frames, True)
    times = ("0.2", "1.2", "2.0")  # a pair of frames each, in the middle; the odd last one is shown twice
    steps = "".join(f"<{t} seconds>{START}{VIDEO * (int(span[0, 1:].prod()) // 4)}{END}" for t in times)
    shown = f"{START}{IMAGE * (int(grid.prod()) // 4)}{END}"
    before = f"<|im_start|>user\nLook here.\n{shown}What is it?<|im_end|>\n<|im_start|>assistant\n"
    after = f"<|im_end|>\n<|im_start|>user\n{START}{steps}{END}"
    ids = torch.tensor([[*tokenizer.encode(before).ids, *said, *tokenizer.encode(after).ids]])
    kinds = (ids == tokenizer.token_to_id(IMAGE)) * 1 + (ids == tokenizer.token_to_id(VIDEO)) * 2
    grids = {"image_grid_thw": grid, "video_grid_thw": span, "mm_token_type_ids": kinds.int()}
    wanted = reference(ids, pixel_values=values, pixel_values_videos=moving, **grids).logits[0, -1]
    assert session.position == ids.shape[1]
    off = error(session._now.feed.logits, wanted)
    print(f"parity  qwen3_5 conversation    {off:.1e}")
    assert off <= TOLERANCE
