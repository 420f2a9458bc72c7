"""Mixture of experts in a config.json, both ways."""

from __future__ import annotations

from typing import Any

from groundup.model.config import ModelConfig
from groundup.model.interchange.keys import Keys


class MixtralExperts:
    """Every layer has experts, and they are the only feed-forward."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        moe = {
            "n_experts": keys.whole("num_local_experts", "num_experts"),
            "d_expert": so_far["d_ff"],
            "normalise": True,
        }
        return {"moe": {**moe, "top_k": keys.whole("num_experts_per_tok"), **balance(keys)}}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        moe = config.moe
        if moe is None:
            return {"num_local_experts": 2, "num_experts_per_tok": 1}
        return {
            "num_local_experts": moe.n_experts,
            "num_experts_per_tok": moe.top_k,
            "intermediate_size": moe.d_expert,
            "router_aux_loss_coef": moe.balance_weight if moe.balance == "loss" else 0.0,
        }


class QwenExperts:
    """Qwen3-MoE: layers with and without experts may be mixed."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        n = so_far["n_layers"]
        if not keys.get("num_experts", "num_local_experts"):
            return {}
        step, dense = keys.whole("decoder_sparse_step"), keys.get("mlp_only_layers") or []
        layers = [layer not in dense and (layer + 1) % step == 0 for layer in range(n)]
        if not any(layers):
            return {}
        places = first_and_every(layers)
        if places is None:
            sparse = ", ".join(str(layer) for layer, here in enumerate(layers) if here)
            keys.found.append(f"mlp_only_layers: experts in layers {sparse} alone are not first_dense and every")
            return {}
        first, every = places
        return {
            "moe": {
                "n_experts": keys.whole("num_experts", "num_local_experts"),
                "top_k": keys.whole("num_experts_per_tok"),
                "d_expert": keys.whole("moe_intermediate_size"),
                "normalise": bool(keys.get("norm_topk_prob")),
                "first_dense": first,
                "every": every,
                **balance(keys),
            }
        }

    def write(self, config: ModelConfig) -> dict[str, Any]:
        moe = config.moe
        if moe is None:
            return {"num_experts": 0, "num_experts_per_tok": 1}
        return {
            "num_experts": moe.n_experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.d_expert,
            "norm_topk_prob": moe.normalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [layer for layer in range(config.n_layers) if not config.has_experts(layer)],
            "router_aux_loss_coef": moe.balance_weight if moe.balance == "loss" else 0.0,
        }


def balance(keys: Keys) -> dict[str, Any]:
    weight = keys.get("router_aux_loss_coef")
    return {"balance": "loss", "balance_weight": float(weight)} if weight else {"balance": "none"}


def first_and_every(layers: list[bool]) -> tuple[int, int] | None:
    """(first_dense, every) that put experts into exactly these layers."""
    n = len(layers)
    for every in range(1, n + 1):
        for first in range(n):
            if [layer >= first and (layer - first) % every == every - 1 for layer in range(n)] == layers:
                return first, every
    return None
