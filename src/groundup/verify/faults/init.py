"""Faults of the first weights, and of what muP does with the width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundup.model import init
from groundup.model.config import ModelConfig
from groundup.model.norm import Norm
from groundup.model.transformer import Transformer
from groundup.train import optim
from groundup.train.optim import Optimizers
from groundup.verify.fault import fault, swapped

MUP = {"init": "mup", "mup_width": 16}
ADAMW = {"optimizer": "adamw"}
_std = init.matrix_std


@fault("zero-out-on-attention-alone", "zero-out-starts-as-identity", model={"zero_out": True})
def zero_out_on_attention_alone() -> Iterator[None]:
    """zero_out leaves the feed-forward's outputs as they are."""

    def wrong(config: ModelConfig, name: str, weight: Tensor) -> float:
        return config.init_std if name.endswith(".down") else _std(config, name, weight)

    with swapped(init, matrix_std=wrong):
        yield


@fault("fans-of-the-packed-matrix", "initial-weights-follow-the-scheme", model={"init": "xavier"})
def fans_of_the_packed_matrix() -> Iterator[None]:
    """Queries, keys and values are drawn as one matrix, whose fan-out is that of all three."""

    def wrong(config: ModelConfig, name: str, weight: Tensor) -> float:
        if name.endswith(".qkv"):
            weight = weight.new_empty((config.n_heads + 2 * config.n_kv_heads) * config.head_dim, config.d_model)
        return _std(config, name, weight)

    with swapped(init, matrix_std=wrong):
        yield


@fault("depth-scaled-by-all-layers", "initial-weights-follow-the-scheme", model={"init": "depth"})
def depth_scaled_by_all_layers() -> Iterator[None]:
    """init: depth scales every layer alike."""

    def wrong(config: ModelConfig, name: str, weight: Tensor) -> float:
        top = f"blocks.{config.n_layers - 1}." + name.split(".", 2)[2]
        return _std(config, top, weight)

    with swapped(init, matrix_std=wrong):
        yield


@fault(
    "offset-norms-start-at-one",
    "initial-weights-follow-the-scheme",
    "norm-offset-starts-as-identity",
    model={"norm_offset": True},
)
def offset_norms_start_at_one() -> Iterator[None]:
    """Norms that multiply by 1 + weight start with a weight of 1."""
    right = init.init_weights

    @torch.no_grad()
    def wrong(model: Transformer, seed: int) -> Transformer:
        right(model, seed)
        for module in model.modules():
            if isinstance(module, Norm) and module.weight is not None:
                module.weight.fill_(1.0)
        return model

    with swapped(init, init_weights=wrong):
        yield


@fault("mup-share-not-applied", "mup-rates-by-width", "mup-learns-alike-at-every-width", model=MUP, pretrain=ADAMW)
def mup_share_not_applied() -> Iterator[None]:
    """Adam's rate is the same for hidden matrices of every width."""
    with swapped(optim, matrix_share=lambda config: 1.0):
        yield


@fault("mup-share-on-everything", "mup-rates-by-width", model=MUP, pretrain=ADAMW)
def mup_share_on_everything() -> Iterator[None]:
    """Embeddings and norms are slowed with the width as well."""
    right = Optimizers.__init__

    def wrong(self: Optimizers, model: Transformer, section: Any) -> None:
        right(self, model, section)
        for _, optimizer, _ in self.all:
            for group in optimizer.param_groups:
                group["share"] = optim.matrix_share(model.config)

    with swapped(Optimizers, __init__=wrong):
        yield


@fault("mup-logits-not-scaled", "logits-scaled-and-capped-once", "mup-learns-alike-at-every-width", model=MUP)
def mup_logits_not_scaled() -> Iterator[None]:
    """Logits are not multiplied by mup_width / d_model."""
    with swapped(ModelConfig, output_scale=property(lambda config: config.logit_scale)):
        yield


@fault("mup-variance-not-scaled", "initial-weights-follow-the-scheme", "mup-learns-alike-at-every-width", model=MUP)
def mup_variance_not_scaled() -> Iterator[None]:
    """Hidden matrices start with the same standard deviation at every width."""

    def wrong(config: ModelConfig, name: str, weight: Tensor) -> float:
        return _std(config, name, weight) * (config.d_model / config.mup_width) ** 0.5

    with swapped(init, matrix_std=wrong):
        yield
