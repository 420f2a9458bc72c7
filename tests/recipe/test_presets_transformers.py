"""Presets against transformers: the published config.json, built there without memory, has as many parameters.

The numbers are those of the published config.json files, written down a second time and read by another program: a slip
in a preset, in the formula or in the table of counts shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_presets_counts import PUBLISHED

from groundup.recipe.load import load_recipe

transformers = pytest.importorskip("transformers")

SHORT = {
    "d": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv": "num_key_value_heads",
    "ff": "intermediate_size",
    "vocab": "vocab_size",
    "tied": "tie_word_embeddings",
}
LLAMA3 = {"kind": "llama", "kv": 8, "head_dim": 128, "vocab": 128256, "tied": False}
QWEN2 = {"kind": "qwen2", "vocab": 152064, "tied": False}
QWEN3 = {"kind": "qwen3", "kv": 8, "head_dim": 128, "vocab": 151936, "tied": False}
OLMO2 = {"kind": "olmo2", "vocab": 100352, "tied": False}
GEMMA2 = {"kind": "gemma2", "head_dim": 256, "vocab": 256000, "tied": True}
GEMMA3 = {"kind": "gemma3_text", "head_dim": 256, "vocab": 262208, "tied": True}
SMOLLM2 = {"kind": "llama", "vocab": 49152, "tied": True}
LLAMA_8B = {**LLAMA3, "d": 4096, "layers": 32, "heads": 32, "ff": 14336}
LLAMA_70B = {**LLAMA3, "d": 8192, "layers": 80, "heads": 64, "ff": 28672}

HUB: dict[str, dict[str, Any]] = {
    "gpt2": {"kind": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab": 50257},
    "gpt2-medium": {"kind": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab": 50257},
    "gpt2-large": {"kind": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20, "n_positions": 1024, "vocab": 50257},
    "gpt2-xl": {"kind": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "vocab": 50257},
    "llama-2-7b": {"kind": "llama", "d": 4096, "layers": 32, "heads": 32, "kv": 32, "ff": 11008, "vocab": 32000},
    "llama-2-13b": {"kind": "llama", "d": 5120, "layers": 40, "heads": 40, "kv": 40, "ff": 13824, "vocab": 32000},
    "llama-2-70b": {"kind": "llama", "d": 8192, "layers": 80, "heads": 64, "kv": 8, "ff": 28672, "vocab": 32000},
    "llama-3-8b": LLAMA_8B,
    "llama-3-70b": LLAMA_70B,
    "llama-3.1-8b": LLAMA_8B,
    "llama-3.1-70b": LLAMA_70B,
    "llama-3.1-405b": {**LLAMA3, "d": 16384, "layers": 126, "heads": 128, "ff": 53248},
    "llama-3.2-1b": {**LLAMA3, "d": 2048, "layers": 16, "heads": 32, "head_dim": 64, "ff": 8192, "tied": True},
    "llama-3.2-3b": {**LLAMA3, "d": 3072, "layers": 28, "heads": 24, "ff": 8192, "tied": True},
    "mistral-7b": {"kind": "mistral", "d": 4096, "layers": 32, "heads": 32, "kv": 8, "ff": 14336, "vocab": 32000},
    "mixtral-8x7b": {
        **{"kind": "mixtral", "d": 4096, "layers": 32, "heads": 32, "kv": 8, "ff": 14336, "vocab": 32000},
        **{"num_local_experts": 8, "num_experts_per_tok": 2},
    },
    "qwen2.5-0.5b": {**QWEN2, "d": 896, "layers": 24, "heads": 14, "kv": 2, "ff": 4864, "vocab": 151936, "tied": True},
    "qwen2.5-1.5b": {**QWEN2, "d": 1536, "layers": 28, "heads": 12, "kv": 2, "ff": 8960, "vocab": 151936, "tied": True},
    "qwen2.5-3b": {**QWEN2, "d": 2048, "layers": 36, "heads": 16, "kv": 2, "ff": 11008, "vocab": 151936, "tied": True},
    "qwen2.5-7b": {**QWEN2, "d": 3584, "layers": 28, "heads": 28, "kv": 4, "ff": 18944},
    "qwen2.5-14b": {**QWEN2, "d": 5120, "layers": 48, "heads": 40, "kv": 8, "ff": 13824},
    "qwen2.5-32b": {**QWEN2, "d": 5120, "layers": 64, "heads": 40, "kv": 8, "ff": 27648},
    "qwen2.5-72b": {**QWEN2, "d": 8192, "layers": 80, "heads": 64, "kv": 8, "ff": 29568},
    "qwen3-0.6b": {**QWEN3, "d": 1024, "layers": 28, "heads": 16, "ff": 3072, "tied": True},
    "qwen3-1.7b": {**QWEN3, "d": 2048, "layers": 28, "heads": 16, "ff": 6144, "tied": True},
    "qwen3-4b": {**QWEN3, "d": 2560, "layers": 36, "heads": 32, "ff": 9728, "tied": True},
    "qwen3-8b": {**QWEN3, "d": 4096, "layers": 36, "heads": 32, "ff": 12288},
    "qwen3-14b": {**QWEN3, "d": 5120, "layers": 40, "heads": 40, "ff": 17408},
    "qwen3-32b": {**QWEN3, "d": 5120, "layers": 64, "heads": 64, "ff": 25600},
    "qwen3-30b-a3b": {
        **{**QWEN3, "kind": "qwen3_moe", "d": 2048, "layers": 48, "heads": 32, "kv": 4, "ff": 6144},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    },
    "olmo-2-1b": {**OLMO2, "d": 2048, "layers": 16, "heads": 16, "kv": 16, "ff": 8192},
    "olmo-2-7b": {**OLMO2, "d": 4096, "layers": 32, "heads": 32, "kv": 32, "ff": 11008},
    "olmo-2-13b": {**OLMO2, "d": 5120, "layers": 40, "heads": 40, "kv": 40, "ff": 13824},
    "olmo-2-32b": {**OLMO2, "d": 5120, "layers": 64, "heads": 40, "kv": 8, "ff": 27648},
    "gemma-2-2b": {**GEMMA2, "d": 2304, "layers": 26, "heads": 8, "kv": 4, "ff": 9216},
    "gemma-2-9b": {**GEMMA2, "d": 3584, "layers": 42, "heads": 16, "kv": 8, "ff": 14336},
    "gemma-2-27b": {**GEMMA2, "d": 4608, "layers": 46, "heads": 32, "kv": 16, "head_dim": 128, "ff": 36864},
    "gemma-3-270m": {**GEMMA3, "d": 640, "layers": 18, "heads": 4, "kv": 1, "ff": 2048, "vocab": 262144},
    "gemma-3-1b": {**GEMMA3, "d": 1152, "layers": 26, "heads": 4, "kv": 1, "ff": 6912, "vocab": 262144},
    "gemma-3-4b": {**GEMMA3, "d": 2560, "layers": 34, "heads": 8, "kv": 4, "ff": 10240},
    "gemma-3-12b": {**GEMMA3, "d": 3840, "layers": 48, "heads": 16, "kv": 8, "ff": 15360},
    "gemma-3-27b": {**GEMMA3, "d": 5376, "layers": 62, "heads": 32, "kv": 16, "head_dim": 128, "ff": 21504},
    "phi-3-mini": {"kind": "phi3", "d": 3072, "layers": 32, "heads": 32, "kv": 32, "ff": 8192, "vocab": 32064},
    "smollm2-135m": {**SMOLLM2, "d": 576, "layers": 30, "heads": 9, "kv": 3, "ff": 1536},
    "smollm2-360m": {**SMOLLM2, "d": 960, "layers": 32, "heads": 15, "kv": 5, "ff": 2560},
    "smollm2-1.7b": {**SMOLLM2, "d": 2048, "layers": 24, "heads": 32, "kv": 32, "ff": 8192},
    "deepseek-v2-lite": {
        **{"kind": "deepseek_v2", "d": 2048, "layers": 27, "heads": 16, "kv": 16, "ff": 10944, "vocab": 102400},
        **{"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6},
        **{"moe_intermediate_size": 1408, "first_k_dense_replace": 1, "tied": False},
    },
    # shapes of our own: Qwen3's architecture
    "groundup-1b": {**QWEN3, "d": 2048, "layers": 24, "heads": 16, "kv": 16, "ff": 5632, "vocab": 32768, "tied": True},
    "groundup-7b": {**QWEN3, "d": 4096, "layers": 32, "heads": 32, "kv": 32, "ff": 11008, "vocab": 65536},
    "groundup-13b": {**QWEN3, "d": 5120, "layers": 40, "heads": 40, "ff": 16384, "vocab": 65536},
    "groundup-70b": {**QWEN3, "d": 8192, "layers": 80, "heads": 64, "ff": 28672, "vocab": 65536},
}

# What no count shows: (max_position_embeddings, rms_norm_eps, rope_theta, sliding_window) of the same files. Of several
# beginnings of a preset's name, the longest counts.
OTHERS: dict[str, tuple[int, float, float, int]] = {
    "llama-2": (4096, 1e-5, 1e4, 0),
    "llama-3": (8192, 1e-5, 5e5, 0),
    "llama-3.": (131072, 1e-5, 5e5, 0),
    "mistral": (32768, 1e-5, 1e4, 4096),
    "mixtral": (32768, 1e-5, 1e6, 0),
    "qwen2.5-0.5b": (32768, 1e-6, 1e6, 0),
    "qwen2.5-1.5b": (131072, 1e-6, 1e6, 0),
    "qwen2.5-3b": (32768, 1e-6, 1e6, 0),
    "qwen2.5-7b": (131072, 1e-6, 1e6, 0),
    "qwen2.5": (131072, 1e-5, 1e6, 0),
    "qwen3": (40960, 1e-6, 1e6, 0),
    "olmo-2": (4096, 1e-6, 5e5, 0),
    "gemma-2": (8192, 1e-6, 1e4, 4096),
    "gemma-3": (131072, 1e-6, 1e6, 1024),
    "gemma-3-270m": (32768, 1e-6, 1e6, 512),
    "gemma-3-1b": (32768, 1e-6, 1e6, 512),
    "phi-3-mini": (4096, 1e-5, 1e4, 2047),
    "smollm2": (8192, 1e-5, 1e5, 0),
    "smollm2-1.7b": (8192, 1e-5, 1.3e5, 0),
    "deepseek-v2-lite": (163840, 1e-6, 1e4, 0),
}


def theirs(preset: str) -> tuple[int, int | None]:
    """(parameters, those a token uses, for a mixture of experts) of the model that transformers builds."""
    values = {SHORT.get(key, key): value for key, value in HUB[preset].items()}
    config = transformers.AutoConfig.for_model(values.pop("kind"), **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}  # tied: once
    routed = sum(size for name, size in sizes.items() if ".experts." in name)
    total = sum(sizes.values())
    if not routed:
        return total, None
    experts = values.get("n_routed_experts") or values.get("num_experts") or values["num_local_experts"]
    return total, total - routed * (experts - values["num_experts_per_tok"]) // experts


def test_every_preset_is_compared() -> None:
    """Bug: a preset is added without the published config that it claims to follow."""
    assert HUB.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("preset", HUB)
def test_transformers_counts_the_same(preset: str) -> None:
    """Bug: the table of published counts itself is wrong, and preset and formula agree with it."""
    assert theirs(preset) == PUBLISHED[preset][:2]


@pytest.mark.parametrize("preset", [name for name in HUB if not name.startswith(("gpt2", "groundup"))])
def test_other_published_numbers(preset: str) -> None:
    """Bug: a base, an epsilon, a window or a context that no count of parameters shows is another model's."""
    given = load_recipe(preset).model
    numbers = OTHERS[max((begin for begin in OTHERS if preset.startswith(begin)), key=len)]
    assert (given.context, given.norm_eps, given.rope_base, given.window) == numbers
