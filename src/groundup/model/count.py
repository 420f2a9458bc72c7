"""Parameters counted on paper, before anything is built. The verifier holds this equal to the built model."""

from __future__ import annotations

from groundup.model.config import ModelConfig


def count(config: ModelConfig) -> dict[str, int]:
    """total, embedding, attention, mlp, norm, head, active (what one token uses; equal to total without experts).

    A tied head counts under `embedding` and adds 0 under `head`.
    """
    d, h, kv, hd, f = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.d_ff
    bias = int(config.bias)
    norm = d * (1 + (bias if config.norm == "layernorm" else 0))
    attention = d * (h + 2 * kv) * hd + h * hd * d + bias * ((h + 2 * kv) * hd + d)
    ups = 2 if config.mlp == "swiglu" else 1
    mlp = (ups + 1) * d * f + bias * (ups * f + d)
    norms = config.n_layers * (2 * norm + (2 * hd if config.qk_norm else 0)) + norm
    embedding = config.vocab_size * d + (config.context * d if config.position == "learned" else 0)
    parts = {
        "embedding": embedding,
        "attention": config.n_layers * attention,
        "mlp": config.n_layers * mlp,
        "norm": norms,
        "head": 0 if config.tied else config.vocab_size * d,
    }
    total = sum(parts.values())
    return {"total": total, **parts, "active": total}
