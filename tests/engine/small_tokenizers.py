"""Small tokenizers of the kinds that published models use, made in a moment, and a chat template with images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
CONTROLS += ["<|image_pad|>", "<|video_pad|>"]
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
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


def byte_level(alphabet: bool = True) -> tokenizers.Tokenizer:
    """Byte-level BPE with ChatML's control tokens, two that are not special, and a run of spaces."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        special_tokens=CONTROLS,
        show_progress=False,
    )
    made.train_from_iterator(["the user asked the assistant about a red circle, nothing else"] * 3, trainer)
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    made.add_tokens([AddedToken("   ", special=False)])
    return made


def byte_fallback(scheme: str = "first") -> tokenizers.Tokenizer:
    """BPE over `▁` for spaces with bytes as a fallback, as Llama's and Mistral's. `scheme`: where a space is put first;
    "llama" the older way, by a normalizer."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁▁",
        *"abcdehlorw<>/s",
        "he",
        "▁he",
    ]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    made = tokenizers.Tokenizer(
        models.BPE(vocab, [("h", "e"), ("▁", "he"), ("▁", "▁")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + ([] if scheme == "never" else [decoders.Strip(" ", 1, 0)]))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def save(folder: Path, tokenizer: tokenizers.Tokenizer, **config: Any) -> Path:
    """A model folder with the tokenizer and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
