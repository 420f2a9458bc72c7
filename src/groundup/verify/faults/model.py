"""Faults of the model's own code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model import attention, count, init, position, storage, transformer
from groundup.model.attention import Attention
from groundup.model.mlp import GatedMLP
from groundup.model.transformer import Transformer
from groundup.verify.fault import fault, swapped

ROPE = {"position": "rope"}
_mask = attention.attention_mask


@fault("no-causal-mask", "causality")
def no_causal_mask() -> Iterator[None]:
    """Every position sees the whole row."""

    def wrong(documents: Tensor | None, positions: Tensor, cache: Any, window: int = 0) -> Tensor | None:
        t = positions.shape[1]
        if cache is not None:
            return _mask(documents, positions, cache, window)
        return torch.ones(1, 1, t, t, dtype=torch.bool)

    with swapped(transformer, attention_mask=wrong):
        yield


@fault("mask-off-by-one", "causality")
def mask_off_by_one() -> Iterator[None]:
    """In packed rows each position sees one token too many: the one that it must predict."""

    def wrong(documents: Tensor | None, positions: Tensor, cache: Any, window: int = 0) -> Tensor | None:
        if cache is not None or documents is None:
            return _mask(documents, positions, cache, window)
        t = documents.shape[1]
        seen = torch.ones(t, t, dtype=torch.bool).tril(1)
        return ((documents[:, :, None] == documents[:, None, :]) & seen)[:, None]

    with swapped(transformer, attention_mask=wrong):
        yield


@fault("documents-see-each-other", "documents-isolated")
def documents_see_each_other() -> Iterator[None]:
    """The mask of packed rows is causal and forgets the documents."""
    with swapped(transformer, attention_mask=lambda documents, *more: _mask(None, *more)):
        yield


@fault("stale-slots-visible", "causality-with-cache", "cached-decode-equals-forward")
def stale_slots_visible() -> Iterator[None]:
    """With a cache, a query sees every slot in use: padding, and what an earlier request left."""

    def wrong(documents: Tensor | None, positions: Tensor, cache: Any, window: int = 0) -> Tensor | None:
        right = _mask(documents, positions, cache, window)
        return right if cache is None else torch.ones_like(right)  # type: ignore[arg-type]

    with swapped(transformer, attention_mask=wrong):
        yield


@fault("positions-run-on", "packed-equals-alone", model={"position": "learned"})
def positions_run_on() -> Iterator[None]:
    """The model ignores the positions of packed rows: the second document begins at 10, not 0.

    RoPE forgives that (it sees distances), a learned table does not.
    """
    forward = Transformer.forward

    def wrong(
        self: Transformer, tokens: Tensor, *, positions: Tensor | None = None, cache: Any = None, **more: Any
    ) -> Tensor:
        return forward(self, tokens, positions=None if cache is None else positions, cache=cache, **more)

    with swapped(Transformer, forward=wrong):
        yield


@fault("decode-rotates-by-one-less", "cached-decode-equals-forward", model=ROPE)
def decode_rotates_by_one_less() -> Iterator[None]:
    """While decoding, a token is rotated to the place before its own."""
    forward = Transformer.forward

    def wrong(self: Transformer, tokens: Tensor, *, cache: Any = None, **more: Any) -> Tensor:
        if cache is None or tokens.shape[1] > 1:
            return forward(self, tokens, cache=cache, **more)
        right = self.angles
        self.angles = right.roll(1, dims=1)
        try:
            return forward(self, tokens, cache=cache, **more)
        finally:
            self.angles = right

    with swapped(Transformer, forward=wrong):
        yield


@fault("keys-not-rotated", "rope-depends-on-distance", model=ROPE)
def keys_not_rotated() -> Iterator[None]:
    """RoPE turns the queries and leaves the keys."""
    calls = [0]

    def wrong(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        calls[0] += 1
        return position.rotate(x, cos, sin) if calls[0] % 2 else x  # queries come first

    with swapped(attention, rotate=wrong):
        yield


@fault("rotation-forgotten", "positions-matter", model=ROPE)
def rotation_forgotten() -> Iterator[None]:
    """The angles are computed and nothing is rotated."""
    with swapped(attention, rotate=lambda x, cos, sin: x):
        yield


@fault("angles-in-bf16", "rope-table-precise", model=ROPE)
def angles_in_bf16() -> Iterator[None]:
    """The table of angles is kept in bf16."""
    right = position.rope_table
    with swapped(transformer, rope_table=lambda *a, **k: right(*a, **k).bfloat16().float()):
        yield


@fault("halves-mixed-up", "rotation-keeps-length", model=ROPE)
def halves_mixed_up() -> Iterator[None]:
    """Neighbouring dimensions are paired (GPT-J's layout) with a table made for halves (Llama's)."""

    def wrong(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin

    with swapped(position, rotate=wrong):
        yield


@fault("qk-norm-skipped-in-a-layer", "qk-norm-in-every-layer", model={"qk_norm": "head", "norm": "rmsnorm"})
def qk_norm_skipped_in_a_layer() -> Iterator[None]:
    """The second layer has norms for queries and keys, and does not divide by them."""
    build = Attention.__init__

    def wrong(self: Attention, config: Any, layer: int) -> None:
        build(self, config, layer)
        for norm in (self.q_norm, self.k_norm):
            if layer == 1 and norm is not None:
                norm.forward = lambda x, norm=norm: x * norm.weight  # type: ignore[method-assign,misc]

    with swapped(Attention, __init__=wrong):
        yield


@fault("groups-in-the-wrong-order", "grouped-queries-share-in-order", model={"n_heads": 4, "n_kv_heads": 2})
def groups_in_the_wrong_order() -> Iterator[None]:
    """Key/value heads are repeated 0 1 0 1, not 0 0 1 1."""
    with swapped(torch.Tensor, repeat_interleave=lambda x, group, dim: torch.cat([x] * group, dim=dim)):
        yield


@fault("head-untied-by-loading", "tied-is-one-storage", model={"tied": True})
def head_untied_by_loading() -> Iterator[None]:
    """Loading replaces the tied head by a copy of the embedding."""
    right = storage.load_model

    def wrong(*given: Any, **more: Any) -> Transformer:
        model = right(*given, **more)
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        return model

    with swapped(storage, load_model=wrong):
        yield


@fault("weights-ten-times-too-large", "init-loss")
def weights_ten_times_too_large() -> Iterator[None]:
    """Embeddings and head start with a standard deviation of 0.2."""
    right = init.init_weights

    @torch.no_grad()
    def wrong(model: Transformer, seed: int) -> Transformer:
        right(model, seed).embed.weight.mul_(10)
        return model

    with swapped(init, init_weights=wrong):
        yield


@fault("residual-not-scaled", "residual-stays-level")
def residual_not_scaled() -> Iterator[None]:
    """What writes into the residual stream is initialised like everything else: it grows with depth."""
    right = init.init_weights

    @torch.no_grad()
    def wrong(model: Transformer, seed: int) -> Transformer:
        right(model, seed)
        for name, parameter in model.named_parameters():
            if name.endswith((".out.weight", ".down.weight")):
                parameter.mul_((2 * model.config.n_layers) ** 0.5)
        return model

    with swapped(init, init_weights=wrong):
        yield


@fault("buffer-left-on-meta", "meta-init-complete", model={**ROPE, "tied": False})
def buffer_left_on_meta() -> Iterator[None]:
    """After the meta device, weights are drawn and the table of angles is not."""
    right = Transformer.reset_buffers

    def wrong(self: Transformer) -> None:
        if "angles" not in self._buffers:
            right(self)

    with swapped(Transformer, reset_buffers=wrong):
        yield


@fault("dropout-on-in-eval", "eval-is-deterministic")
def dropout_on_in_eval() -> Iterator[None]:
    """Dropout looks at its rate alone, not at the mode."""
    with swapped(nn.Dropout, forward=lambda self, x: F.dropout(x, self.p, training=True)):
        yield


@fault("gate-detached", "every-parameter-gets-gradient", model={"mlp": "swiglu"})
def gate_detached() -> Iterator[None]:
    """SwiGLU's gate is taken out of the graph: half of a packed weight never learns."""

    def wrong(self: GatedMLP, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).split(self.gate_up.sizes, dim=-1)
        return self.down(F.silu(gate).detach() * up)

    with swapped(GatedMLP, forward=wrong):
        yield


@fault("norms-not-counted", "parameters-counted-on-paper")
def norms_not_counted() -> Iterator[None]:
    """The count on paper forgets the norms."""
    right = count.count

    def wrong(config: Any) -> dict[str, int]:
        parts = right(config)
        return {**parts, "norm": 0, "total": parts["total"] - parts["norm"]}

    with swapped(count, count=wrong):
        yield


@fault(
    "idle-experts-counted", "parameters-counted-on-paper", model={"moe": {"n_experts": 4, "top_k": 2, "d_expert": 16}}
)
def idle_experts_counted() -> Iterator[None]:
    """What one token uses is said to be the whole model."""
    right = count.count

    def wrong(config: Any) -> dict[str, int]:
        parts = right(config)
        return {**parts, "active": parts["total"]}

    with swapped(count, count=wrong):
        yield
