"""Tiny models built by transformers, in the shapes that published checkpoints come in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

VOCAB, CONTEXT = 300, 40
# three layers, grouped heads, and a head_dim that is not hidden_size / heads wherever the family allows it
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WIDE = SIZES | {"head_dim": 16}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, "rope_theta": 500.0}
MIXED = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}
GEMMA2 = WIDE | {"sliding_window": 6, "query_pre_attn_scalar": 11, "rope_parameters": ROPE}
GEMMA3 = GEMMA2 | {
    "num_hidden_layers": 7,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}

# name -> (transformers' config class, its values)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2),
    "gpt2, untied, exact gelu, narrow": (
        "GPT2Config",
        GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 48},
    ),
    "llama": ("LlamaConfig", WIDE | {"rope_parameters": ROPE}),
    "llama, tied": ("LlamaConfig", WIDE | {"rope_parameters": ROPE, "tie_word_embeddings": True}),
    "llama, biases, gelu": (
        "LlamaConfig",
        WIDE | {"rope_parameters": ROPE, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "llama, one kv head": ("LlamaConfig", SIZES | {"rope_parameters": ROPE, "num_key_value_heads": 1}),
    "llama, llama3 scaling": (
        "LlamaConfig",
        WIDE | {"rope_parameters": LLAMA3 | {"rope_theta": 500.0, "original_max_position_embeddings": 20}},
    ),
    "llama, yarn": ("LlamaConfig", WIDE | {"rope_parameters": YARN}),
    "llama, yarn, mscale": (
        "LlamaConfig",
        WIDE | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 0.6, "beta_slow": 0.05}},
    ),
    "llama, linear": (
        "LlamaConfig",
        WIDE | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    ),
    "llama, dynamic": (
        "LlamaConfig",
        WIDE | {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0}},
    ),
    "mistral": ("MistralConfig", WIDE | {"sliding_window": 6, "rope_parameters": ROPE}),
    "mistral, no window": ("MistralConfig", WIDE | {"sliding_window": None, "rope_parameters": ROPE}),
    "mixtral": ("MixtralConfig", WIDE | {"num_local_experts": 5, "rope_parameters": ROPE}),
    "mixtral, window": ("MixtralConfig", WIDE | {"num_local_experts": 4, "sliding_window": 6, "rope_parameters": ROPE}),
    "qwen2": ("Qwen2Config", WIDE | {"rope_parameters": ROPE}),
    "qwen2, upper layers windowed": (
        "Qwen2Config",
        WIDE
        | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
        | {"rope_parameters": ROPE, "tie_word_embeddings": True},
    ),
    "qwen2, mixed windows": (
        "Qwen2Config",
        WIDE
        | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6, "layer_types": MIXED}
        | {"rope_parameters": ROPE},
    ),
    "qwen3": ("Qwen3Config", WIDE | {"rope_parameters": ROPE}),
    "qwen3, tied, biases, yarn": (
        "Qwen3Config",
        WIDE | {"rope_parameters": YARN, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3-moe": ("Qwen3MoeConfig", WIDE | EXPERTS | {"rope_parameters": ROPE}),
    "qwen3-moe, mixed layers": (
        "Qwen3MoeConfig",
        WIDE
        | EXPERTS
        | {"num_hidden_layers": 5, "mlp_only_layers": [0], "decoder_sparse_step": 2, "norm_topk_prob": False}
        | {"rope_parameters": ROPE, "attention_bias": True},
    ),
    "olmo2": ("Olmo2Config", WIDE | {"rope_parameters": ROPE}),
    "olmo2, biases": ("Olmo2Config", SIZES | {"rope_parameters": ROPE, "attention_bias": True}),
    "gemma2": ("Gemma2Config", GEMMA2),
    "gemma2, tight caps, other layers": (
        "Gemma2Config",
        GEMMA2
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attention_bias": True}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "gemma3": ("Gemma3TextConfig", GEMMA3),
    "gemma3, capped logits": ("Gemma3TextConfig", GEMMA3 | {"final_logit_softcapping": 3.0}),
    "gemma3, no windows": ("Gemma3TextConfig", GEMMA3 | {"layer_types": ["full_attention"] * 7}),
    "phi3": ("Phi3Config", SIZES | {"rope_parameters": ROPE}),
    "phi3, window, partial rotary": (
        "Phi3Config",
        SIZES | {"hidden_size": 64, "sliding_window": 6, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
    ),
}


def randomised(model: Any, seed: int = 0) -> Any:
    """Every parameter drawn at random: a bias or norm left at 0 or 1 would hide that it was dropped or swapped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                scale = 0.4 if "embed" in name or "wte" in name else 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(scale * noise)
            else:
                parameter.copy_(0.3 * noise + parameter.round())  # around 1, or around 0 (biases, Gemma's norms)
    return model.eval()


def built(shape: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model of transformers, saved by transformers."""
    import transformers

    name, values = SHAPES[shape]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**copy.deepcopy(values))  # it writes into the dicts it is given
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomised(model, seed).to(dtype).save_pretrained(folder)
    return model


def opened(folder: Path, **options: Any) -> Any:
    """What transformers reads from a folder, in fp32; nothing may be missing or left over."""
    import transformers

    options = {"attn_implementation": "eager", "dtype": torch.float32} | options
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()
