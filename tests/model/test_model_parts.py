"""Each part of the model against its formula, written out once more by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_shapes import build, config, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from groundup.model.attention import attend, attention_mask
from groundup.model.block import BLOCKS
from groundup.model.config import CHOICES, ModelConfig, RopeScaling
from groundup.model.count import count
from groundup.model.flops import train_flops_per_token
from groundup.model.init import init_weights
from groundup.model.mlp import ACTIVATIONS
from groundup.model.moe import ExpertMLP
from groundup.model.position import (
    SCALED,
    alibi_slopes,
    dynamic_angles,
    relative_buckets,
    rope_rates,
    rope_table,
    rotate,
    sinusoids,
)
from groundup.model.transformer import Transformer


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_parts_are_those_that_the_config_names() -> None:
    """Bug: a choice that the recipe accepts and no part computes, or a part that nobody can choose."""
    assert tuple(BLOCKS) == CHOICES["block"]
    assert tuple(ACTIVATIONS) == CHOICES["mlp"]
    assert tuple(SCALED) == CHOICES["rope_scaling.kind"]


def test_the_recipe_has_the_fields_and_defaults_of_the_config() -> None:
    """Bug: a field that only one of the two knows, or that starts elsewhere in each."""
    from groundup.plan.resolve import SEARCH_ONLY
    from groundup.recipe.schema import LatentSection, ModelSection, MoeSection, RopeScalingSection

    section = {k: v for k, v in ModelSection().model_dump().items() if k not in SEARCH_ONLY}
    sizes = {"vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "context"}
    shape = config().to_dict()
    assert set(section) | {"vocab_size"} == set(shape)
    plain = ModelConfig(300, 32, 3, 4, 2, 8, 56, 40).to_dict()
    assert {k: v for k, v in section.items() if k not in sizes} == {k: v for k, v in plain.items() if k not in sizes}
    inner: list[tuple[Any, dict[str, Any]]] = [
        (RopeScalingSection, {"rope_scaling": {"kind": "yarn", "factor": 2.0, "original_context": 8}}),
        (LatentSection, {"latent": {"kv_rank": 4, "nope_dim": 4, "rope_dim": 4, "v_dim": 4}}),
        (MoeSection, {"moe": {"n_experts": 4, "top_k": 2, "d_expert": 8}}),
    ]
    for kind, given in inner:
        (name, values), *_ = given.items()
        assert kind(**values).model_dump() == ModelConfig(300, 32, 3, 4, 4, 8, 56, 40, **given).to_dict()[name]


@pytest.mark.parametrize("window", [1, 5, 24, 40])
def test_a_window_is_that_many_tokens_its_own_included(window: int) -> None:
    """Bug: one token more or fewer than the model was trained with; packed rows and caches counted otherwise."""
    t = 24
    distance = torch.arange(t)[:, None] - torch.arange(t)[None]
    expected = (distance >= 0) & (distance < window)
    positions = torch.arange(t)[None]
    plain = attention_mask(None, positions, None, window)
    if plain is None:
        assert window >= t
    else:
        assert torch.equal(plain[0, 0], expected)
    documents = torch.tensor([[0] * 10 + [1] * 14])
    packed = attention_mask(documents, positions, None, window)
    assert packed is not None
    assert torch.equal(packed[0, 0], expected & (documents[0][:, None] == documents[0][None]))

    class Slots:
        def slots(self, positions: torch.Tensor) -> int:
            return t

    cached = attention_mask(None, positions, Slots(), window)  # type: ignore[arg-type]
    assert cached is not None and torch.equal(cached[0, 0], expected)


def test_a_deep_windowed_model_sees_as_far_as_its_layers_reach() -> None:
    """Bug: the window applied to all layers, or to the wrong ones of the pattern (local first: L, L, G)."""
    ids = tokens(1, 30)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 300

    def moved(**shape: Any) -> list[int]:
        model = build(**shape)
        with torch.no_grad():
            a, b = (model.logits(model(x))[0] for x in (ids, changed))
        return (a != b).any(-1).nonzero()[:, 0].tolist()

    assert moved(window=4, n_layers=3) == list(range(10))  # three layers of three tokens back: 1 + 3 * 3
    assert moved(window=4, window_pattern="LLG", n_layers=3) == list(range(30))
    # global first: its reach is spread by the layers above, but a lone local layer on top cannot undo that
    assert moved(window=4, window_pattern="L", n_layers=1) == list(range(4))


def reference_rates(kind: str, dim: int, base: float, s: dict[str, float]) -> list[float]:
    """The published formulas, one plane at a time, in Python's own numbers."""
    out = []
    for i in range(dim // 2):
        rate = base ** (-2 * i / dim)
        if kind == "linear":
            rate /= s["factor"]
        elif kind == "ntk":
            rate = (base * s["factor"] ** (dim / (dim - 2))) ** (-2 * i / dim)
        elif kind == "yarn":
            turns = s["original_context"] * rate / (2 * math.pi)
            low = math.floor(dim * math.log(s["original_context"] / (32 * 2 * math.pi)) / (2 * math.log(base)))
            high = math.ceil(dim * math.log(s["original_context"] / (1 * 2 * math.pi)) / (2 * math.log(base)))
            share = min(max((i - max(low, 0)) / (min(high, dim - 1) - max(low, 0)), 0), 1)
            if turns > 33:
                assert share < 0.2  # planes that turn often are left alone
            rate = share * rate / s["factor"] + (1 - share) * rate
        elif kind == "llama3":
            wavelength = 2 * math.pi / rate
            if wavelength > s["original_context"] / 1.0:
                rate /= s["factor"]
            elif wavelength >= s["original_context"] / 4.0:
                smooth = (s["original_context"] / wavelength - 1) / 3
                rate = (1 - smooth) * rate / s["factor"] + smooth * rate
        out.append(rate)
    return out


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn", "llama3"])
def test_stretched_rotations_follow_the_published_formulas(kind: str) -> None:
    """Bug: a ramp the wrong way round, or the factor applied to the fast planes: long texts read like noise."""
    s = {"factor": 8.0, "original_context": 8192}
    rates, factor = rope_rates(128, 500000.0, RopeScaling(kind, **s))  # type: ignore[arg-type]
    assert torch.allclose(rates.double(), torch.tensor(reference_rates(kind, 128, 500000.0, s)).double(), rtol=2e-5)
    assert factor == (pytest.approx(0.1 * math.log(8) + 1) if kind == "yarn" else 1.0)


def test_dynamic_scaling_changes_nothing_up_to_the_original_context() -> None:
    """Bug: the base grows from the first token on, or from the length of another row's text."""
    plain = build(context=64)
    scaling = {"kind": "dynamic", "factor": 2.0, "original_context": 16}
    model = build(context=64, rope_scaling=scaling)
    ids = tokens(1, 40)
    with torch.no_grad():
        assert torch.equal(model(ids[:, :16]), plain(ids[:, :16]))
        assert not torch.allclose(model(ids), plain(ids), atol=1e-2)
        # each packed document has the base of its own length
        documents = torch.tensor([[0] * 10 + [1] * 30])
        positions = torch.cat([torch.arange(10), torch.arange(30)])[None]
        packed = model(ids, documents=documents, positions=positions)
        assert torch.allclose(packed[:, :10], model(ids[:, :10]), atol=1e-4)
        assert torch.allclose(packed[:, 10:], model(ids[:, 10:]), atol=1e-4)


def test_dynamic_angles_need_no_square_of_the_length() -> None:
    """Bug: lengths found by comparing each place with each: 8 bytes a pair, 130 GB for a text of 128k tokens."""
    shape = config(context=600, rope_scaling={"kind": "dynamic", "factor": 2.0, "original_context": 16})
    documents = (torch.arange(600)[None] // 200 - 1).repeat(2, 1)
    positions = torch.arange(600)[None] % 200
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Watch():
        found = dynamic_angles(shape, documents, positions)
    assert largest <= 2 * 2 * 600 * shape.rope_dim < 600 * 600
    rates, _ = rope_rates(8, 500.0, shape.rope_scaling, 200)
    assert torch.equal(found, rope_table(200, rates).repeat(1, 3, 1)[:, None].expand(-1, 2, -1, -1))


def test_partial_rotation_turns_the_first_dimensions_and_leaves_the_rest() -> None:
    """Bug: the last dimensions turned, or the rates of a full head used for half of one."""
    x, rates = draw(1, 5, 2, 8), rope_rates(4, 100.0)[0]
    angle = torch.outer(torch.arange(5.0), rates)
    cos, sin = (f(torch.cat([angle, angle], -1))[None, :, None] for f in (torch.cos, torch.sin))
    y = rotate(x, cos, sin)
    assert torch.equal(y[..., 4:], x[..., 4:])
    for place in range(5):
        for plane in range(2):
            a, b = x[0, place, 0, plane], x[0, place, 0, plane + 2]
            turn = place * 100.0 ** (-plane / 2)
            assert float(y[0, place, 0, plane]) == pytest.approx(
                float(a * math.cos(turn) - b * math.sin(turn)), abs=1e-5
            )
            assert float(y[0, place, 0, plane + 2]) == pytest.approx(
                float(a * math.sin(turn) + b * math.cos(turn)), abs=1e-5
            )


def test_layers_without_position_see_no_order_among_the_past() -> None:
    """Bug: rope_pattern read from the wrong end, so that other layers than the named ones are rotated."""
    shape = config(rope_pattern="RRN", n_layers=7)
    assert [shape.is_rotated(layer) for layer in range(7)] == [True, True, False, True, True, False, True]
    angles = Transformer(shape).angles_of_layers(None, torch.arange(5)[None])
    assert [a is not None for a in angles] == [True, True, False, True, True, False, True]


def test_alibi_slopes_are_the_published_ones() -> None:
    """Bug: slopes that are not a geometric series: heads look equally far. 8 heads: 1/2, 1/4, ..., 1/256."""
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(12).tolist()[8:] == pytest.approx([2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5])


def test_alibi_takes_off_slope_times_distance() -> None:
    """Bug: the sign, or the distance from the row's start instead of from the query."""
    model = Transformer(config(position="alibi", n_heads=4, n_kv_heads=4))
    mask = model.mask(None, torch.arange(6)[None], None, False)
    assert mask is not None
    assert float(mask[0, 1, 5, 2]) == -3 * 2.0**-4
    assert float(mask[0, 1, 2, 5]) == -math.inf


def test_relative_buckets_are_exact_near_and_logarithmic_far() -> None:
    """Bug: the bidirectional form (half the buckets for the future), or a border that is off by one."""
    found = relative_buckets(torch.tensor([-3, 0, 1, 15, 16, 20, 31, 64, 127, 128, 5000]), 32, 128)
    far = [16 + int(math.log(d / 16) / math.log(128 / 16) * 16 + 1e-6) for d in (16, 20, 31, 64, 127)]
    assert found.tolist() == [0, 0, 1, 15, *far, 31, 31]


def test_sinusoids_are_those_of_the_first_transformer() -> None:
    """Bug: sines and cosines in halves where the paper interleaves them."""
    table = sinusoids(50, 8)
    for place in (0, 7, 49):
        for i in range(4):
            turn = place / 10000 ** (2 * i / 8)
            assert float(table[place, 2 * i]) == pytest.approx(math.sin(turn), abs=1e-5)
            assert float(table[place, 2 * i + 1]) == pytest.approx(math.cos(turn), abs=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv", [1, 2, 4])
def test_capped_attention_with_sinks_is_its_formula(kv: int, masked: bool) -> None:
    """Bug: the cap after the mask (tanh of -inf is -1: the future leaks), a sink with a value, groups mixed up."""
    q, k, v = draw(2, 4, 6, 8), draw(2, kv, 6, 8, seed=1), draw(2, kv, 6, 5, seed=2)
    sinks = draw(4, seed=3)
    mask = torch.ones(6, 6).tril().bool()[None, None] if masked else None
    found = attend(q, k, v, mask, 0.5, 2.0, sinks)
    last = attend(q[:, :, 5:], k, v, torch.ones(1, 1, 1, 6, dtype=torch.bool), 0.5, 2.0, sinks)
    for h in range(4):
        head = h // (4 // kv)
        scores = 2.0 * torch.tanh(0.5 * q[:, h] @ k[:, head].mT / 2.0)
        weights = scores.exp() * torch.ones(6, 6).tril()
        expected = (weights / (weights.sum(-1, keepdim=True) + sinks[h].exp())) @ v[:, head]
        assert torch.allclose(found[:, :, h], expected, atol=1e-5)
        assert torch.allclose(last[:, 0, h], expected[:, 5], atol=1e-5)


def test_norm_offset_is_the_identity_weight_at_zero() -> None:
    """Bug: 1 + weight initialised at 1, so that every norm doubles; or the offset missing, so that all is 0."""
    offset, plain = build(norm_offset=True), build()
    state = {k: v - 1 if "norm" in k else v for k, v in plain.state_dict().items()}
    offset.load_state_dict(state)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.allclose(offset(ids), plain(ids), atol=1e-5)
    fresh = init_weights(Transformer(config(norm_offset=True)), 0)
    assert all(not p.any() for n, p in fresh.named_parameters() if "norm" in n)


def arranged(block: Any, x: torch.Tensor) -> torch.Tensor:
    """The block's parts put together by the formula that its name stands for."""
    positions = torch.arange(x.shape[1])[None]

    def attention(y: torch.Tensor) -> torch.Tensor:
        return block.attention(y, None, None, positions, None)

    kind = block.attention.config.block
    if kind == "pre":
        x = x + attention(block.norm1(x))
        return x + block.mlp(block.norm2(x))
    if kind == "post":
        x = block.norm1(x + attention(x))
        return block.norm2(x + block.mlp(x))
    if kind == "output":
        x = x + block.norm1_out(attention(x))
        return x + block.norm2_out(block.mlp(x))
    if kind == "sandwich":
        x = x + block.norm1_out(attention(block.norm1(x)))
        return x + block.norm2_out(block.mlp(block.norm2(x)))
    if kind == "parallel":
        return x + attention(block.norm1(x)) + block.mlp(block.norm2(x))
    return x + attention(block.norm1(x)) + block.mlp(block.norm1(x))


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_arrangement_is_its_formula(kind: str) -> None:
    """Bug: a norm left out, doubled or on the wrong side of the residual."""
    model = build(block=kind, position="none")
    x = draw(2, 7, 32)
    with torch.no_grad():
        for block in model.blocks:
            assert torch.allclose(block(x, None, None, torch.arange(7)[None], None), arranged(block, x), atol=1e-5)


def experts(**moe: Any) -> ExpertMLP:
    values = {"n_experts": 5, "top_k": 2, "d_expert": 12, **moe}
    return build(moe=values, n_layers=1).blocks[0].mlp  # type: ignore[return-value]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", [True, False])
def test_experts_are_a_weighted_sum_of_the_chosen(score: str, normalise: bool) -> None:
    """Bug: tokens sorted to the experts and not sorted back, weights of other tokens, a shared expert forgotten."""
    layer = experts(score=score, normalise=normalise, scale=1.5, n_shared=1)
    x = draw(3, 7, 32)
    with torch.no_grad():
        found = layer(x)
        for row, y in zip(x.view(-1, 32), found.view(-1, 32), strict=True):
            logits = layer.router.weight @ row
            scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
            chosen = scores.argsort(descending=True)[:2]
            weights = scores[chosen] / (scores[chosen].sum() if normalise else 1) * 1.5
            expected = layer.shared(row)  # type: ignore[misc]
            for e, weight in zip(chosen.tolist(), weights, strict=True):
                gate, up = (layer.gate_up[e] @ row).chunk(2)
                expected = expected + weight * (layer.down[e] @ (F.silu(gate) * up))
            assert torch.allclose(y, expected, atol=1e-5)


def test_the_balance_loss_is_its_weight_when_even_and_more_when_not() -> None:
    """Bug: f and P of different tokens, or a loss that is lowest when one expert takes all."""
    layer = experts(balance_weight=0.5, top_k=1, normalise=False)
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(draw(1, 4, 32))
    assert float(layer.pending.detach()) == pytest.approx(0.5)  # type: ignore[union-attr]  # P is 1/E everywhere
    with torch.no_grad():
        layer.router.weight[2] = 10.0
    layer(draw(1, 4, 32).abs())
    assert float(layer.pending.detach()) == pytest.approx(0.5 * 5, rel=1e-3)  # type: ignore[union-attr]  # one takes all


def test_the_loss_free_bias_moves_towards_the_idle_and_stays_out_of_the_weights() -> None:
    """Bug: the bias enters the output (it is then a loss of its own), or pushes the busy expert further."""
    layer = experts(balance="bias", bias_rate=0.25, score="sigmoid")
    x = draw(2, 20, 32)
    layer(x)
    load = layer.load.clone()
    assert int(load.sum()) == 2 * 20 * 2
    assert layer.end_step(applied=False) == pytest.approx(float(load.max() / load.mean()))
    assert not layer.balance_bias.any() and not layer.load.any()  # a refused step moves nothing, and is forgotten
    layer(x)
    layer.end_step(applied=True)
    assert torch.equal(layer.balance_bias, 0.25 * torch.sign(load.mean() - load))
    with torch.no_grad():
        layer.balance_bias.zero_()
        before = layer(x)
        layer.balance_bias += 3.0  # the same for all: the choice stays, so must the result
        assert torch.equal(layer(x), before)


def test_router_losses_are_read_once_and_only_with_gradients() -> None:
    """Bug: validation's routing added to the next training step, or one loss counted twice."""
    model, ids = build(moe={"n_experts": 4, "top_k": 2, "d_expert": 12}), tokens(1, 8)
    with torch.no_grad():
        model(ids)
    assert model.router_loss() is None
    model(ids)
    first = model.router_loss()
    assert (
        first is not None and first.requires_grad and 0.03 * 0.9 < float(first.detach()) < 0.2
    )  # three layers of 0.01
    assert model.router_loss() is None
    assert build().router_loss() is None and build().end_step(True) is None


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_padding_does_not_enter_the_balance(balance: str) -> None:
    """Bug: padding, one token over and over, fills the same few experts, and the router steers real text off them."""
    moe = {"n_experts": 5, "top_k": 2, "d_expert": 12, "balance": balance, "z_weight": 0.01, "first_dense": 1}
    model, ids = build(moe=moe), tokens(2, 12)
    documents, positions = torch.zeros(2, 12, dtype=torch.int32), torch.arange(12)[None]

    def balanced(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model.zero_grad()
        model(given[0], documents=given[1], positions=given[2])
        loss = model.router_loss()
        assert loss is not None
        loss.backward()
        layers = [b.mlp for b in model.blocks[1:]]
        found = [loss.detach(), *(m.load.clone() for m in layers), *(m.router.weight.grad.clone() for m in layers)]
        model.end_step(False)
        return tuple(found)

    padded = F.pad(ids, (0, 9), value=7), F.pad(documents, (0, 9), value=-1), torch.arange(21)[None]
    plain, found = balanced(ids, documents, positions), balanced(*padded)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, found, strict=True))
    counted = balanced(padded[0], padded[1].clamp(min=0), padded[2])
    assert not torch.equal(counted[1], plain[1])  # without the sign it counts
    with torch.no_grad():
        model.blocks[1].mlp(draw(1, 3, 32))  # and no mark is left behind for a call of another size
    model(padded[0], documents=torch.full_like(padded[1], -1))
    assert model.router_loss() is None


def test_a_router_that_wants_no_expert_gives_numbers() -> None:
    """Bug: all sigmoids 0 in fp32, divided by their sum: NaN in the output, and in every weight after the step."""
    layer = experts(score="sigmoid")
    with torch.no_grad():
        layer.router.weight.fill_(-100.0)
    y = layer(draw(1, 4, 32).abs().requires_grad_())
    (y.sum() + layer.pending).backward()  # type: ignore[operator]
    assert not y.any() and all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_latent_attention_keeps_only_the_latent() -> None:
    """Bug: a cache as large as that of plain heads, which is all that latent attention is for."""
    shape = config(n_kv_heads=4, qk_norm="none", latent={"kv_rank": 12, "nope_dim": 8, "rope_dim": 4, "v_dim": 6})
    assert shape.cache_shape == (1, 16, 0)
    assert (shape.qk_dim, shape.v_dim, shape.rope_dim) == (12, 6, 4)


@pytest.mark.parametrize(("init", "expected"), [("gpt2", 0.02), ("xavier", (2 / 64) ** 0.5), ("he", (2 / 32) ** 0.5)])
def test_initial_sizes_are_those_of_the_scheme(init: str, expected: float) -> None:
    """Bug: fans of the packed matrix instead of those of q, k and v; outputs not scaled down with the depth."""
    model = init_weights(Transformer(config(init=init, n_kv_heads=4, n_layers=8)), 0)
    q, k, v = (torch.stack(x) for x in zip(*(b.attention.qkv.weight.split(32) for b in model.blocks), strict=True))
    out = torch.stack([b.attention.out.weight for b in model.blocks])
    for matrices in (q, k, v):
        assert float(matrices.std()) == pytest.approx(expected, rel=0.05)
    assert float(out.std()) == pytest.approx(expected / 4, rel=0.05)  # sqrt(2 * 8) = 4
    assert float(model.embed.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_depth_init_writes_less_further_up_and_zero_out_nothing_at_all() -> None:
    """Bug: one scale for all layers; or a zeroed attention beside an mlp that is not."""
    model = init_weights(Transformer(config(init="depth", n_layers=8)), 0)
    for layer, block in enumerate(model.blocks):
        assert float(block.mlp.down.weight.std()) == pytest.approx(0.02 / math.sqrt(2 * (layer + 1)), rel=0.1)
    silent = init_weights(Transformer(config(zero_out=True)), 0).eval()
    ids = tokens(1, 6)
    with torch.no_grad():
        assert torch.equal(silent(ids), silent.norm(silent.embed(ids)))


def test_mup_shrinks_matrices_and_logits_with_the_width() -> None:
    """Bug: logits that grow with the width, so that a rate tuned on a small model breaks a large one."""
    wide = config(init="mup", mup_width=16, d_model=64, head_dim=16)
    model = init_weights(Transformer(wide), 0)
    assert wide.output_scale == 0.25
    assert float(model.blocks[0].attention.qkv.weight.std()) == pytest.approx(0.02 / 2, rel=0.05)
    assert float(model.embed.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_scales_and_caps_stand_where_they_should() -> None:
    """Bug: the embedding's scale on the head too (tied), the cap before the scale."""
    plain, scaled = build(), build(embed_scale=3.0, logit_scale=0.5, logit_softcap=2.0)
    scaled.load_state_dict(plain.state_dict())
    ids = tokens(1, 5)
    with torch.no_grad():
        x = plain.embed(ids) * 3.0
        angles, positions = plain.angles_of_layers(None, torch.arange(5)[None]), torch.arange(5)[None]
        for angle, block in zip(angles, plain.blocks, strict=True):
            x = block(x, angle, None, positions, None)
        expected = 2.0 * torch.tanh(F.linear(plain.norm(x), plain.embed.weight) * 0.5 / 2.0)
        assert torch.allclose(scaled.logits(scaled(ids)), expected, atol=1e-5)


def test_active_parameters_and_flops_leave_out_idle_experts() -> None:
    """Bug: a mixture of experts planned as if each token used all of it: days for hours."""
    dense = config(mlp="swiglu", d_ff=48)
    sparse = config(d_ff=48, moe={"n_experts": 8, "top_k": 2, "d_expert": 24, "n_shared": 0})
    router = 3 * 8 * 32
    assert count(sparse)["active"] == count(dense)["total"] + router
    assert count(sparse)["total"] - count(sparse)["active"] == 3 * 6 * 3 * 32 * 24
    assert train_flops_per_token(sparse) == train_flops_per_token(dense) + 6 * router
    windowed = config(window=10, window_pattern="LLG")
    spared = 12 * 4 * 8 * 2 * (40 - 10)
    assert train_flops_per_token(config()) - train_flops_per_token(windowed) == spared
