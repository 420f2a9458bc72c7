"""The shape of a Transformer, and everything that can be wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from groundup.errors import problems


@dataclass(frozen=True)
class ModelConfig:
    """Every dimension explicit. Behaviour follows from these fields, never from a model's name."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    context: int
    norm: str = "rmsnorm"  # rmsnorm | layernorm
    norm_eps: float = 1e-6
    position: str = "rope"  # rope | learned
    rope_base: float = 10000.0
    mlp: str = "swiglu"  # swiglu | gelu
    qk_norm: bool = True
    tied: bool = True
    bias: bool = False
    dropout: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        known = {f.name for f in fields(cls)}
        problems(
            "model config",
            [f"unknown field {k}" for k in values if k not in known]
            + [
                f"missing field {f.name}"
                for f in fields(cls)
                if f.default is f.default_factory and f.name not in values
            ],
        )
        return cls(**values)

    def problems(self) -> list[str]:
        """Everything that keeps this shape from being built, each with the nearest values that work."""
        found = []
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "context"):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1 (got {getattr(self, name)})")
        if found:
            return found
        if self.n_heads % self.n_kv_heads:
            fits = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            near = min(fits, key=lambda n: abs(n - self.n_kv_heads))
            found.append(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads} (nearest: {near})")
        if self.position == "rope" and self.head_dim % 2:
            found.append(f"rope needs an even head_dim (got {self.head_dim}; nearest: {self.head_dim + 1})")
        if self.qk_norm and self.norm != "rmsnorm":
            found.append("qk_norm is RMSNorm on heads: it goes with norm: rmsnorm")
        return found


def check_heads(d_model: int, n_heads: int) -> list[str]:
    """d_model must be divisible by n_heads when head_dim follows from them; names the nearest pairs that are."""
    if d_model % n_heads == 0:
        return []
    heads = [n for n in range(1, d_model + 1) if d_model % n == 0]
    near_heads = sorted(heads, key=lambda n: abs(n - n_heads))[:2]
    low = d_model // n_heads * n_heads
    widths = [w for w in (low, low + n_heads) if w > 0]
    pairs = [f"{d_model}/{n}" for n in near_heads] + [f"{w}/{n_heads}" for w in widths]
    return [f"d_model {d_model} is not divisible by n_heads {n_heads}; nearest valid pairs: {', '.join(pairs)}"]
