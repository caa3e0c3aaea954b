"""The drafting head of Qwen3.5 and Qwen3-Next. Transformers drops `mtp.*`, so its equations are written out here once
more, over the tensors as they are published; and the laws of the decoder hold for the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.cli.app import app
from fluvial.engine.drafts import drafting
from fluvial.engine.feed import Feed
from fluvial.engine.loading import load_parts
from fluvial.engine.model import load_model
from fluvial.models.mtp import Mtp
from fluvial.models.state import State
from tests.engine import small_tokenizers
from tests.engine.scripted import decoding, said
from tests.models.zoo import distance, gap, row_of
from tests.parity.reference import TOLERANCE, error, perturbed, tokens
from tests.parity.test_qwen3_5 import MROPE, TEXT, VISION

HEADS, KV_HEADS, WIDTH, D, FF = 4, 2, 32, 64, 96
THETA, ROTARY, EPS = 5000.0, 16, 1e-6
FAMILIES = ("qwen3_5", "qwen3_5_text", "qwen3_next")


def published(seed: int = 3) -> dict[str, Tensor]:
    """A random head by its published names."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)

    layer = {"input_layernorm": (D,), "post_attention_layernorm": (D,), "mlp.down_proj": (D, FF)}
    layer |= {"mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D), "self_attn.o_proj": (D, HEADS * WIDTH)}
    layer |= {"self_attn.q_proj": (2 * HEADS * WIDTH, D), "self_attn.k_proj": (KV_HEADS * WIDTH, D)}
    layer |= {"self_attn.v_proj": (KV_HEADS * WIDTH, D), "self_attn.q_norm": (WIDTH,), "self_attn.k_norm": (WIDTH,)}
    shapes = {"fc": (D, 2 * D), "norm": (D,), "pre_fc_norm_embedding": (D,), "pre_fc_norm_hidden": (D,)}
    shapes |= {f"layers.0.{name}": shape for name, shape in layer.items()}
    return {f"mtp.{name}.weight": rand(*shape) for name, shape in shapes.items()}


def written_out(w: dict[str, Tensor], hidden: Tensor, following: Tensor) -> Tensor:
    """hidden, following [T, D] -> [T, D]: one token after another, one head after another."""
    w = {name.removeprefix("mtp.").removesuffix(".weight"): tensor.double() for name, tensor in w.items()}

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean() + EPS).sqrt() * (1 + w[name])

    def turned(x: Tensor, position: int) -> Tensor:
        half, out = ROTARY // 2, x.clone()
        for i in range(half):
            angle = torch.tensor(position * THETA ** (-2 * i / ROTARY), dtype=torch.float64)
            out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
            out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
        return out

    at, keys, values, outputs = "layers.0.", [], [], []
    for t, (h, e) in enumerate(zip(hidden.double(), following.double(), strict=True)):
        x = w["fc"] @ torch.cat([normed(e, "pre_fc_norm_embedding"), normed(h, "pre_fc_norm_hidden")])
        y = normed(x, at + "input_layernorm")
        q_and_gate = (w[at + "self_attn.q_proj"] @ y).view(HEADS, 2, WIDTH)  # per head: the query, then its gate
        k = (w[at + "self_attn.k_proj"] @ y).view(KV_HEADS, WIDTH)
        keys.append([turned(normed(row, at + "self_attn.k_norm"), t) for row in k])
        values.append((w[at + "self_attn.v_proj"] @ y).view(KV_HEADS, WIDTH))
        heads = []
        for head, (q, gate) in enumerate(q_and_gate):
            q, group = turned(normed(q, at + "self_attn.q_norm"), t), head // (HEADS // KV_HEADS)
            scores = torch.stack([q @ k[group] for k in keys]) / WIDTH**0.5
            mixed = sum(p * v[group] for p, v in zip(scores.softmax(0), values, strict=True))
            heads.append(mixed * gate.sigmoid())
        x = x + w[at + "self_attn.o_proj"] @ torch.cat(heads)
        y = normed(x, at + "post_attention_layernorm")
        gated = torch.nn.functional.silu(w[at + "mlp.gate_proj"] @ y) * (w[at + "mlp.up_proj"] @ y)
        outputs.append(normed(x + w[at + "mlp.down_proj"] @ gated, "norm"))
    return torch.stack(outputs)


def folder_of(kind: str, folder: Path) -> Path:
    """A random model of that kind as Transformers saves it, which is without the head; its config asks for one."""
    import transformers

    torch.manual_seed(7)
    if kind == "qwen3_5":
        ids = {"image_token_id": 190, "video_token_id": 191, "vision_start_token_id": 192, "vision_end_token_id": 193}
        text = {**TEXT, "rope_parameters": MROPE, "mtp_num_hidden_layers": 1}
        config = transformers.Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=True, **ids)
        model = transformers.Qwen3_5ForConditionalGeneration(config)
    elif kind == "qwen3_5_text":
        config = transformers.Qwen3_5TextConfig(**TEXT, rope_parameters=MROPE, mtp_num_hidden_layers=1)
        model = transformers.Qwen3_5ForCausalLM(config)
    else:
        rope = {key: value for key, value in MROPE.items() if not key.startswith("mrope")}
        config = transformers.Qwen3NextConfig(**TEXT, rope_parameters=rope, num_experts=0)
        model = transformers.Qwen3NextForCausalLM(config)
    perturbed(model).save_pretrained(folder)
    return folder


def with_head(source: Path, folder: Path, head: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    said = json.loads((source / "config.json").read_text())
    (said.get("text_config") or said).update(config)
    (folder / "config.json").write_text(json.dumps(said))
    save_file(load_file(source / "model.safetensors") | head, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(request.param, tmp_path_factory.mktemp("mtp") / request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("qwen3_5_text", tmp_path_factory.mktemp("mtp") / "qwen3_5_text")


def test_the_head_is_its_equations(plain: Path, tmp_path: Path):
    parts = load_parts(with_head(plain, tmp_path, published()))
    assert parts.draft_head is not None
    ids = tokens(parts.decoder.config.vocab, 25)
    hidden, _ = parts.decoder(parts.decoder.embed(ids[:, :-1]))
    following = parts.decoder.embed(ids[:, 1:])
    ours, state = parts.draft_head(hidden, following)
    off = error(ours[0], written_out(published(), hidden[0], following[0]).float())
    # a chain: the head's own hidden state, and the token that it drafts
    rows, e, links = [hidden[0]], [following[0]], []
    for _ in range(3):
        drafted = parts.decoder.embed(parts.decoder.logits(ours[:, -1:]).argmax(-1))
        rows, e = [*rows, ours[0, -1:]], [*e, drafted[0]]
        ours, state = parts.draft_head(ours[:, -1:], drafted, state)
        links.append(error(ours[0, -1], written_out(published(), torch.cat(rows), torch.cat(e))[-1].float()))
    print(f"parity  {plain.name + ' mtp':24} one-shot {off:.1e}  chain {max(links):.1e}")
    assert max(off, *links) <= TOLERANCE
    assert state.position == (27,) and state.nbytes("recurrent") == 0


def test_a_folder_without_the_head_loads_without_it(plain: Path):
    """Transformers drops the head whenever it saves, and leaves it in the config."""
    assert load_parts(plain).draft_head is None


def test_a_head_that_is_not_whole_is_an_error(one: Path, tmp_path: Path):
    for name in ("mtp.fc.weight", "mtp.layers.0.self_attn.k_norm.weight", "mtp.norm.weight"):
        head = published()
        del head[name]
        with pytest.raises(IntegrityError, match=r"lacks tensors: draft\."):
            load_parts(with_head(one, tmp_path, head))
    for odd in ("mtp.layers.1.input_layernorm.weight", "mtp.embed_tokens.weight", "mtp.fc.bias"):
        with pytest.raises(IntegrityError, match=odd.replace(".", r"\.")):
            load_parts(with_head(one, tmp_path, published() | {odd: torch.zeros(D)}))
    with pytest.raises(IntegrityError, match=r"mtp\.fc\.weight.*\[64, 128\]"):
        load_parts(with_head(one, tmp_path, published() | {"mtp.fc.weight": torch.zeros(D, D)}))


def test_heads_of_other_kinds_are_refused(one: Path, tmp_path: Path):
    for name in ("experts.0.up_proj", "gate", "shared_expert.up_proj", "shared_expert_gate", "experts.gate_up_proj"):
        tensor = {f"mtp.layers.0.mlp.{name}.weight": torch.zeros(FF, D)}
        with pytest.raises(UnsupportedError, match=r"mtp.*experts"):
            load_parts(with_head(one, tmp_path, published() | tensor))
    for option, value in {"mtp_num_hidden_layers": 2, "mtp_use_dedicated_embeddings": True}.items():
        with pytest.raises(UnsupportedError, match=f"{option} = {value}"):
            load_parts(with_head(one, tmp_path, published(), **{option: value}))
        assert load_parts(with_head(one, tmp_path, {}, **{option: value})).draft_head is None


# the laws, for the head


@pytest.fixture(scope="module")
def head(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Mtp:
    found = load_parts(with_head(one, tmp_path_factory.mktemp("mtp"), published()), torch.float64).draft_head
    assert found is not None
    return found


def pairs(batch: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, following = torch.randn(2, batch, count, D, generator=generator, dtype=torch.float64)
    return hidden, following


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    accepts=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_splits_and_commits(head: Mtp, sizes: list[int], accepts: list[float], seed: int):
    hidden, following = pairs(3, sum(sizes), seed)
    whole, end = head(hidden, following)
    state, parts = None, []
    for h, e in zip(hidden.split(sizes, 1), following.split(sizes, 1), strict=True):
        part, state = head(h, e, state)
        parts.append(part)
    assert state is not None
    assert gap(torch.cat(parts, 1), whole) <= 1e-10 and distance(state, end) <= 1e-10
    n = [round(share * hidden.shape[1]) for share in accepts]
    committed = head(hidden, following, journal=True)[1].commit(n)
    for b, count in enumerate(n):
        alone = head(hidden[b : b + 1, :count], following[b : b + 1, :count])[1] if count else head.init_state()
        assert distance(row_of(committed, b), alone) <= 1e-10


def test_a_saved_state_goes_on_and_no_other_model_takes_it(head: Mtp, tmp_path: Path):
    mark = head.fingerprint()
    hidden, following = pairs(1, 12, 1)
    head(hidden[:, :9], following[:, :9])[1].save(tmp_path / "a.state")
    state = State.restore(tmp_path / "a.state", model=mark)
    assert gap(head(hidden[:, 9:], following[:, 9:], state)[0], head(hidden, following)[0][:, 9:]) <= 1e-10
    with pytest.raises(IntegrityError, match="another model"):
        State.restore(tmp_path / "a.state", model="0" * 40)
    with pytest.raises(UsageError, match="do not fit"):
        head(hidden, following[:, 1:])


# what a user sees


def test_a_model_has_its_head_and_models_show_counts_it(one: Path, tmp_path: Path):
    count = sum(tensor.numel() for tensor in published().values())
    shown = {}
    for name, head in (("with", published()), ("without", {})):
        folder = with_head(one, tmp_path / name, head)
        small_tokenizers.save(folder, small_tokenizers.byte_level(), eos_token="<|im_end|>")
        model = load_model(folder)
        assert (model.draft_head is not None) == bool(head)
        result = CliRunner().invoke(app, ["models", "show", str(folder), "--json"])
        assert result.exit_code == 0, result.output
        shown[name] = json.loads(result.output)
        assert shown[name]["parameters"] == model.explain()["parameters"]
        assert shown[name]["draft_parameters"] == (count if head else 0)
    assert shown["with"]["parameters"] - shown["without"]["parameters"] == count


@pytest.mark.parametrize("quant", [None, "int4"])
def test_drafting_with_the_head_changes_no_token(one: Path, tmp_path: Path, quant: str | None):
    folder = with_head(one, tmp_path / "model", published())
    small_tokenizers.save(folder, small_tokenizers.byte_level(), eos_token="<|im_end|>")
    model, answers = load_model(folder, quant=quant), []
    for draft in (None, drafting("mtp", model)):
        run = decoding(Feed.start(model, draft=draft).ids(range(5, 30)), 3)
        answers.append(said(run, 12))
    assert answers[0] == answers[1] and run.drafted >= run.forwards - 1
