"""Why each component of a design was chosen: value, reason, source. Numbers in the reasons are this design's own."""

from __future__ import annotations

from dataclasses import dataclass

from groundup.model.config import ModelConfig
from groundup.plan.design import Design
from groundup.plan.reduce import STRETCH
from groundup.plan.shapes import GROUPED_FROM, TIED_BELOW, TIED_SHARE, aspect, ff_multiple, levine_depth, rope_bound


@dataclass(frozen=True)
class Reason:
    component: str
    value: str
    reason: str
    source: str


def cache_bytes(config: ModelConfig) -> int:
    """Bytes that decoding keeps for one token, in bf16: a key and a value of every kv head in every layer."""
    return 2 * 2 * config.n_layers * config.n_kv_heads * config.head_dim


def reasons(design: Design) -> list[Reason]:
    """One entry a component, from the vocabulary to the head."""
    return [
        _vocabulary(design),
        _context(design),
        _position(design),
        Reason(
            "norm",
            f"{design.config.norm}, {design.config.block}",
            "no mean and no bias: as good as LayerNorm and cheaper; norms before each part let deep stacks train "
            "without a long warm-up",
            "arXiv 1910.07467, 2002.04745",
        ),
        _proportions(design),
        _heads(design),
        _attention(design),
        Reason(
            "qk_norm",
            design.config.qk_norm,
            "bounds the attention scores: without it they grow with the learning rate until training diverges",
            "arXiv 2302.05442, 2309.14322; Qwen3, OLMo 2",
        ),
        *_feed_forward(design),
        _head(design),
        Reason(
            "bias, dropout",
            "none, 0",
            "without biases large models train more stably; text that is seen about once leaves little to over-fit",
            "arXiv 2204.02311, section 2",
        ),
        Reason(
            "init",
            f"{design.config.init}, {design.config.init_std}",
            "what writes into the residual stream starts smaller by the root of twice the depth",
            "GPT-2 (Radford et al. 2019), section 2.3",
        ),
    ]


def _by_hand(design: Design, *names: str) -> str:
    """How the reason begins for what was given."""
    if not any(getattr(design.ask.given, name) for name in names):
        return ""
    return "given, then reduced; " if design.changes else "given; "


def _vocabulary(design: Design) -> Reason:
    c = design.config
    if design.ask.vocab:
        return Reason("vocabulary", f"{c.vocab_size:,}", "given", "you")
    return Reason(
        "vocabulary",
        f"{c.vocab_size:,}",
        "compute-optimal for the size: larger models carry larger vocabularies (43K at 3B, 216K at 70B)",
        "arXiv 2407.13623",
    )


def _context(design: Design) -> Reason:
    context = design.config.context
    if design.ask.context:
        return Reason("context", f"{context:,}", "given", "you")
    why = "what published models of this size were first trained on"
    return Reason("context", f"{context:,}", why, "GPT-2, Llama 1 to 3")


def _position(design: Design) -> Reason:
    c = design.config
    return Reason(
        "position",
        f"{c.position}, base {c.rope_base:,.0f}",
        f"relative places without parameters, and stretchable later; to tell {c.context:,} places apart the base must "
        f"be above {rope_bound(c.context):,.0f}",
        "arXiv 2104.09864, 2405.14591",
    )


def _proportions(design: Design) -> Reason:
    c, n = design.config, design.parameters["active"]
    given, usual = _by_hand(design, "width", "layers"), aspect(c.d_model)
    if 1 / STRETCH <= c.d_model / c.n_layers / usual <= STRETCH:
        flat = "Loss is flat around it: 6 x 4,288 came within 3% of 48 x 1,600"
    else:
        flat = "This is far from it: what loss such proportions cost has hardly been measured"
    return Reason(
        "depth and width",
        f"{c.n_layers} x {c.d_model:,}",
        f"{given}{c.d_model / c.n_layers:.0f} wide a layer; published models of this width keep about {usual:.0f}. "
        f"{flat}. Theory would go to {levine_depth(n)} layers; layers run one after the other and cost speed",
        "arXiv 2001.08361 (section 3.1), 2006.12467",
    )


def _heads(design: Design) -> Reason:
    c = design.config
    given = _by_hand(design, "heads", "head_dim")
    return Reason(
        "heads",
        f"{c.n_heads} of {c.head_dim}",
        f"{given}64 to 128 a head is usual, less where the width is small; the heads together are "
        f"{c.n_heads * c.head_dim / c.d_model:.3g} x the width",
        "arXiv 1706.03762, 2305.13245",
    )


def _attention(design: Design) -> Reason:
    c = design.config
    kind = "MHA" if c.n_kv_heads == c.n_heads else "MQA" if c.n_kv_heads == 1 else "GQA"
    full = cache_bytes(c) * c.n_heads // c.n_kv_heads
    sizes = f"the cache takes {cache_bytes(c) / 1024:,.1f} KiB a token"
    if _by_hand(design, "kv_heads") or design.ask.attention != "auto":
        why = f"given; {sizes}"
    elif kind == "MHA":
        why = f"below {GROUPED_FROM / 1e6:.0f}M parameters {sizes}, and sharing would save little"
    else:
        why = (
            f"{c.n_heads // c.n_kv_heads} query heads share a key and a value: {sizes} instead of "
            f"{full / 1024:,.1f}, at nearly the quality; up to 8 kv heads divide over the devices of a node"
        )
    return Reason("attention", f"{kind}, {c.n_kv_heads} kv heads", why, "arXiv 2305.13245, 1911.02150")


def _feed_forward(design: Design) -> list[Reason]:
    c = design.config
    gate = Reason("feed-forward", c.mlp, "better than GELU at equal parameters", "arXiv 2002.05202")
    if c.moe:
        m, counted = c.moe, design.parameters
        share = counted["active"] / counted["total"]
        return [
            gate,
            Reason(
                "experts",
                f"{m.top_k} of {m.n_experts}, {m.d_expert:,} wide",
                f"a token uses {m.top_k * m.d_expert / c.d_model:.2f} times the width, as a plain layer would, and "
                f"{share:.0%} of all parameters; many small experts beat few large ones; none shared",
                "arXiv 2409.02060, 2401.06066",
            ),
            Reason(
                "balance",
                f"{m.balance} {m.balance_weight:g}, z {m.z_weight:g}",
                "the auxiliary loss keeps all experts in use, the z-loss the router's logits small",
                "arXiv 2101.03961, 2202.08906",
            ),
        ]
    given, multiple = _by_hand(design, "d_ff"), ff_multiple(c.d_model)
    return [
        gate,
        Reason(
            "d_ff",
            f"{c.d_ff:,}",
            f"{given}{c.d_ff / c.d_model:.2f} times the width (8/3 has the parameters of a plain layer of 4)"
            + (f", a multiple of {multiple} for the matrix units" if c.d_ff % multiple == 0 else ""),
            "arXiv 2002.05202",
        ),
    ]


def _head(design: Design) -> Reason:
    c, total = design.config, design.parameters["total"]
    share = c.vocab_size * c.d_model / (total + (c.vocab_size * c.d_model if c.tied else 0))  # of it untied
    if design.ask.given.tied is not None:
        why = f"given; one table is {share:.1%} of an untied model"
    elif c.tied and design.target < TIED_BELOW:
        why = f"below 1B a second table, {share:.1%} of the model, is better spent on layers"
    elif c.tied:
        why = f"a second table would be {share:.1%} of the model, over {TIED_SHARE:.0%}"
    else:
        why = f"the head is {share:.1%} of the model, below {TIED_SHARE:.0%}: cheap, and free to differ from the input"
    return Reason("output head", "tied" if c.tied else "untied", why, "arXiv 1608.05859, 2402.14905; Qwen3, Llama 3.2")
