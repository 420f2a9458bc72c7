"""The architectures of Hugging Face that are known here: what each fixes, and what its config.json says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from groundup.model.interchange.experts import MixtralExperts, QwenExperts
from groundup.model.interchange.parts import PLAIN, Activation, Biases, Divisible, Gemma, Gpt2, Part, Sizes
from groundup.model.interchange.rope import LocalRope, Rope
from groundup.model.interchange.windows import GemmaWindows, QwenWindows, SwitchedWindow, WindowEverywhere


@dataclass(frozen=True)
class Family:
    """One architecture."""

    architecture: str
    model_type: str
    fixed: dict[str, Any]  # fields of ModelConfig that it has one value for
    parts: tuple[Part, ...]  # and those it takes from config.json
    defaults: dict[str, Any]  # what transformers takes for keys that config.json leaves out
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # keys with the values that can be expressed


LLAMA = {"norm": "rmsnorm", "block": "pre", "position": "rope", "qk_norm": "none"}
GEMMA = {"norm": "rmsnorm", "block": "sandwich", "position": "rope", "norm_offset": True}
CAUSAL = {"use_bidirectional_attention": (None, False)}
COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10000.0}
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
GEMMA_DEFAULTS = COMMON | {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
}

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        Family(
            "Qwen3ForCausalLM",
            "qwen3",
            LLAMA | {"qk_norm": "head"},
            (Sizes(), Rope(), QwenWindows(), Biases(), Activation("hidden_act")),
            COMMON | QWEN | {"num_key_value_heads": 32, "head_dim": 128},
        ),
        Family(
            "LlamaForCausalLM",
            "llama",
            LLAMA,
            (Sizes(), Divisible(), Rope(), Biases(mlp=True), Activation("hidden_act")),
            COMMON,
        ),
        Family(
            "GPT2LMHeadModel",
            "gpt2",
            {
                "norm": "layernorm",
                "block": "pre",
                "position": "learned",
                "qk_norm": "none",
                "bias": ("qkv", "out", "up", "down", "norm"),
            },
            (Gpt2(), Activation("activation_function", table=PLAIN)),
            {
                "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
                "resid_pdrop": 0.1,
                "tie_word_embeddings": True,
            },
            {
                "scale_attn_weights": (None, True),
                "scale_attn_by_inverse_layer_idx": (None, False),
                "add_cross_attention": (None, False),
            },
        ),
        Family(
            "MistralForCausalLM",
            "mistral",
            LLAMA,
            (Sizes(), Rope(), WindowEverywhere(), Activation("hidden_act")),
            COMMON | {"num_key_value_heads": 8, "sliding_window": 4096},
            {"layer_types": (None,)},
        ),
        Family(
            "Qwen2ForCausalLM",
            "qwen2",
            LLAMA,
            (Sizes(), Rope(), QwenWindows(), Biases(attention=False, always=("qkv",)), Activation("hidden_act")),
            COMMON | QWEN | {"num_key_value_heads": 32},
        ),
        Family(
            "Phi3ForCausalLM",
            "phi3",
            LLAMA,
            (Sizes(), Rope(kinds=(), partial=True), WindowEverywhere(), Activation("hidden_act")),
            COMMON | {"rms_norm_eps": 1e-5},
        ),
        Family(
            "MixtralForCausalLM",
            "mixtral",
            LLAMA,
            (Sizes(), Rope(), WindowEverywhere(), Activation("hidden_act"), MixtralExperts()),
            COMMON
            | {
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1000000.0,
                "num_experts_per_tok": 2,
                "num_local_experts": 8,
                "router_aux_loss_coef": 0.001,
            },
        ),
        Family(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            LLAMA | {"qk_norm": "head"},
            (Sizes(), Rope(), SwitchedWindow(), Biases(), Activation("hidden_act"), QwenExperts()),
            COMMON
            | {
                "num_key_value_heads": 4,
                "use_sliding_window": False,
                "sliding_window": 4096,
                "decoder_sparse_step": 1,
                "moe_intermediate_size": 768,
                "num_experts_per_tok": 8,
                "num_experts": 128,
                "norm_topk_prob": False,
                "router_aux_loss_coef": 0.001,
            },
        ),
        Family(
            "Olmo2ForCausalLM",
            "olmo2",
            LLAMA | {"block": "output", "qk_norm": "full"},
            (Sizes(), Rope(), Biases(), Activation("hidden_act")),
            COMMON | {"rms_norm_eps": 1e-5},
        ),
        Family(
            "Gemma2ForCausalLM",
            "gemma2",
            GEMMA | {"qk_norm": "none"},
            (
                Sizes(),
                Divisible(),
                Rope(),
                GemmaWindows(every=2),
                Biases(),
                Activation("hidden_activation", "hidden_act"),
                Gemma(caps_scores=True),
            ),
            GEMMA_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            CAUSAL,
        ),
        Family(
            "Gemma3ForCausalLM",
            "gemma3_text",
            GEMMA | {"qk_norm": "head"},
            (
                Sizes(),
                Divisible(),
                LocalRope(),
                GemmaWindows(every=6),
                Biases(),
                Activation("hidden_activation", "hidden_act"),
                Gemma(caps_scores=False),
            ),
            GEMMA_DEFAULTS | {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
            CAUSAL,
        ),
    )
}
