"""The decoder-only Transformer. It knows nothing of training, precision or devices."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.errors import problems
from groundup.model.attention import Cache, attention_mask
from groundup.model.block import BLOCKS
from groundup.model.config import ModelConfig
from groundup.model.moe import ExpertMLP
from groundup.model.norm import make_norm
from groundup.model.position import (
    alibi_slopes,
    dynamic_angles,
    relative_buckets,
    rope_rates,
    rope_table,
    sinusoids,
)


class Transformer(nn.Module):
    """tokens -> hidden states -> logits. Weights come from `init_weights` or `load_model`.

    Forward returns hidden states, not logits, so that a loss can be computed without the logits of a whole
    batch in memory at once, and so that heads for classification or reward need nothing new here.
    """

    angles: Tensor
    local_angles: Tensor
    sinusoids: Tensor
    slopes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        problems("model", config.problems())
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embed = nn.Embedding(config.context, config.d_model) if config.position == "learned" else None
        self.relative_bias = nn.Embedding(config.relative_buckets, config.n_heads) if config.position == "t5" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config, layer) for layer in range(config.n_layers))
        # after post-norm blocks the stream is normalised already
        self.norm = make_norm(config) if config.block != "post" else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias="head" in config.bias)
        self.reset_buffers()
        self.tie()

    def tie(self) -> None:
        """Make the head's weight the embedding's (one storage). Call again after anything that replaces either."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def reset_buffers(self) -> None:
        """Compute what is not stored in a checkpoint; needed again after the meta device."""
        c = self.config
        tables = {}
        if c.position == "rope":
            tables["angles"] = rope_table(c.context, *rope_rates(c.rope_dim, c.rope_base, c.rope_scaling))
            if c.rope_local_base is not None:
                tables["local_angles"] = rope_table(c.context, *rope_rates(c.rope_dim, c.rope_local_base))
        elif c.position == "sinusoidal":
            tables["sinusoids"] = sinusoids(c.context, c.d_model)
        elif c.position == "alibi":
            tables["slopes"] = alibi_slopes(c.n_heads)
        for name, table in tables.items():
            self.register_buffer(name, table.to(self.embed.weight.device), persistent=False)
        for module in self.modules():
            if isinstance(module, ExpertMLP):
                module.reset_buffers()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """`.to(bfloat16)` and its kin cast the parameters alone.

        Angles stay fp32; so do the experts' loads and balance biases: bf16 cannot count past 256 by ones, and a bias
        of 0.5 would no longer feel a step of 0.001.
        """
        held = [(m, name, b) for m in self.modules() for name, b in m.named_buffers(recurse=False)]
        super()._apply(fn, recurse)
        for module, name, before in held:
            after = module.get_buffer(name)
            if after.dtype != before.dtype:
                setattr(module, name, before.to(after.device))
        return self

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> hidden (B, T, D), after the last norm.

        documents (B, T): which document a token belongs to; attention never crosses. None = one a row. Negative ones
        are padding, which the experts' balance does not count. A cached pass reads them for the texts' lengths alone.
        positions (B, T): place of each token in its document; None = 0..T-1. Required with a cache.
        """
        c, t = self.config, tokens.shape[1]
        if positions is None:
            if cache is not None:
                raise ValueError("decoding with a cache needs positions: a default of 0..T-1 would be silently wrong")
            positions = torch.arange(t, device=tokens.device)[None]
        if t > c.context:
            raise ValueError(f"{t} tokens do not fit the context of {c.context}")
        x = self.embed(tokens)
        if c.embed_scale != 1.0:
            x = x * c.embed_scale
        if self.position_embed is not None:
            x = x + self.position_embed(positions)
        elif c.position == "sinusoidal":
            x = x + self.sinusoids[positions].type_as(x)
        x = self.dropout(x)
        angles = self.angles_of_layers(documents, positions)
        self.mark_padding(documents)
        kinds = {c.is_local(layer) for layer in range(c.n_layers)}
        masks = {local: self.mask(documents, positions, cache, local) for local in kinds}
        for layer, block in enumerate(self.blocks):
            x = block(x, angles[layer], masks[c.is_local(layer)], positions, cache)
        self.mark_padding(None)
        return self.norm(x)

    def mark_padding(self, documents: Tensor | None) -> None:
        """Tell the experts which tokens of this pass are padding; None = none is."""
        if self.config.moe is None:
            return
        real = None
        if documents is not None and torch.is_grad_enabled() and bool((documents < 0).any()):
            real = (documents >= 0).flatten()
        for block in self.blocks:  # not modules(): this runs for every token that is decoded
            if isinstance(block.mlp, ExpertMLP):
                block.mlp.real = real

    def angles_of_layers(self, documents: Tensor | None, positions: Tensor) -> list[Tensor | None]:
        """For each layer its angles (2, B or 1, T, 1, rope_dim), or None where nothing is rotated."""
        c = self.config
        if c.position != "rope":
            return [None] * c.n_layers
        scaling = c.rope_scaling
        if scaling is not None and scaling.kind == "dynamic" and int(positions.max()) >= scaling.original_context:
            everywhere = dynamic_angles(c, documents, positions)
        else:
            everywhere = self.angles[:, positions]
        local = self.local_angles[:, positions] if c.rope_local_base is not None else everywhere
        both = {False: everywhere.unsqueeze(-2), True: local.unsqueeze(-2)}
        return [both[c.is_local(layer)] if c.is_rotated(layer) else None for layer in range(c.n_layers)]

    def mask(self, documents: Tensor | None, positions: Tensor, cache: Cache | None, local: bool) -> Tensor | None:
        """Who sees whom in local or global layers: bool; numbers to add (B or 1, H, T, S) where position is a bias."""
        c = self.config
        visible = attention_mask(documents, positions, cache, c.window if local else 0)
        if c.position not in ("alibi", "t5"):
            return visible
        if visible is None:
            t = positions.shape[1]
            visible = torch.ones(t, t, dtype=torch.bool, device=positions.device).tril()[None, None]
        slots = torch.arange(visible.shape[-1], device=positions.device)[None]
        distance = positions[:, :, None] - (positions if cache is None else slots)[:, None, :]  # (B or 1, T, S)
        if self.relative_bias is not None:
            bucket = relative_buckets(distance, c.relative_buckets, c.relative_distance)
            bias = self.relative_bias(bucket).permute(0, 3, 1, 2)
        else:
            bias = -self.slopes[:, None, None] * distance[:, None]
        return bias.float().masked_fill(~visible, -torch.inf)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) in fp32."""
        c = self.config
        logits = F.linear(hidden, self.head.weight, self.head.bias).float()
        if c.output_scale != 1.0:
            logits = logits * c.output_scale
        return c.logit_softcap * torch.tanh(logits / c.logit_softcap) if c.logit_softcap else logits

    def router_loss(self) -> Tensor | None:
        """Balance and z losses of the last forward pass with gradients: means over its tokens, summed over layers.

        Padding is no token here. None without experts. Reading it clears it: call it once for every forward pass that
        is trained on.
        """
        experts = [m for m in self.modules() if isinstance(m, ExpertMLP)]
        losses = [m.pending for m in experts if m.pending is not None]
        for module in experts:
            module.pending = None
        return torch.stack(losses).sum() if losses else None

    def end_step(self, applied: bool) -> float | None:
        """To be called after each optimizer step, refused ones too; returns the worst expert's load (1 = even)."""
        loads = [m.end_step(applied) for m in self.modules() if isinstance(m, ExpertMLP)]
        return max(loads) if loads else None
