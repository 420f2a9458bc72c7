"""Export to Hugging Face: the same function under the names that transformers, vLLM and llama.cpp know.

Plain JSON and safetensors; transformers itself is not imported. A config that no known architecture computes
exactly is refused with the fields that stand in the way: a model that loads but answers differently is worse.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from groundup.errors import UserError, problems
from groundup.model.config import ModelConfig
from groundup.model.storage import model_tensors
from groundup.model.transformer import Transformer
from groundup.record.files import atomic_write, disk_errors

BOS, EOS, END = "<|begin_of_text|>", "<|end_of_text|>", "<|end|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors")
OURS = {*TOKENIZER_FILES, *MODEL_FILES, "README.md", ".gitattributes"}


def export_hf(model: Transformer, tokenizer_folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` open; return what was written.

    The weights keep the model's dtype. Returns {"architecture", "parameters", "dtype", "files": {name: bytes}}.
    Raises UserError when no architecture fits (see `hf_obstacles`), when the tokenizer is not the model's, or when
    `out` already holds other files: a leftover shard index would be read instead of these weights.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper puts a prefix before every name
    config, source, out = model.config, Path(tokenizer_folder), Path(out)
    obstacles = hf_obstacles(config)
    if obstacles:
        raise UserError("no Hugging Face architecture computes this model: " + "; ".join(obstacles))
    tokens = _special_ids(source, config.vocab_size)
    problems(str(out), _in_the_way(out))

    architecture = architecture_of(config)
    tensors = {k: v.contiguous() for k, v in hf_tensors(model).items()}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    files = {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).exists()}
    files["config.json"] = _json({**hf_config(config), **_config_ids(tokens), "dtype": dtype, "torch_dtype": dtype})
    files["generation_config.json"] = _json(_generation_config(tokens))
    files["model.safetensors"] = save(tensors, metadata={"format": "pt"})
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        atomic_write(out / name, content)
    return {
        "architecture": architecture,
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtype": dtype,
        "files": {name: len(content) for name, content in files.items()},
    }


def architecture_of(config: ModelConfig) -> str:
    """The architecture that computes exactly this config; one without obstacles, or else the nearest."""
    return min(ARRANGEMENTS, key=lambda name: len(_obstacles(config, name)))


def hf_obstacles(config: ModelConfig) -> list[str]:
    """The fields that keep the nearest architecture from computing this config; empty when it can be exported."""
    return _obstacles(config, architecture_of(config))


# What each architecture fixes. Everything else (sizes, eps, rope_base, tied) it takes from its config.
ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "Qwen3ForCausalLM": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True, "bias": False},
    "LlamaForCausalLM": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": False},
    "GPT2LMHeadModel": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qk_norm": False, "bias": True},
}


def _obstacles(config: ModelConfig, architecture: str) -> list[str]:
    found = [
        f"{field} is {_word(getattr(config, field))}, {architecture} has {_word(value)}"
        for field, value in ARRANGEMENTS[architecture].items()
        if getattr(config, field) != value
    ]
    if architecture == "GPT2LMHeadModel":
        if config.n_kv_heads != config.n_heads:
            found.append(f"n_kv_heads is {config.n_kv_heads}, {architecture} has as many as n_heads, {config.n_heads}")
        if config.n_heads * config.head_dim != config.d_model:
            found.append(f"n_heads * head_dim is {config.n_heads * config.head_dim}, {architecture} has d_model")
    return found


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json without token ids and dtype, for transformers 4.51 to 5."""
    architecture = architecture_of(config)
    common = {"architectures": [architecture], "vocab_size": config.vocab_size, "tie_word_embeddings": config.tied}
    if architecture == "GPT2LMHeadModel":
        return common | {
            "model_type": "gpt2",
            "n_positions": config.context,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": 0.0,
        }
    shared = common | {
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,  # TRAP: Qwen3's default is 128, whatever the width
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},  # transformers 5
        "rope_theta": config.rope_base,  # transformers 4, vLLM, llama.cpp
        "attention_bias": config.bias,
        "attention_dropout": 0.0,
    }
    if architecture == "Qwen3ForCausalLM":
        return shared | {"model_type": "qwen3", "use_sliding_window": False, "max_window_layers": config.n_layers}
    return shared | {"model_type": "llama", "mlp_bias": config.bias}


def hf_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under the architecture's names, on the CPU; a tied head is left out, as transformers does."""
    gpt2 = architecture_of(model.config) == "GPT2LMHeadModel"
    rename = _gpt2_names if gpt2 else _llama_names
    named: dict[str, Tensor] = {}
    for name, tensor in model_tensors(model).items():
        named |= rename(name, tensor, model)
    return named


_TOP = {"embed.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head."}
_BLOCK = {
    "norm1.": "input_layernorm.",
    "norm2.": "post_attention_layernorm.",
    "attention.out.": "self_attn.o_proj.",
    "attention.q_norm.": "self_attn.q_norm.",
    "attention.k_norm.": "self_attn.k_norm.",
    "mlp.down.": "mlp.down_proj.",
}
_FUSED = {
    "attention.qkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "mlp.gate_up.": ("mlp.gate_proj.", "mlp.up_proj."),
}


def _llama_names(name: str, tensor: Tensor, model: Transformer) -> dict[str, Tensor]:
    """Llama's and Qwen3's names. Our rotary layout is theirs (half-split), so no row is permuted."""
    if not name.startswith("blocks."):
        return {_renamed(name, _TOP): tensor}
    _, layer, inside = name.split(".", 2)
    for fused, parts in _FUSED.items():
        if inside.startswith(fused):
            sizes = model.get_submodule(f"blocks.{layer}.{fused[:-1]}").sizes
            kind = inside.removeprefix(fused)
            pieces = zip(parts, tensor.split(sizes), strict=True)  # rows are outputs, of weights and of biases
            return {f"model.layers.{layer}.{part}{kind}": piece.clone() for part, piece in pieces}
    return {f"model.layers.{layer}.{_renamed(inside, _BLOCK)}": tensor}


_GPT2_TOP = {
    "embed.": "transformer.wte.",
    "position_embed.": "transformer.wpe.",
    "norm.": "transformer.ln_f.",
    "head.": "lm_head.",
}
_GPT2_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attention.qkv.": "attn.c_attn.",
    "attention.out.": "attn.c_proj.",
    "mlp.up.": "mlp.c_fc.",
    "mlp.down.": "mlp.c_proj.",
}


def _gpt2_names(name: str, tensor: Tensor, model: Transformer) -> dict[str, Tensor]:
    """GPT-2's names. TRAP: its Conv1D keeps weights as (in, out), the transpose of a Linear's."""
    if not name.startswith("blocks."):
        return {_renamed(name, _GPT2_TOP): tensor}
    _, layer, inside = name.split(".", 2)
    return {f"transformer.h.{layer}.{_renamed(inside, _GPT2_BLOCK)}": tensor.T if tensor.ndim == 2 else tensor}


def _renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(f"the export has no Hugging Face name for {name}")  # a new module: must not be dropped in silence


def _special_ids(folder: Path, vocab_size: int) -> dict[str, int]:
    """Ids of the specials in tokenizer.json, which must fit the model's vocabulary."""
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_bytes())
        added = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
        vocabulary = content["model"]["vocab"]
        largest = max([*vocabulary.values(), *added.values()])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a tokenizer ({error}): give the folder that holds it") from error
    found = [f'the special token "{s}" is missing' for s in (BOS, EOS, END) if s not in added]
    if largest >= vocab_size:
        found.append(f"its ids reach {largest}, the model's vocabulary is {vocab_size}: is it this model's tokenizer?")
    problems(str(path), found)
    return added


def _config_ids(tokens: dict[str, int]) -> dict[str, Any]:
    """TRAP: no pad_token_id here. Our pad is <|end_of_text|>, and transformers gives the embedding of
    `config.pad_token_id` no gradient: whoever fine-tunes the export would never train the end of a text."""
    return {"bos_token_id": tokens[BOS], "eos_token_id": tokens[EOS]}


def _generation_config(tokens: dict[str, int]) -> dict[str, Any]:
    """A chat turn ends with <|end|>, a text with <|end_of_text|>: generation stops at either."""
    stops = [tokens[END], tokens[EOS]]
    return {"bos_token_id": tokens[BOS], "eos_token_id": stops, "pad_token_id": tokens[EOS]}


def _in_the_way(out: Path) -> list[str]:
    if out.exists() and not out.is_dir():
        return ["is a file; give a folder"]
    others = sorted(p.name for p in out.iterdir() if p.name not in OURS) if out.exists() else []
    return [f"holds other files ({', '.join(others[:3])}); give an empty or new folder"] if others else []


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
