"""Parameters counted on paper, before anything is built. The verifier holds this equal to the built model."""

from __future__ import annotations

from groundup.model.config import ModelConfig


def count(config: ModelConfig) -> dict[str, int]:
    """total, embedding, attention, mlp, norm, head; active: what one token uses (equal to total without experts).

    A tied head counts under `embedding` and adds only its bias under `head`. QK-norms count under `norm`, routers
    under `mlp`. `active` leaves out the experts a token does not use and nothing else.
    """
    c, d = config, config.d_model
    layers = range(c.n_layers)
    expert = idle = 0
    if c.moe is not None:
        matrices = (3 if c.gated else 2) * d
        expert = matrices * c.moe.d_expert * (c.moe.n_experts + c.moe.n_shared) + d * c.moe.n_experts
        expert += _mlp_bias(c, c.moe.n_shared * c.moe.d_expert) if c.moe.n_shared else 0
        idle = matrices * c.moe.d_expert * (c.moe.n_experts - c.moe.top_k)
    with_experts = sum(map(c.has_experts, layers))
    dense = (3 if c.gated else 2) * d * c.d_ff + _mlp_bias(c, c.d_ff)
    embedding = c.vocab_size * d
    embedding += c.context * d if c.position == "learned" else 0
    embedding += c.relative_buckets * c.n_heads if c.position == "t5" else 0
    parts = {
        "embedding": embedding,
        "attention": c.n_layers * attention(c),
        "mlp": (c.n_layers - with_experts) * dense + with_experts * expert,
        "norm": _norms(c),
        "head": (0 if c.tied else c.vocab_size * d) + (c.vocab_size if "head" in c.bias else 0),
    }
    total = sum(parts.values())
    return {"total": total, **parts, "active": total - with_experts * idle}


def attention(c: ModelConfig) -> int:
    """Parameters of one layer's attention without its norms."""
    d, h = c.d_model, c.n_heads
    out = h * c.v_dim * d + ("out" in c.bias) * d + (h if c.sinks else 0)
    if c.latent is not None:
        m = c.latent
        q = (d + h * c.qk_dim) * m.q_rank if m.q_rank else d * h * c.qk_dim
        return q + d * (m.kv_rank + m.rope_dim) + m.kv_rank * h * (m.nope_dim + m.v_dim) + out
    rows = (h + 2 * c.n_kv_heads) * c.head_dim
    return d * rows + ("qkv" in c.bias) * rows + out


def _mlp_bias(c: ModelConfig, hidden: int) -> int:
    return ("up" in c.bias) * (2 if c.gated else 1) * hidden + ("down" in c.bias) * c.d_model


def _norms(c: ModelConfig) -> int:
    each = int(c.norm_weight) + int(c.norm == "layernorm" and "norm" in c.bias)  # numbers a channel
    streams = {"sandwich": 4, "parallel_shared": 1}.get(c.block, 2) * c.n_layers + (c.block != "post")
    if c.latent is not None:
        inner = c.latent.kv_rank + c.latent.q_rank
    else:
        inner = {"head": 2 * c.head_dim, "full": (c.n_heads + c.n_kv_heads) * c.head_dim}.get(c.qk_norm, 0)
    return each * (streams * c.d_model + c.n_layers * inner)
