"""The model once more: fp64, slow, from the papers' formulas, with nothing of model/'s code but the config's fields.

What two independent computations agree on is not a slip of either. Tensors are a model's own, by their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from groundup.model.config import RopeScaling
from groundup.model.transformer import Transformer


class Reference:
    """A model's tensors and its formulas. documents (B, T) or None; positions (B, T)."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        self.tensors = {name: value.detach().double() for name, value in model.state_dict().items()}

    def __call__(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: Tensor) -> Tensor:
        c, weight, bias = self.config, self(f"{name}.weight"), self(f"{name}.bias")
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
        if weight is not None:
            x = x * (weight + c.norm_offset)
        return x if bias is None else x + bias

    # The whole.

    def logits(self, tokens: Tensor, documents: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        x = self.stream(tokens, positions)
        for layer in range(self.config.n_layers):
            x = self.block(layer, x, documents, positions)
        if self.config.block != "post":
            x = self.norm("norm", x)
        return self.head(x)

    def stream(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What enters the first block."""
        c = self.config
        x = self.tensors["embed.weight"][tokens] * c.embed_scale
        if c.position == "learned":
            x = x + self.tensors["position_embed.weight"][positions]
        elif c.position == "sinusoidal":
            places = [sinusoid(int(p), c.d_model) for p in positions.flatten()]
            x = x + torch.tensor(places, dtype=torch.float64).view(*positions.shape, -1)
        return x

    def head(self, x: Tensor) -> Tensor:
        c = self.config
        y = self.linear("head", x) * c.logit_scale
        if c.init == "mup":
            y = y * c.mup_width / c.d_model
        return c.logit_softcap * torch.tanh(y / c.logit_softcap) if c.logit_softcap else y

    def block(self, layer: int, x: Tensor, documents: Tensor | None, positions: Tensor) -> Tensor:
        return arrange(
            self.config.block,
            x,
            lambda name, y: self.norm(f"blocks.{layer}.{name}", y),
            lambda y: self.attention(layer, y, documents, positions),
            lambda y: self.mlp(layer, y),
        )

    # Attention.

    def attention(self, layer: int, x: Tensor, documents: Tensor | None, positions: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        c, name = self.config, f"blocks.{layer}.attention"
        q, k, v = self.heads(layer, x, documents, positions)  # (B, T, H, d) each
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(c.score_dim or q.shape[-1])
        if c.attention_softcap:
            scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
        scores = scores + self.bias(positions)
        weights = torch.where(visible(x.shape[1], documents, self.window(layer)), scores.exp(), 0.0)
        total = weights.sum(-1, keepdim=True)
        sinks = self(f"{name}.sinks")
        if sinks is not None:
            total = total + sinks.exp()[:, None, None]
        y = torch.einsum("bhqk,bkhd->bqhd", weights / total, v)
        return self.linear(f"{name}.out", y.flatten(2))

    def heads(
        self, layer: int, x: Tensor, documents: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, one of each for every query head."""
        c, name = self.config, f"blocks.{layer}.attention"
        if c.latent is not None:
            return self.latent_heads(layer, x, documents, positions)
        wide, narrow = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        q, k, v = self.linear(f"{name}.qkv", x).split((wide, narrow, narrow), dim=-1)
        if c.qk_norm == "full":
            q, k = self.norm(f"{name}.q_norm", q), self.norm(f"{name}.k_norm", k)
        q, k, v = (part.unflatten(-1, (-1, c.head_dim)) for part in (q, k, v))
        if c.qk_norm == "head":
            q, k = self.norm(f"{name}.q_norm", q), self.norm(f"{name}.k_norm", k)
        q, k = (self.rotated(layer, part, documents, positions) for part in (q, k))
        served = [h * c.n_kv_heads // c.n_heads for h in range(c.n_heads)]
        return q, k[:, :, served], v[:, :, served]

    def latent_heads(
        self, layer: int, x: Tensor, documents: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """DeepSeek-V2, arXiv 2405.04434, equations 9 to 19, expanded."""
        c, name = self.config, f"blocks.{layer}.attention"
        m = c.latent
        assert m is not None
        if m.q_rank:
            q = self.linear(f"{name}.q_up", self.norm(f"{name}.q_norm", self.linear(f"{name}.q_down", x)))
        else:
            q = self.linear(f"{name}.q", x)
        q = q.unflatten(-1, (c.n_heads, -1))
        latent, shared = self.latents(layer, x, documents, positions)
        kv = self.linear(f"{name}.kv_up", latent).unflatten(-1, (c.n_heads, -1))
        turned = self.rotated(layer, q[..., m.nope_dim :], documents, positions)
        shared = shared[:, :, None].expand(-1, -1, c.n_heads, -1)
        q = torch.cat([q[..., : m.nope_dim], turned], dim=-1)
        return q, torch.cat([kv[..., : m.nope_dim], shared], dim=-1), kv[..., m.nope_dim :]

    def latents(self, layer: int, x: Tensor, documents: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(the normalised latent (B, T, kv_rank), the shared key, rotated (B, T, rope_dim)): what a cache holds."""
        m = self.config.latent
        assert m is not None
        down = self.linear(f"blocks.{layer}.attention.kv_down", x)
        latent = self.norm(f"blocks.{layer}.attention.kv_norm", down[..., : m.kv_rank])
        return latent, self.rotated(layer, down[..., m.kv_rank :][:, :, None], documents, positions)[:, :, 0]

    def window(self, layer: int) -> int:
        c = self.config
        return c.window if c.window and (c.window_pattern * c.n_layers)[layer] == "L" else 0

    def angles(self, layer: int, documents: Tensor | None, positions: Tensor) -> tuple[Tensor, float] | None:
        """(angles (B, T, planes), what cos and sin are multiplied by); None for a layer without rotation."""
        c = self.config
        if c.position != "rope" or (c.rope_pattern * c.n_layers)[layer] == "N":
            return None
        dim = c.latent.rope_dim if c.latent else round(c.head_dim * c.rope_fraction)
        if c.rope_local_base is not None and self.window(layer):
            turned, factor = rates(dim, c.rope_local_base, None, 0)
            return positions[..., None] * turned, factor
        out = torch.empty(*positions.shape, dim // 2, dtype=torch.float64)
        for b, t in torch.cartesian_prod(*map(torch.arange, positions.shape)).tolist():
            here = positions[b] if documents is None else positions[b][documents[b] == documents[b, t]]
            turned, factor = rates(dim, c.rope_base, c.rope_scaling, int(here.max()) + 1)
            out[b, t] = positions[b, t] * turned
        return out, factor

    def rotated(self, layer: int, x: Tensor, documents: Tensor | None, positions: Tensor) -> Tensor:
        """x (B, T, H, d): dimension i turns with i + half, both among the first; the rest stays."""
        found = self.angles(layer, documents, positions)
        if found is None:
            return x
        angle, factor = found
        half = angle.shape[-1]
        cos, sin = (f(angle)[:, :, None] * factor for f in (torch.cos, torch.sin))
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def bias(self, positions: Tensor) -> Tensor | float:
        """(B, H, T, T) to add to the scores, or 0."""
        c = self.config
        distance = (positions[:, :, None] - positions[:, None, :]).clamp(min=0)
        if c.position == "alibi":
            return -torch.tensor(slopes(c.n_heads), dtype=torch.float64)[:, None, None] * distance[:, None]
        if c.position != "t5":
            return 0.0
        table = [bucket(d, c.relative_buckets, c.relative_distance) for d in range(int(distance.max()) + 1)]
        return self.tensors["relative_bias.weight"][torch.tensor(table)[distance]].permute(0, 3, 1, 2)

    # Feed-forward.

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        c, name = self.config, f"blocks.{layer}.mlp"
        if c.moe is None or f"{name}.router.weight" not in self.tensors:
            return self.dense(name, x)
        out = torch.zeros_like(x)
        weights = self.routing(layer, x)
        for e in range(c.moe.n_experts):
            up = self(f"{name}.gate_up")
            if up is not None:
                gate, linear = (x @ up[e].T).chunk(2, dim=-1)
                inner = activation(c.mlp, gate) * linear
            else:
                inner = activation(c.mlp, x @ self.tensors[f"{name}.up"][e].T)
            out = out + weights[..., e, None] * (inner @ self.tensors[f"{name}.down"][e].T)
        return out + self.dense(f"{name}.shared", x) if c.moe.n_shared else out

    def dense(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.gate_up.weight" in self.tensors:
            gate, linear = self.linear(f"{name}.gate_up", x).chunk(2, dim=-1)
            return self.linear(f"{name}.down", activation(self.config.mlp, gate) * linear)
        return self.linear(f"{name}.down", activation(self.config.mlp, self.linear(f"{name}.up", x)))

    def scores(self, layer: int, x: Tensor) -> Tensor:
        """(..., E): how well each expert suits."""
        assert self.config.moe is not None
        logits = x @ self.tensors[f"blocks.{layer}.mlp.router.weight"].T
        return torch.softmax(logits, -1) if self.config.moe.score == "softmax" else 1 / (1 + (-logits).exp())

    def routing(self, layer: int, x: Tensor) -> Tensor:
        """(..., E): the weight of every expert, 0 for those not chosen. DeepSeek-V3, arXiv 2412.19437, eq. 12 to 16."""
        moe = self.config.moe
        assert moe is not None
        scores = self.scores(layer, x)
        bias = self(f"blocks.{layer}.mlp.balance_bias")
        choice = scores if bias is None else scores + bias
        rank = (choice[..., None, :] > choice[..., :, None]).sum(-1)  # how many are better
        weights = torch.where(rank < moe.top_k, scores, 0.0)
        if moe.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * moe.scale


Part = Callable[[Tensor], Tensor]


def arrange(kind: str, x: Tensor, norm: Callable[[str, Tensor], Tensor], attention: Part, mlp: Part) -> Tensor:
    """A block of its parts, by what `block` means: the papers are named in model/block.py."""
    if kind == "parallel":
        return x + attention(norm("norm1", x)) + mlp(norm("norm2", x))
    if kind == "parallel_shared":
        return x + attention(norm("norm1", x)) + mlp(norm("norm1", x))
    for part, name in ((attention, "norm1"), (mlp, "norm2")):
        before = norm(name, x) if kind in ("pre", "sandwich") else x
        added = part(before)
        if kind in ("output", "sandwich"):
            added = norm(f"{name}_out", added)
        x = norm(name, x + added) if kind == "post" else x + added
    return x


def visible(length: int, documents: Tensor | None, window: int) -> Tensor:
    """(B or 1, 1, T, T): not later, in the same document, and among the last `window` places."""
    place = torch.arange(length)
    back = place[:, None] - place[None, :]
    seen = ((back >= 0) & (back < (window or length)))[None]
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])
    return seen[:, None]


def rates(dim: int, base: float, scaling: RopeScaling | None, length: int) -> tuple[Tensor, float]:
    """(angle a place adds in each plane, factor of cos and sin): the published formulas, one plane at a time."""

    def plain(i: int, base: float) -> float:
        return base ** (-2 * i / dim)

    out, factor, s = [], 1.0, scaling
    for i in range(dim // 2):
        w = plain(i, base)
        if s is None:
            pass
        elif s.kind == "linear":  # arXiv 2306.15595, equation 4
            w = w / s.factor
        elif s.kind == "ntk":  # arXiv 2309.00071, equation 16
            w = plain(i, base * s.factor ** (dim / (dim - 2)))
        elif s.kind == "dynamic":  # the same, the factor being what the length needs
            grown = s.factor * max(length, s.original_context) / s.original_context - s.factor + 1
            w = plain(i, base * grown ** (dim / (dim - 2)))
        elif s.kind == "yarn":  # arXiv 2309.00071, section 3.2: the ramp lies between whole planes
            low, high = (
                dim * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))
                for turns in (s.beta_fast, s.beta_slow)
            )
            first, last = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
            stretched = min(max((i - first) / max(last - first, 1e-3), 0.0), 1.0)
            w = stretched * w / s.factor + (1 - stretched) * w
            factor = 0.1 * math.log(s.factor) + 1 if s.attention_factor is None else s.attention_factor
        elif s.kind == "llama3":  # arXiv 2407.21783 and its published code
            turns = s.original_context * w / (2 * math.pi)
            if turns < s.low_freq_factor:
                w = w / s.factor
            elif turns < s.high_freq_factor:
                kept = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
                w = kept * w + (1 - kept) * w / s.factor
        out.append(w)
    return torch.tensor(out, dtype=torch.float64), factor


def sinusoid(place: int, dim: int) -> list[float]:
    """Vaswani et al. 2017, arXiv 1706.03762, section 3.5."""
    return [
        math.sin(place / 10000 ** (i / dim)) if i % 2 == 0 else math.cos(place / 10000 ** ((i - 1) / dim))
        for i in range(dim)
    ]


def slopes(heads: int) -> list[float]:
    """ALiBi, arXiv 2108.12409, and its published code for head counts that are no power of two."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    own = [2.0 ** (-8.0 * n / power) for n in range(1, power + 1)]
    finer = [2.0 ** (-4.0 * n / power) for n in range(1, 2 * power + 1)]
    return own + finer[::2][: heads - power]


def bucket(distance: int, buckets: int, furthest: int) -> int:
    """T5, arXiv 1910.10683, and its published code for decoders."""
    exact = buckets // 2
    if distance < exact:
        return distance
    return min(exact + math.floor(bucket_share(distance, buckets, furthest) + 1e-9), buckets - 1)


def bucket_share(distance: int, buckets: int, furthest: int) -> float:
    """How many of the logarithmic buckets lie below a distance."""
    exact = buckets // 2
    return math.log(distance / exact) / math.log(furthest / exact) * (buckets - exact)


def activation(kind: str, x: Tensor) -> Tensor:
    """arXiv 2002.05202 (gated), 1606.08415 (GELU and its tanh form), 2109.08668 (relu squared)."""
    if kind == "swiglu":
        return x / (1 + (-x).exp())
    if kind in ("geglu", "gelu"):
        return x * (1 + torch.erf(x / 2**0.5)) / 2
    if kind in ("geglu_tanh", "gelu_tanh"):
        return x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    return x.clamp(min=0) ** (2 if kind == "relu2" else 1)
