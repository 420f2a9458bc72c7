"""Is the GGUF file the model and its tokenizer, as far as its types can hold them?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.interchange import gguf as to_gguf
from groundup.model.interchange import hf
from groundup.model.interchange.gguf_layout import gguf_obstacles, gguf_tensors, layout_of
from groundup.model.interchange.gguf_tokenizer import gguf_tokenizer
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer, byte_fallback_bytes, byte_level_bytes
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.export import a_model, expressible, extra, logits_apart, opened
from groundup.verify.reference import rates
from groundup.verify.subject import Subject

STEPS = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}  # half a step, of the number's own size
SMALLEST = 2.0**-25  # half a step of F16 next to 0
CONTROL = 3  # the kind of a special token in GGUF


@contextmanager
def gguf_file(subject: Subject, model: Transformer, quant: str, **options: Any) -> Iterator[tuple[Any, Path]]:
    """(what gguf's own reader finds, the folder) of the model as one file."""
    gguf = extra("gguf", "gguf")
    with subject.scratch() as folder:
        subject.micro_tokenizer.save(folder / "tokenizer")
        try:
            gguf_tokenizer(folder / "tokenizer", model.config.vocab_size)
        except UserError as reason:  # a vocabulary that GGUF has no form for
            raise NotApplicable(str(reason).rpartition("tokenizer.json: ")[2]) from reason
        to_gguf.export_gguf(model, folder / "tokenizer", folder / "m.gguf", quant, **options)
        yield gguf.GGUFReader(folder / "m.gguf"), folder


def gguf_expressible(subject: Subject) -> None:
    if obstacles := gguf_obstacles(subject.micro):
        raise NotApplicable("no GGUF architecture computes this model: " + "; ".join(obstacles))


@check(
    "gguf-holds-the-weights",
    "identity",
    "export",
    bug="A GGUF tensor is transposed, missing, of another type, or off by more than its type must be.",
    remedy="See gguf_tensors and _encoded in model/interchange/.",
    reference="ggml-org/llama.cpp pull 22611, issue 2376; huggingface/transformers pull 31788",
)
def gguf_holds_the_weights(subject: Subject) -> Measurement:
    """Largest error of a number read back by the gguf package, in the largest that its type can make: none in F32; half
    a step in F16 and BF16 (2^-11 and 2^-8 of the number); in Q8_0 half of d = largest of the block / 127, and what
    rounding d to F16 adds to 127 of them (127 2^-11 of d, or 127 2^-25 where d is next to 0); in Q4_0 a whole d =
    largest / 8 (one side has no +8) and 8 of those.

    Infinite where a tensor is missing, has another shape, or a vector is not F32. Experts, and queries and keys, whose
    rows llama.cpp wants in another order, are taken from the model by hand: no reader here opens files of experts.
    """
    gguf_expressible(subject)
    model = a_model(subject, subject.micro_tokenizer)
    found = []
    for quant in to_gguf.QUANTS:
        with gguf_file(subject, model, quant, inexact_tokenizer=True) as (reader, _):
            found.append(weights_apart(model, reader))
    return max(found, key=lambda one: one.value)


def weights_apart(model: Transformer, reader: Any) -> Measurement:
    """What `gguf-holds-the-weights` measures, of one file."""
    from gguf.quants import dequantize

    worst, kinds, there = 0.0, set(), {t.name: t for t in reader.tensors}
    expected = dict(gguf_tensors(model)) | by_hand(model)
    if there.keys() != expected.keys():
        return Measurement(float("inf"), 1.0, f"{sorted(there.keys() ^ expected.keys())[:3]}")
    for name, tensor in expected.items():
        kind, values = there[name].tensor_type.name, dequantize(there[name].data, there[name].tensor_type)
        if values.shape != tuple(tensor.shape) or (tensor.ndim == 1 and kind != "F32"):
            return Measurement(float("inf"), 1.0, f"{name} is {values.shape} in {kind}")
        worst = max(worst, _steps_off(tensor.float().contiguous().numpy(), values, kind))
        kinds.add(kind)
    return Measurement(worst, 1 + 2.0**-10, f"{len(expected)} tensors, {', '.join(sorted(kinds))}")


def by_hand(model: Transformer) -> dict[str, Tensor]:
    """Experts' stacks, and queries and keys, as llama.cpp documents them: gate and up apart; a llama rotates
    neighbours, so that its row 2i is our i of a head and its 2i + 1 our i + d/2, and all others halves."""
    c, state, found = model.config, model.state_dict(), {}
    layout = layout_of(c)
    if layout == "gpt2":
        return {}
    d = c.head_dim
    order = [i // 2 + i % 2 * (d // 2) for i in range(d)] if layout in ("llama", "mixtral") else list(range(d))
    for n in range(c.n_layers):
        ours, theirs = f"blocks.{n}.", f"blk.{n}."
        qkv, at = state[f"{ours}attention.qkv.weight"], 0
        for name, heads in (("q", c.n_heads), ("k", c.n_kv_heads)):
            found[f"{theirs}attn_{name}.weight"] = qkv[[at + head * d + i for head in range(heads) for i in order]]
            at += heads * d
        if c.moe is not None and c.has_experts(n):
            half = c.moe.d_expert
            found[f"{theirs}ffn_gate_exps.weight"] = state[f"{ours}mlp.gate_up"][:, :half]
            found[f"{theirs}ffn_up_exps.weight"] = state[f"{ours}mlp.gate_up"][:, half:]
            found[f"{theirs}ffn_down_exps.weight"] = state[f"{ours}mlp.down"]
            found[f"{theirs}ffn_gate_inp.weight"] = state[f"{ours}mlp.router.weight"]
    return found


def _steps_off(weights: np.ndarray, values: np.ndarray, kind: str) -> float:
    """Largest |difference| in the largest that the type allows; an error where none may be is infinite."""
    error = np.abs(values.astype(np.float64) - weights)
    if kind in STEPS:
        allowed = STEPS[kind] * np.abs(weights) + (SMALLEST if kind == "F16" else 0.0)
    else:
        largest = np.abs(weights).reshape(-1, 32).max(1)
        most, half = (
            (127, 0.5) if kind == "Q8_0" else (8, 1.0)
        )  # of d: the largest multiple, and what rounding to it costs
        # d itself is rounded to F16: by 2^-11 of it, next to 0 by SMALLEST.
        allowed = np.repeat(largest * (half + most * 2.0**-11) / most + most * SMALLEST, 32).reshape(weights.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(error == 0, 0.0, error / allowed)
    return float(steps.max())


@check(
    "gguf-logits-equal-ours",
    "invariance",
    "export",
    bug="The GGUF file opens and talks nonsense: rows of q and k in the other rotary order, gate and up swapped.",
    remedy="llama.cpp's llama rotates neighbours, Qwen's halves (model/interchange/gguf_layout.py).",
    reference="ggml-org/llama.cpp issue 3018, pulls 3364, 22611",
)
def gguf_logits_equal_ours(subject: Subject) -> Measurement:
    """Largest |logit - transformers' logit| when transformers reads the F32 file by its own GGUF reader, over two rows
    as long as the context. The config is handed to it: that reader knows no head_dim for Qwen 3."""
    gguf_expressible(subject)
    expressible(subject)
    layout = layout_of(subject.micro)
    if layout not in ("llama", "qwen2", "qwen3", "gpt2"):
        raise NotApplicable(f"transformers reads no GGUF of {layout}")
    transformers = extra("transformers", "hf")
    extra("accelerate", "dev")
    model = a_model(subject, subject.micro_tokenizer)
    written = hf.hf_config(model.config)
    shape = {key: value for key, value in written.items() if key != "architectures"}
    config = transformers.AutoConfig.for_model(**shape, bos_token_id=None, eos_token_id=None)
    with gguf_file(subject, model, "f32", inexact_tokenizer=True) as (_, folder):
        return logits_apart(subject, model, opened(transformers, folder, gguf_file="m.gguf", config=config))


@check(
    "gguf-says-what-it-is",
    "identity",
    "export",
    bug="A size, a special id or the template is missing: the reader takes its own default, and never stops talking.",
    remedy="Write every size and every id (gguf_layout.hyper_parameters, gguf_tokenizer).",
    reference="vllm-project/vllm pull 30434; gittensor-ai-lab/sparkinfer issue 399; ggml-org/llama.cpp issue 5040",
)
def gguf_says_what_it_is(subject: Subject) -> Measurement:
    """Sizes, ids and texts of the file's metadata that are not the model's and the tokenizer's: shape, eps, experts,
    rope base and scaling; BOS, EOS, end of turn, whether a BOS is put before text; each token's bytes, specials marked
    as such; the template. And Llama 3's factors, a tensor that divides RoPE's rates, within fp32's rounding of them.
    """
    gguf_expressible(subject)
    tokenizer = subject.micro_tokenizer
    model = a_model(subject, tokenizer)
    try:
        with gguf_file(subject, model, "f32") as (reader, _):
            fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
            factors = [t.data.copy() for t in reader.tensors if t.name == "rope_freqs.weight"]
    except UserError as reason:
        raise NotApplicable(str(reason)) from reason
    c, arch = model.config, fields["general.architecture"]
    sizes: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "context_length": c.context,
        "embedding_length": c.d_model,
        "block_count": c.n_layers,
        "feed_forward_length": c.moe.d_expert if c.moe else c.d_ff,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon" if c.norm == "rmsnorm" else "attention.layer_norm_epsilon": c.norm_eps,
    }
    if c.position == "rope":
        sizes |= _rotation(c)
    if c.moe:
        sizes |= {"expert_count": c.moe.n_experts, "expert_used_count": c.moe.top_k}
        sizes |= {"expert_feed_forward_length": c.moe.d_expert} if arch == "qwen3moe" else {}
    wanted: dict[str, Any] = {f"{arch}.{name}": value for name, value in sizes.items()}
    wanted |= {
        "tokenizer.ggml.bos_token_id": tokenizer.bos,
        "tokenizer.ggml.eos_token_id": tokenizer.eos,
        "tokenizer.ggml.eot_token_id": tokenizer.end,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    found = [f"{name} is {fields.get(name)!r}" for name, value in wanted.items() if not _same(fields.get(name), value)]
    found += _other_tokens(tokenizer, fields, c.vocab_size) + _other_factors(c, factors)
    return violations(found, len(wanted) + c.vocab_size)


def _rotation(c: ModelConfig) -> dict[str, Any]:
    """What of RoPE stands in the metadata; ntk is a larger base, and Llama 3's scaling a tensor."""
    found: dict[str, Any] = {"rope.dimension_count": c.head_dim, "rope.freq_base": float(c.rope_base)}
    s = c.rope_scaling
    if s is not None and s.kind == "ntk":
        found["rope.freq_base"] *= s.factor ** (c.head_dim / (c.head_dim - 2))
    if s is not None and s.kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": s.kind, "rope.scaling.factor": float(s.factor)}
        found["rope.scaling.original_context_length"] = s.original_context
    return found


def _other_factors(c: ModelConfig, there: list[np.ndarray]) -> list[str]:
    """Whether the tensor that divides the rates is missing, superfluous or another."""
    s = c.rope_scaling
    if s is None or s.kind != "llama3":
        return ["rope_freqs stretches a model that is not"] if there else []
    plain, stretched = (rates(c.head_dim, c.rope_base, scaling, c.context)[0] for scaling in (None, s))
    wanted = (plain / stretched).numpy()
    if not there or there[0].shape != wanted.shape:
        return ["rope_freqs is missing"]
    worst = float(np.abs(there[0] / wanted - 1).max())
    return [] if worst < 2.0**-20 else [f"rope_freqs is off by {worst:.2g} of itself"]


def _same(there: Any, value: Any) -> bool:
    """Whether a value is what was to be written; numbers with a point are kept in fp32."""
    if isinstance(value, float) and isinstance(there, float):
        return there == float(np.float32(value))
    return bool(there == value)


def _other_tokens(tokenizer: Tokenizer, fields: dict[str, Any], rows: int) -> list[str]:
    """Rows of the vocabulary whose text does not stand for the token's bytes, or whose kind is wrong."""
    texts, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    if not len(texts) == len(kinds) == rows:
        return [f"{len(texts)} tokens for {rows} rows"]
    names = {i: name for name, i in tokenizer.special_ids.items()}
    found = []
    for i in range(tokenizer.vocab_size):
        if i in names:
            if texts[i] != names[i] or kinds[i] != CONTROL:
                found.append(f"{names[i]} is {texts[i]!r}, kind {kinds[i]}")
        elif tokenizer.kind == "char":
            if byte_fallback_bytes(texts[i].replace("\u2581", " ")) != tokenizer.token_bytes(i):
                found.append(f"token {i} is {texts[i]!r}")
        elif byte_level_bytes(texts[i]) != tokenizer.token_bytes(i):
            found.append(f"token {i} is {texts[i]!r}")
    return found
