"""What a recipe will cost: FLOPs, tokens, memory, time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.model.flops import train_flops_per_token
from groundup.plan.host import Host, matmul_rate, peak_flops
from groundup.plan.resolve import Resolved, model_config
from groundup.recipe.schema import Recipe, TrainSection


def budget(recipe: Recipe, host: Host, notes: list[Resolved]) -> dict[str, Any]:
    """The plan as plain data (plan.json). Measures the matmul rate of this machine: about two seconds."""
    config = model_config(recipe)
    parameters = count(config)
    stage = recipe.pretrain
    precision = str(stage.precision)
    tokens = int(stage.steps) * stage.batch_size * config.context
    per_token = train_flops_per_token(config)
    rows = min(int(stage.micro_batch_size), stage.batch_size) * config.context
    peak = peak_flops(host.device, precision)
    # More rows than this go no faster, and would keep a slow CPU measuring for a minute.
    at_shape = matmul_rate(host.device, precision, (min(rows, 4096), config.d_model, config.d_ff))
    memory = training_memory(config, stage)
    ratio = tokens / parameters["total"]
    return {
        "parameters": parameters,
        "flops_per_token": per_token,
        "tokens": tokens,
        "tokens_per_parameter": round(ratio, 2),
        "tokens_note": _tokens_note(ratio),
        "flops": per_token * tokens,
        "memory": memory,
        "memory_fits": memory["total"] < 0.8 * host.memory,
        "peak_flops": peak,
        "matmul_flops": at_shape,
        "seconds": per_token * tokens / (min(at_shape, peak) * STEP_SHARE),
        "host": asdict(host),
        "config": config.to_dict(),
        "resolved": [asdict(note) for note in notes],
    }


# Share of a training step's time that its matmuls take; the rest is attention, norms, loss and optimizer.
# Measured once on a 2-core CPU at 1M parameters, bf16, compiled (docs/plan.md); a rough guide elsewhere.
STEP_SHARE = 0.4


def training_memory(config: ModelConfig, stage: TrainSection) -> dict[str, int]:
    """Bytes for one training process: weights, gradients, optimizer, activations, logits, total.

    Weights, gradients and state in fp32: AdamW keeps two numbers a parameter, Muon one for its matrices.
    Activations: about 16 D + 2 (H + 2 KV) hd + 3 F numbers a token and layer are kept for the backward pass
    (cf. Korthikanti et al. 2022, arXiv 2205.05198, section 4, here with SDPA that keeps no scores).
    """
    n = count(config)
    inside = n["attention"] + n["mlp"]
    state = 2 * n["total"] - (inside if stage.optimizer == "muon" else 0)
    rows = min(int(stage.micro_batch_size), stage.batch_size)
    width = 2 if stage.precision == "bf16" else 4
    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    layer = 16 * config.d_model + 2 * heads + 3 * config.d_ff
    parts = {
        "weights": 4 * n["total"],
        "gradients": 4 * n["total"],
        "optimizer": 4 * state,
        "activations": rows * config.context * config.n_layers * layer * width,
        "logits": rows * config.context * config.vocab_size * 12,  # bf16 or fp32, its fp32 copy, the gradient
    }
    return {**parts, "total": sum(parts.values())}


def _tokens_note(ratio: float) -> str:
    if ratio < 15:
        return f"{ratio:.1f} tokens a parameter: fewer than the 20 that are compute-optimal (arXiv 2203.15556)"
    if ratio > 30:
        return (
            f"{ratio:.1f} tokens a parameter: more than the 20 that are compute-optimal; a smaller model to run later"
        )
    return f"{ratio:.1f} tokens a parameter: about compute-optimal (arXiv 2203.15556)"
