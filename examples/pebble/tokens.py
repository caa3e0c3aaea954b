"""Pebble's tokenizer (byte-level BPE over the world's own text) and the token layout of a conversation.

Digits and capitals are never merged: numbers, codes and words are read and written character by character.
Layout, the same that the chat template renders:
    <|user|> [<|image|> media] [<|frame|> media]... question <|assistant|> answer <|end|> <|user|> ...
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.pebble.world import corpus

SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|image|>", "<|frame|>")
PAD, END, USER, ASSISTANT, SYSTEM, IMAGE, FRAME = range(len(SPECIAL))
TEMPLATE = """{%- for message in messages -%}
<|{{ message.role }}|>
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|image|>
{%- elif part.type == 'video' -%}<|frame|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'assistant' -%}<|end|>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def train_tokenizer(vocab: int, seed: int = 7, lines: int = 60000) -> Tokenizer:
    """A byte-level BPE of `vocab` entries, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\p{Lu}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(np.random.default_rng(seed), lines), trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, the chat template and the generation and processor configs."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {"eos_token": "<|end|>", "pad_token": "<|pad|>", "model_max_length": 1 << 30},
        "generation_config.json": {"eos_token_id": END, "pad_token_id": PAD},
        "processor_config.json": {
            "image_token": "<|image|>",
            "video_token": "<|frame|>",
            "fps": 2.0,
            "keep_token": True,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
