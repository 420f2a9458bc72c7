"""The parts that Hugging Face's configs are made of: how the keys of each become our fields, and back.

`read` gives fields of ModelConfig; `write` gives the keys that come nearest to a config, whether or not they can
express it: families.py reads them back and compares.
"""

from __future__ import annotations

from typing import Any, Protocol

from groundup.errors import did_you_mean
from groundup.model.config import ModelConfig
from groundup.model.interchange.keys import Keys

# our feed-forward -> its activation's name, and other names of the same
GATED = {"swiglu": ("silu", "swish"), "geglu": ("gelu",), "geglu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
PLAIN = {
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "gelu": ("gelu",),
    "relu": ("relu",),
    "relu2": ("relu2",),
}


class Part(Protocol):
    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        """Fields of ModelConfig; `so_far`: those that the parts before have read."""
        ...

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Keys of config.json."""
        ...


class Sizes:
    """Widths and counts, under the names that Llama gave them."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        d, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
        return {
            "vocab_size": keys.whole("vocab_size"),
            "d_model": d,
            "n_layers": keys.whole("num_hidden_layers"),
            "n_heads": heads,
            "n_kv_heads": heads if keys.get("num_key_value_heads") is None else keys.whole("num_key_value_heads"),
            "head_dim": head_dim(keys, d, heads) if keys.get("head_dim") is None else keys.whole("head_dim"),
            "d_ff": keys.whole("intermediate_size"),
            "context": keys.whole("max_position_embeddings"),
            "norm_eps": keys.number("rms_norm_eps"),
            "tied": keys.flag("tie_word_embeddings"),
        }

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_dim,  # TRAP: Qwen3's default is 128, whatever the width
            "intermediate_size": config.d_ff,
            "max_position_embeddings": config.context,
            "rms_norm_eps": float(config.norm_eps),
            "tie_word_embeddings": config.tied,
            "attention_dropout": 0.0,
        }


def head_dim(keys: Keys, d_model: int, n_heads: int) -> int:
    if d_model % n_heads and not keys.found:  # else one of the two may only stand in
        keys.found.append(f"hidden_size {d_model} is not divisible by {n_heads} heads, and no head_dim is given")
    return max(1, d_model // n_heads)


class Divisible:
    """Llama and Gemma: transformers refuses a width that is not a multiple of the heads, though nothing needs it."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        if so_far["d_model"] % so_far["n_heads"] and not keys.found:
            keys.found.append(f"hidden_size {so_far['d_model']} is not divisible by {so_far['n_heads']} heads")
        return {}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {}


class Biases:
    """One key for all of attention, perhaps one for the feed-forward. `always`: those that no key can switch off."""

    def __init__(self, attention: bool = True, mlp: bool = False, always: tuple[str, ...] = ()) -> None:
        self.keys = {"attention_bias": ("qkv", "out")} if attention else {}
        self.keys |= {"mlp_bias": ("up", "down")} if mlp else {}
        self.always = always

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        return {
            "bias": self.always + tuple(part for key, parts in self.keys.items() if keys.get(key) for part in parts)
        }

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {key: bool(set(parts) & set(config.bias)) for key, parts in self.keys.items()}


class Activation:
    """The feed-forward by its activation. Of several keys the first is read and all are written."""

    def __init__(self, *keys: str, table: dict[str, tuple[str, ...]] = GATED) -> None:
        self.keys, self.table = keys, table

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        value = keys.get(self.keys[0])
        ours = {name: mlp for mlp, names in self.table.items() for name in names}
        if value not in ours:
            keys.found.append(f'{self.keys[0]}: no feed-forward here has "{value}"{did_you_mean(str(value), ours)}')
        return {"mlp": ours.get(value, next(iter(self.table)))}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        nearest = next(iter(self.table.values()))
        return dict.fromkeys(self.keys, self.table.get(config.mlp, nearest)[0])


class Gemma:
    """What Gemma 2 and 3 do to embeddings, scores and logits. caps_scores: whether the scores' cap is computed."""

    def __init__(self, caps_scores: bool) -> None:
        self.caps_scores = caps_scores

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        scores, logits = keys.get("attn_logit_softcapping"), keys.get("final_logit_softcapping")
        caps = {"attn_logit_softcapping": scores if self.caps_scores else None, "final_logit_softcapping": logits}
        for key in (key for key, cap in caps.items() if cap == 0 and cap is not None):
            keys.found.append(f"{key} is 0, and transformers divides by it: write null for no cap")
        if scores and not self.caps_scores:
            keys.found.append(f"attn_logit_softcapping {scores}: transformers does not compute it here")
        return {
            "embed_scale": float(so_far["d_model"] ** 0.5),
            "score_dim": keys.number("query_pre_attn_scalar"),
            "attention_softcap": float(scores or 0.0),
            "logit_softcap": float(logits or 0.0),
        }

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "query_pre_attn_scalar": round(config.score_dim or config.head_dim),  # transformers takes whole numbers
            "attn_logit_softcapping": (float(config.attention_softcap) or None) if self.caps_scores else None,
            "final_logit_softcapping": float(config.logit_softcap) or None,
        }


class Gpt2:
    """GPT-2's names, and its dropouts: ours stands where its embd_pdrop and resid_pdrop do."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        d, heads = keys.whole("n_embd"), keys.whole("n_head")
        if d % heads and not keys.found:
            keys.found.append(f"n_embd {d} is not divisible by n_head {heads}")
        return {
            "vocab_size": keys.whole("vocab_size"),
            "d_model": d,
            "n_layers": keys.whole("n_layer"),
            "n_heads": heads,
            "n_kv_heads": heads,
            "head_dim": max(1, d // heads),
            "d_ff": 4 * d if keys.get("n_inner") is None else keys.whole("n_inner"),
            "context": keys.whole("n_positions"),
            "norm_eps": keys.number("layer_norm_epsilon"),
            "tied": keys.flag("tie_word_embeddings"),
            "dropout": keys.number("resid_pdrop"),
        }

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.context,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.d_ff,
            "layer_norm_epsilon": float(config.norm_eps),
            "tie_word_embeddings": config.tied,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": 0.0,
        }
