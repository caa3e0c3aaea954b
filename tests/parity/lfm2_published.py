"""The published LFM2-VL: a tiny random checkpoint with tokenizer and template, and the library's own processor.

That processor resizes and normalises through torchvision, which is not a dependency. Here PyTorch's resize of bytes
stands in, which torchvision calls (bit for bit the same, tried with 0.29), or Pillow's; the rest runs as published.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from fluvial.encoders.frame import Frame
from tests.engine import small_tokenizers
from tests.parity.reference import perturbed

MARKS = ["<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
MARKS += [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
IMAGE = "<image>"
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<image>' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEXT: dict[str, Any] = {
    "model_type": "lfm2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "block_multiple_of": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}
VISION: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "num_patches": 25,
    "vision_use_head": False,
}
SMALL = {"min_image_tokens": 4, "max_image_tokens": 16, "tile_size": 64, "max_tiles": 6}  # tiles of 4 tokens


def tokenizer() -> Tokenizer:
    made = small_tokenizers.byte_level()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in ["<|startoftext|>", IMAGE, *MARKS]])
    return made


def make(folder: Path, vision: dict[str, Any] | None = None, **options: Any) -> Any:
    """Writes a folder as published, with small tiles; gives the reference model. `options`: of the whole config."""
    import transformers

    words = tokenizer()
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "image_token": IMAGE}
    small_tokenizers.save(folder, words, **names, chat_template=TEMPLATE)
    text = {**TEXT, "vocab_size": words.get_vocab_size(), "eos_token_id": words.token_to_id("<|im_end|>")}
    id, defaults = words.token_to_id(IMAGE), {"projector_hidden_size": 40}
    torch.manual_seed(8)
    config = transformers.Lfm2VlConfig(
        text_config=text, vision_config={**VISION, **(vision or {})}, image_token_id=id, **{**defaults, **options}
    )
    model = perturbed(transformers.Lfm2VlForConditionalGeneration(config))
    model.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": SMALL}))
    return model


@cache
def _image_processor() -> Any:
    """The published class without torchvision; it resizes with Pillow where `pillow` is set."""
    importlib.import_module("transformers.image_processing_backends")  # looks for torchvision itself, and finds none
    stand_in = ModuleType("torchvision.transforms.v2")
    stand_in.functional = ModuleType("functional")  # type: ignore[attr-defined]
    names = ("torchvision", "torchvision.transforms", stand_in.__name__)
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= dict.fromkeys(names, stand_in)
    try:
        published = importlib.import_module("transformers.models.lfm2_vl.image_processing_lfm2_vl")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module

    class Resizing(published.TorchvisionBackend):  # type: ignore[misc, name-defined]
        pillow = False

        def resize(self, image: Tensor, size: Any, resample: Any = None, **_: Any) -> Tensor:
            assert image.dtype == torch.uint8
            if not self.pillow:
                return F.interpolate(image, (size.height, size.width), mode="bilinear", antialias=True)
            pictures = [Image.fromarray(rgb.numpy()) for rgb in image.movedim(1, -1)]
            resized = [np.array(picture.resize((size.width, size.height), int(resample))) for picture in pictures]
            return torch.from_numpy(np.stack(resized)).movedim(-1, 1)

        def normalize(self, image: Tensor, mean: Tensor, std: Tensor, **_: Any) -> Tensor:
            return (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    return type("Lfm2VlImageProcessor", (published.Lfm2VlImageProcessor, Resizing), {})


def image_processor(**options: Any) -> Any:
    return _image_processor()(return_row_col_info=True, **options)


def seen(frames: list[Frame], **options: Any) -> Any:
    """What the published image processor makes of pictures that Pillow resizes."""
    processor = image_processor(**options)
    processor.pillow = True
    return processor([Image.fromarray(frame.rgb) for frame in frames], return_tensors="pt")


def processed(text: str, frames: list[Frame], **options: Any) -> dict[str, Tensor]:
    """The reference model's inputs for a text with an `<image>` for each picture."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor

    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    processor = Lfm2VlProcessor(image_processor(**{**SMALL, **options}), words)
    pictures = [Image.fromarray(frame.rgb) for frame in frames]
    inputs = processor(images=[pictures], text=[text], return_tensors="pt", add_special_tokens=False)
    return {name: inputs[name] for name in ("input_ids", "pixel_values", "pixel_attention_mask", "spatial_shapes")}
