"""Does every value of an exported folder, and every weight of a converted model, come from the model itself?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup.model.config import ModelConfig
from groundup.model.interchange import hf_import
from groundup.model.interchange.families import FAMILIES
from groundup.model.interchange.names import layout
from groundup.model.storage import load_model
from groundup.model.transformer import Transformer
from groundup.tokenizer.foreign import ForeignTokenizer
from groundup.verify.check import Measurement, check, violations
from groundup.verify.checks.export import a_model, exported, expressible
from groundup.verify.subject import Subject

ACTIVATIONS = {
    "swiglu": ("silu",),
    "geglu": ("gelu",),
    "geglu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
    "relu": ("relu",),
    "relu2": ("relu2",),
}
GENERATION = {"bos_token_id", "eos_token_id", "pad_token_id"}  # all that an export knows of decoding
NO_LIMIT = 10**29  # transformers writes 1e30 for "none"


def sizes(c: ModelConfig, model_type: str) -> dict[str, Any]:
    """Widths and counts under the names of GPT-2's config.json and of all others'."""
    dynamic = c.rope_scaling is not None and c.rope_scaling.kind == "dynamic"
    reach = c.rope_scaling.original_context if dynamic and c.rope_scaling is not None else c.context
    wide = c.moe.d_expert if c.moe and model_type == "mixtral" else c.d_ff
    found: dict[str, Any] = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied}
    found |= dict.fromkeys(("n_positions", "n_ctx"), c.context) | {"max_position_embeddings": reach}
    found |= dict.fromkeys(("n_embd", "hidden_size"), c.d_model)
    found |= dict.fromkeys(("n_layer", "num_hidden_layers"), c.n_layers)
    found |= dict.fromkeys(("n_head", "num_attention_heads"), c.n_heads)
    found |= {"num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "n_inner": c.d_ff}
    found |= dict.fromkeys(("layer_norm_epsilon", "rms_norm_eps"), float(c.norm_eps))
    found |= {"intermediate_size": wide, "resid_pdrop": c.dropout, "embd_pdrop": c.dropout}
    found |= {"attn_pdrop": 0.0, "attention_dropout": 0.0}
    found |= dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), ACTIVATIONS[c.mlp])
    found |= {"attention_bias": bool({"qkv", "out"} & set(c.bias)), "mlp_bias": bool({"up", "down"} & set(c.bias))}
    return found


def choices(c: ModelConfig) -> dict[str, Any]:
    """Windows, caps, scales and experts."""
    local = [c.is_local(n) for n in range(c.n_layers)]
    found: dict[str, Any] = {
        "sliding_window": (c.window,) if any(local) else (None, c.context),
        "use_sliding_window": any(local),
        "layer_types": ["sliding_attention" if here else "full_attention" for here in local],
        "query_pre_attn_scalar": round(c.score_dim or c.qk_dim),
        "attn_logit_softcapping": float(c.attention_softcap) or None,
        "final_logit_softcapping": float(c.logit_softcap) or None,
    }
    # What older readers count by: the first layer of windows, and the distance between layers without.
    found["max_window_layers"] = (local.index(True) if any(local) else c.n_layers,)
    free = [n for n, here in enumerate(local) if not here]
    found["sliding_window_pattern"] = free[0] + 1 if free else c.n_layers + 1
    if c.moe:
        loss = c.moe.balance_weight if c.moe.balance == "loss" else 0.0
        found |= dict.fromkeys(("num_local_experts", "num_experts"), c.moe.n_experts)
        found |= {"num_experts_per_tok": c.moe.top_k, "moe_intermediate_size": c.moe.d_expert}
        found |= {"norm_topk_prob": c.moe.normalise, "router_aux_loss_coef": loss, "decoder_sparse_step": 1}
        found["mlp_only_layers"] = [n for n in range(c.n_layers) if not c.has_experts(n)]
    return found


def rope(c: ModelConfig) -> dict[str, Any]:
    """RoPE in both spellings: transformers 4 reads the keys beside one another, 5 the object."""
    if c.position != "rope":
        return {}
    scaling, base = c.rope_scaling, float(c.rope_base)
    if scaling is not None and scaling.kind == "ntk":  # which is a larger base, and nothing else
        base *= scaling.factor ** (c.rope_dim / (c.rope_dim - 2))
    stretched: dict[str, Any] = {}
    if scaling is not None and scaling.kind != "ntk":
        stretched = {"rope_type": scaling.kind, "factor": float(scaling.factor)}
        if scaling.kind in ("yarn", "llama3"):
            stretched["original_max_position_embeddings"] = scaling.original_context
        if scaling.kind == "yarn":
            stretched |= {"beta_fast": float(scaling.beta_fast), "beta_slow": float(scaling.beta_slow)}
            given = scaling.attention_factor
            stretched |= {} if given is None else {"attention_factor": float(given)}
        if scaling.kind == "llama3":
            low, high = float(scaling.low_freq_factor), float(scaling.high_freq_factor)
            stretched |= {"low_freq_factor": low, "high_freq_factor": high}
    local = base if c.rope_local_base is None else float(c.rope_local_base)
    part = {"partial_rotary_factor": c.rope_fraction}
    everywhere = {"rope_theta": base, **(stretched or {"rope_type": "default"})}
    by_layer = {"full_attention": everywhere, "sliding_attention": {"rope_theta": local, "rope_type": "default"}}
    return {
        "rope_theta": base,
        "rope_local_base_freq": local,
        "rope_scaling": (stretched or None,),
        "rope_parameters": (everywhere, {**everywhere, **part}, by_layer),
        **part,
    }


def other(there: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> list[str]:
    """Keys that hold another value, and keys of which nobody knows where they come from. A tuple: any one of these."""
    found = [f"{where}: {key} {there[key]!r} comes from nowhere" for key in sorted(there.keys() - wanted.keys())]
    for key in sorted(there.keys() & wanted.keys()):
        allowed = wanted[key] if isinstance(wanted[key], tuple) else (wanted[key],)
        if not any(_same(there[key], one) for one in allowed):
            found.append(f"{where}: {key} is {there[key]!r}, the model's is {allowed[0]!r}")
    return found


def _same(a: Any, b: Any) -> bool:
    """Equal, numbers to the last bit of a double's decimal form; true and 1 are not the same."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-15 * abs(b)
    return type(a) is type(b) and bool(a == b)


@check(
    "exported-values-are-the-models",
    "identity",
    "export",
    bug="A value of the exported folder (longest text, RoPE base, an id, a limit) is a default, or another model's.",
    remedy="Write each key from the config and the tokenizer, no default (parts.py, rope.py in model/interchange/).",
    reference=(
        "huggingface/transformers issues 24986, 15097; Open-Athena/MarinFold pull 184; "
        "marin-community/marin pull 7156; NVIDIA-NeMo/Megatron-Bridge issue 5994"
    ),
)
def exported_values_are_the_models(subject: Subject) -> Measurement:
    """Keys of config.json, generation_config.json and tokenizer_config.json whose value is not the model's or the
    tokenizer's, each written down here once more from its published meaning; and keys that come from neither. Exact.

    Logits see little of this: transformers reads one spelling of RoPE and other programs the other, no logit tells how
    long a text may be, and limits (max_length, model_max_length) act only where somebody generates or truncates. A
    tokenizer may claim no length, or the model's.
    """
    expressible(subject)
    tokenizer = subject.tokenizer
    model = a_model(subject, tokenizer)
    with exported(subject, model, tokenizer) as (folder, told):
        config, generation, names = (
            json.loads((folder / name).read_text())
            for name in ("config.json", "generation_config.json", "tokenizer_config.json")
        )
    c = model.config
    family = FAMILIES[told["architecture"]]
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": None}
    kind = str(model.embed.weight.dtype).removeprefix("torch.")
    whole = {
        **sizes(c, family.model_type),
        **choices(c),
        **rope(c),
        **ids,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": kind,
        "torch_dtype": kind,
    }
    stops = [tokenizer.end, tokenizer.eos]
    ends = {"eos_token_id": (stops, stops[::-1], tokenizer.eos), "pad_token_id": (tokenizer.eos, None)}
    found = other(config, whole, "config.json")
    found += [f"config.json has no {key}" for key in needed(c, family.model_type) - config.keys()]
    found += other(generation, {"bos_token_id": tokenizer.bos, **ends}, "generation_config.json")
    found += [f"generation_config.json has no {key}" for key in sorted(GENERATION - generation.keys())]
    if not isinstance(tokenizer, ForeignTokenizer):  # an imported one says what its own model said
        found += _claims(names, tokenizer, c.context)
    return violations(found, len(config) + len(generation) + len(names))


def needed(c: ModelConfig, model_type: str) -> set[str]:
    """Keys whose absence a reader fills with a default of its own, which is seldom ours."""
    if model_type == "gpt2":
        return {"vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon"}
    keys = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"}
    keys |= {"intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"}
    keys |= {"rope_theta", "rope_parameters"} if c.position == "rope" else set()
    keys |= {"rope_scaling"} if c.rope_scaling is not None else set()
    keys |= {"num_experts_per_tok"} if c.moe else set()
    return keys | ({"sliding_window"} if c.window else set())


def _claims(names: Mapping[str, Any], tokenizer: Any, context: int) -> list[str]:
    """What tokenizer_config.json says of lengths and special tokens that is not so."""
    found = []
    length = names.get("model_max_length")
    if length is not None and length != context and length < NO_LIMIT:
        found.append(f"tokenizer_config.json: model_max_length is {length}, the model's context is {context}")
    for key, id in (("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos)):
        name = names.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        if name is not None and tokenizer.special_ids.get(name) != id:
            found.append(f"tokenizer_config.json: {key} is {name!r}")
    limits = ("truncation", "max_length", "stride", "pad_to_multiple_of")
    return found + [f"tokenizer_config.json: {key} {names[key]!r}" for key in limits if names.get(key)]


# ---- conversion ----


@contextmanager
def stamped_memory() -> Iterator[None]:
    """Memory that is asked for and not filled holds NaN, where it would hold whatever stood there before."""
    settings: Any = torch.utils.deterministic
    strict, warn, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        settings.fill_uninitialized_memory = fill


@torch.no_grad()
def numbered(model: Transformer) -> Transformer:
    """Every weight is another whole number, counted from 1: a value tells where it comes from. Exact in fp32."""
    at = 1
    for parameter in model.parameters():
        n = parameter.numel()
        if at + n > 2**24:
            raise ValueError("too many weights to be told apart in fp32")
        parameter.copy_(torch.arange(at, at + n, dtype=torch.float32).view_as(parameter))
        at += n
    for buffer in model.buffers():  # a loss-free bias; angles are not saved
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.copy_(torch.arange(at, at + len(buffer), dtype=torch.float32))
            at += len(buffer)
    return model


def misplaced(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Tensors of `after` with weights that were never written, or that stand elsewhere too; and how many are lost."""
    known = torch.cat([t.flatten() for t in before.values()]).unique()
    values = torch.cat([t.flatten() for t in after.values()])
    once, times = values[~values.isnan()].unique(return_counts=True)
    twice, found = once[times > 1], []
    for name, tensor in after.items():
        empty = int((~torch.isin(tensor, known)).sum())  # NaN is in nothing
        copied = int(torch.isin(tensor, twice).sum())
        found += [f"{name}: {empty} weights were never written"] if empty else []
        found += [f"{name}: {copied} weights stand elsewhere too"] if copied else []
    lost = len(known) - int(torch.isin(known, once).sum())
    return found + ([f"{lost} weights are lost"] if lost else [])


@check(
    "converter-fills-every-weight",
    "identity",
    "export",
    bug="A converter leaves a tensor (an expert, a layer, half a matrix) as constructed, or writes one source twice.",
    remedy="Match names one to one; fill the target with NaN before conversion (names.py in model/interchange/).",
    reference=(
        "NVIDIA/Megatron-LM issue 5844; huggingface/transformers pull 24381; KempnerInstitute/KempnerForge issue 202"
    ),
)
def converter_fills_every_weight(subject: Subject) -> Measurement:
    """Tensors that are not filled one to one, after export to Hugging Face, after import of that, and after import of
    files that hold a layer's experts as one tensor. Exact.

    Every weight of the source is another whole number, so that each value of the target says where it comes from, and
    fresh memory is filled with NaN: what was left as it was cannot look right because an earlier tensor stood there.
    """
    expressible(subject)
    tokenizer = subject.micro_tokenizer
    model = numbered(a_model(subject, tokenizer))
    state = {name: t for name, t in model.state_dict().items() if not (model.config.tied and name == "head.weight")}
    found, looked = [], 0
    with stamped_memory(), exported(subject, model, tokenizer) as (folder, told):
        theirs = load_file(folder / "model.safetensors")
        found += [f"export: {one}" for one in misplaced(state, theirs)]
        looked += len(theirs)
        kinds = {"import": folder}
        if model.config.moe is not None:
            kinds["import of stacks"] = _stacked(model, state, folder, told["architecture"])
        for kind, source in kinds.items():
            back = folder.with_name(f"back of {source.name}")
            hf_import.import_hf(source, back)
            again = load_file(back / "model.safetensors")
            found += [f"{kind}: {one}" for one in misplaced(theirs, again)]
            found += [f"{kind}: {name} stands in another's place" for name in _moved(state, again)]
            found += [f"{kind}: {name} is not what was saved" for name in _moved(again, load_model(back).state_dict())]
            looked += len(again)
    return violations(found, looked)


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    return [name for name, t in before.items() if name not in after or not torch.equal(t, after[name])]


def _stacked(model: Transformer, state: Mapping[str, Tensor], folder: Path, architecture: str) -> Path:
    """The same folder with a layer's experts in one tensor, as transformers 5 holds them."""
    out = folder.with_name("stacked")
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    plan = layout(model.config, FAMILIES[architecture].model_type, stacked=True)
    tensors = {piece.name: state[ours][piece.at] for ours, entry in plan.items() for piece in entry.pieces}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    return out
