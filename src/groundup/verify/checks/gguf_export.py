"""Is the GGUF file the model and its tokenizer, as far as its types can hold them?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from groundup.errors import UserError
from groundup.model.interchange import gguf as to_gguf
from groundup.model.interchange import hf
from groundup.model.interchange.gguf_layout import gguf_obstacles, gguf_tensors, layout_of
from groundup.model.interchange.gguf_tokenizer import gguf_tokenizer
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer, byte_fallback_bytes, byte_level_bytes
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.export import a_model, expressible, extra, logits_apart, opened
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
    rounding d to F16 adds to 127 of them (127 2^-11); in Q4_0 a whole d = largest / 8 (one side has no +8) and 8 2^-11.

    Infinite where a tensor is missing, has another shape, or a vector is not F32.
    """
    gguf_expressible(subject)
    extra("gguf", "gguf")
    from gguf.quants import dequantize

    model, worst, kinds = a_model(subject, subject.micro_tokenizer), 0.0, set()
    expected = dict(gguf_tensors(model))
    for quant in to_gguf.QUANTS:
        with gguf_file(subject, model, quant, inexact_tokenizer=True) as (reader, _):
            there = {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
        if there.keys() != expected.keys():
            return Measurement(float("inf"), 1.0, f"{quant}: {sorted(there.keys() ^ expected.keys())[:3]}")
        for name, tensor in expected.items():
            kind, values = there[name]
            if values.shape != tuple(tensor.shape) or (tensor.ndim == 1 and kind != "F32"):
                return Measurement(float("inf"), 1.0, f"{name} is {values.shape} in {kind}")
            worst = max(worst, _steps_off(tensor.float().contiguous().numpy(), values, kind))
            kinds.add(kind)
    return Measurement(worst, 1 + 2.0**-10, f"{len(expected)} tensors, {', '.join(sorted(kinds))}")


def _steps_off(weights: np.ndarray, values: np.ndarray, kind: str) -> float:
    """Largest |difference| in the largest that the type allows; an error where none may be is infinite."""
    error = np.abs(values.astype(np.float64) - weights)
    if kind in STEPS:
        allowed = STEPS[kind] * np.abs(weights) + (SMALLEST if kind == "F16" else 0.0)
    else:
        largest = np.abs(weights).reshape(-1, 32).max(1)
        share = (0.5 + 127 * 2.0**-11) / 127 if kind == "Q8_0" else (1 + 8 * 2.0**-11) / 8
        allowed = np.repeat(largest * share, 32).reshape(weights.shape)
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
    """Sizes, ids and texts of the file's metadata that are not the model's and the tokenizer's: shape, eps, rope base;
    BOS, EOS, end of turn, whether a BOS is put before text; each token's bytes, specials marked as such; the template.
    """
    gguf_expressible(subject)
    tokenizer = subject.micro_tokenizer
    model = a_model(subject, tokenizer)
    try:
        with gguf_file(subject, model, "f32") as (reader, _):
            fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    except UserError as reason:
        raise NotApplicable(str(reason)) from reason
    c, arch = model.config, fields["general.architecture"]
    sizes: dict[str, Any] = {
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
    if c.position == "rope" and (c.rope_scaling is None or c.rope_scaling.kind != "ntk"):
        sizes["rope.freq_base"] = c.rope_base
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
    found += _other_tokens(tokenizer, fields, c.vocab_size)
    return violations(found, len(wanted) + c.vocab_size)


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
