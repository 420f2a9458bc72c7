"""The decoder-only Transformer, pre-norm. It knows nothing of training, precision or devices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.errors import problems
from groundup.model.attention import Attention, Cache, attention_mask
from groundup.model.config import ModelConfig
from groundup.model.mlp import make_mlp
from groundup.model.norm import make_norm
from groundup.model.position import rope_table


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attention = Attention(config, layer)
        self.norm2 = make_norm(config)
        self.mlp = make_mlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, angles: Tensor | None, mask: Tensor | None, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), angles, mask, positions, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """tokens -> hidden states -> logits. Weights come from `init_weights` or `load_model`.

    Forward returns hidden states, not logits, so that a loss can be computed without the logits of a whole
    batch in memory at once, and so that heads for classification or reward need nothing new here.
    """

    angles: Tensor

    def __init__(self, config: ModelConfig) -> None:
        problems("model", config.problems())
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        learned = config.position == "learned"
        self.position_embed = nn.Embedding(config.context, config.d_model) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.reset_buffers()
        self.tie()

    def tie(self) -> None:
        """Make the head's weight the embedding's (one storage). Call again after anything that replaces either."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def reset_buffers(self) -> None:
        """Compute what is not stored in a checkpoint; needed again after the meta device."""
        if self.config.position == "rope":
            table = rope_table(self.config.context, self.config.head_dim, self.config.rope_base)
            self.register_buffer("angles", table, persistent=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> hidden (B, T, D), after the last norm.

        documents (B, T): which document a token belongs to; attention never crosses. None = one a row.
        positions (B, T): place of each token in its document; None = 0..T-1. Required with a cache.
        """
        _, t = tokens.shape
        if positions is None:
            if cache is not None:
                raise ValueError("decoding with a cache needs positions: a default of 0..T-1 would be silently wrong")
            positions = torch.arange(t, device=tokens.device)[None]
        if t > self.config.context:
            raise ValueError(f"{t} tokens do not fit the context of {self.config.context}")
        mask = attention_mask(documents, positions, cache)
        x = self.embed(tokens)
        angles = None
        if self.position_embed is not None:
            x = x + self.position_embed(positions)
        else:
            angles = self.angles[:, positions].unsqueeze(-2)  # (2, B or 1, T, 1, hd)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, angles, mask, positions, cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) in fp32."""
        return F.linear(hidden, self.head.weight).float()
