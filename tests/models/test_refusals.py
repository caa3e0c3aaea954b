"""What a decoder refuses, and in which words."""

from __future__ import annotations

import pytest
import torch

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
from tests.models.zoo import BLOCKS, decoder, inputs


def test_bad_calls_say_what_is_wrong():
    model = decoder("gated_delta")
    with pytest.raises(UsageError, match="at least one token"):
        model(inputs(1, 0, 1))
    with pytest.raises(UsageError, match="rows"):
        model(inputs(2, 3, 1), model.init_state(1))
    with pytest.raises(UsageError, match="positions"):
        model(inputs(2, 3, 1), positions=torch.zeros(3, 2, 4, dtype=torch.long))
    with pytest.raises(UsageError, match="mrope"):
        decoder("transformer")(inputs(2, 3, 1), positions=torch.zeros(3, 2, 3, dtype=torch.long))
    with pytest.raises(UsageError, match="lengths"):
        model(inputs(2, 3, 1), lengths=(4, 1))


def test_unknown_words_in_a_block_list_are_refused():
    for blocks, words in (
        ([BlockConfig("mamba3")], {}),
        ([BlockConfig("gated_delta", {"heads": 2, "d_k": 8, "d_v": 8, "gate": "soft"})], {}),
        (BLOCKS["mamba2"], {"norm": "batch"}),
    ):
        with pytest.raises(UnsupportedError):
            Decoder(DecoderConfig(8, 16, tuple(blocks), **words))
