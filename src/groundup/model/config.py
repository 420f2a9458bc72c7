"""The shape of a Transformer: every choice that changes what it computes, and everything that can be wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from groundup.errors import did_you_mean, problems

# The values of each choice. The recipe's schema, the parts' tables and the docs are held equal to these by tests.
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rmsnorm", "layernorm"),
    "block": ("pre", "post", "output", "sandwich", "parallel", "parallel_shared"),
    "position": ("rope", "learned", "sinusoidal", "alibi", "t5", "none"),
    "mlp": ("swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2"),
    "qk_norm": ("none", "head", "full"),
    "init": ("gpt2", "depth", "xavier", "he", "mup"),
    "rope_scaling.kind": ("linear", "ntk", "dynamic", "yarn", "llama3"),
    "moe.score": ("softmax", "sigmoid"),
    "moe.balance": ("loss", "bias", "none"),
}
BIASES = ("qkv", "out", "up", "down", "norm", "head")
GATED = ("swiglu", "geglu", "geglu_tanh")


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched past the context it was trained on (`model/position.py` has the formulas)."""

    kind: str  # linear | ntk | dynamic | yarn | llama3
    factor: float
    original_context: int  # tokens the unstretched model was trained on
    beta_fast: float = 32.0  # yarn: rotations over the original context above which a dimension is left alone
    beta_slow: float = 1.0  # yarn: rotations below which it is fully interpolated
    attention_factor: float | None = None  # yarn: cos and sin are multiplied by it; None = 0.1 ln(factor) + 1
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values from one small vector a token."""

    kv_rank: int
    nope_dim: int  # of a head's query and key, without position
    rope_dim: int  # of a head's query and of the one key all heads share, rotated
    v_dim: int
    q_rank: int = 0  # queries through a bottleneck too; 0 = straight from d_model


@dataclass(frozen=True)
class MixtureOfExperts:
    """Feed-forward layers of which each token uses `top_k` of `n_experts` (arXiv 2101.03961, 2401.04088)."""

    n_experts: int
    top_k: int
    d_expert: int  # hidden width of one expert
    n_shared: int = 0  # experts that every token uses, besides (DeepSeekMoE, arXiv 2401.06066)
    first_dense: int = 0  # layers at the bottom that keep a plain feed-forward of d_ff
    every: int = 1  # after those, one layer in so many has experts (the last of each group)
    score: str = "softmax"  # softmax | sigmoid
    normalise: bool = True  # the chosen experts' weights are divided by their sum
    scale: float = 1.0  # and multiplied by this
    balance: str = "loss"  # loss (Switch) | bias (loss-free, arXiv 2408.15664) | none
    balance_weight: float = 0.01  # of the auxiliary loss
    bias_rate: float = 0.001  # step of the loss-free bias
    z_weight: float = 0.0  # router z-loss (ST-MoE, arXiv 2202.08906); 0 = none


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
    # normalisation
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    norm_weight: bool = True  # False: no parameters
    norm_offset: bool = False  # multiply by 1 + weight (Gemma), the weight starting at 0
    block: str = "pre"  # where the norms stand: model/block.py
    # position
    position: str = "rope"
    rope_base: float = 10000.0
    rope_local_base: float | None = None  # base in windowed layers, unscaled (Gemma 3); None = as everywhere
    rope_fraction: float = 1.0  # share of a head's dimensions that is rotated
    rope_pattern: str = "R"  # repeated over the layers: R rotated, N without position
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32  # t5
    relative_distance: int = 128  # t5: distance from which on all are one bucket
    # attention
    window: int = 0  # tokens a windowed layer sees, itself included; 0 = no layer is windowed
    window_pattern: str = "L"  # repeated over the layers: L local (windowed), G global
    qk_norm: str = "head"  # none | head (Qwen3) | full (OLMo 2: over all heads at once)
    score_dim: float | None = None  # scores are divided by sqrt of this; None = the width of a head
    attention_softcap: float = 0.0  # cap * tanh(score / cap); 0 = none
    sinks: bool = False  # a learned score a head that takes attention and gives nothing (gpt-oss)
    latent: LatentAttention | None = None
    # feed-forward
    mlp: str = "swiglu"
    moe: MixtureOfExperts | None = None
    # the rest
    bias: tuple[str, ...] = ()  # which of BIASES have one
    tied: bool = True
    embed_scale: float = 1.0  # embeddings are multiplied by it (Gemma: sqrt(d_model))
    logit_scale: float = 1.0  # logits are multiplied by it
    logit_softcap: float = 0.0  # cap * tanh(logit / cap); 0 = none
    dropout: float = 0.0
    # initial weights: model/init.py
    init: str = "gpt2"
    init_std: float = 0.02
    zero_out: bool = False  # projections that write into the residual stream start at 0
    mup_width: int = 0  # init: mup - the width at which rates were tuned

    def __post_init__(self) -> None:
        # A config read from JSON or a recipe holds plain dicts and lists.
        nested = {"rope_scaling": RopeScaling, "latent": LatentAttention, "moe": MixtureOfExperts}
        for name, kind in nested.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, _build(kind, value, f"model config, {name}"))
        if isinstance(self.bias, list):
            object.__setattr__(self, "bias", tuple(self.bias))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bias": list(self.bias)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        return _build(cls, values, "model config")

    # What a layer is.

    def is_local(self, layer: int) -> bool:
        """Whether this layer's attention has a window."""
        return self.window > 0 and self.window_pattern[layer % len(self.window_pattern)] == "L"

    def is_rotated(self, layer: int) -> bool:
        return self.position == "rope" and self.rope_pattern[layer % len(self.rope_pattern)] == "R"

    def has_experts(self, layer: int) -> bool:
        if self.moe is None or layer < self.moe.first_dense:
            return False
        return (layer - self.moe.first_dense) % self.moe.every == self.moe.every - 1

    # What follows from the fields.

    @property
    def qk_dim(self) -> int:
        """Width of a head's query and key."""
        return self.latent.nope_dim + self.latent.rope_dim if self.latent else self.head_dim

    @property
    def v_dim(self) -> int:
        """Width of a head's value."""
        return self.latent.v_dim if self.latent else self.head_dim

    @property
    def rope_dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return self.latent.rope_dim if self.latent else int(self.head_dim * self.rope_fraction)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """What decoding keeps of a token in each layer: (heads, numbers of a key, numbers of a value)."""
        if self.latent:
            return 1, self.latent.kv_rank + self.latent.rope_dim, 0  # the latent and the shared key: values follow
        return self.n_kv_heads, self.head_dim, self.head_dim

    @property
    def gated(self) -> bool:
        return self.mlp in GATED

    @property
    def output_scale(self) -> float:
        """What logits are multiplied by: logit_scale, and under muP the base width over the width."""
        return self.logit_scale * (self.mup_width / self.d_model if self.init == "mup" else 1.0)

    def problems(self) -> list[str]:
        """Everything that keeps this shape from being built, each with the remedy."""
        from groundup.model.obstacles import config_problems

        return config_problems(self)


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a dict; all unknown and missing fields in one error."""
    known = {f.name: f for f in fields(kind)}
    missing = [n for n, f in known.items() if f.default is f.default_factory and n not in values]
    problems(
        where,
        [f"unknown field {k}{did_you_mean(k, known)}" for k in values if k not in known]
        + [f"missing field {name}" for name in missing],
    )
    return kind(**values)
