"""Faults of what an export says of its model, and of what a converter fills."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.model.interchange import gguf, gguf_layout, hf, hf_import
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.fault import fault, swapped

VALUES, FILLS = "exported-values-are-the-models", "converter-fills-every-weight"


def _written(change: Callable[[dict[str, Any]], None]) -> Any:
    """config.json, and what is compared with it, after `change`."""
    right = hf.hf_config

    def wrong(*given: Any) -> dict[str, Any]:
        content = right(*given)
        change(content)
        return content

    return swapped(hf, hf_config=wrong)


def _set(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value for key, value in values.items() if key in content})


@fault("export-claims-twice-the-context", VALUES)
def export_claims_twice_the_context() -> Iterator[None]:
    """max_position_embeddings is twice what was trained: texts go in that the model has no places for."""
    with _written(lambda content: content.update(max_position_embeddings=2 * content["max_position_embeddings"])):
        yield


@fault("export-claims-the-librarys-context", VALUES)
def export_claims_the_librarys_context() -> Iterator[None]:
    """max_position_embeddings is the library's default of 2048."""
    with _written(_set(max_position_embeddings=2048)):
        yield


@fault("older-spelling-has-the-default-base", VALUES, model={"rope_base": 500.0})
def older_spelling_has_the_default_base() -> Iterator[None]:
    """rope_theta is 10000 beside a rope_parameters that is right: transformers 5 agrees with us, others do not."""
    with _written(_set(rope_theta=10000.0)):
        yield


@fault(
    "older-spelling-forgets-the-scaling",
    VALUES,
    model={"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 16}},
)
def older_spelling_forgets_the_scaling() -> Iterator[None]:
    """rope_scaling is null beside a rope_parameters that stretches."""
    with _written(_set(rope_scaling=None)):
        yield


@fault("window-of-older-readers-one-layer-off", VALUES, model={"window": 6, "window_pattern": "GL"})
def window_of_older_readers_one_layer_off() -> Iterator[None]:
    """max_window_layers, which readers without layer_types go by, is one too large."""
    with _written(lambda content: content.update(max_window_layers=content["max_window_layers"] + 1)):
        yield


def _generation(**more: Any) -> Any:
    right = hf._generation_config
    return swapped(hf, _generation_config=lambda ids, stops: {**right(ids, stops), **more})


@fault("generation-has-a-length", VALUES)
def generation_has_a_length() -> Iterator[None]:
    """generation_config.json has max_length 20, as old versions of transformers wrote it: answers are cut."""
    with _generation(max_length=20):
        yield


@fault("generation-samples-at-another-temperature", VALUES)
def generation_samples_at_another_temperature() -> Iterator[None]:
    """generation_config.json carries do_sample and a temperature over from another model."""
    with _generation(do_sample=True, temperature=0.6):
        yield


@fault("generation-pads-with-token-zero", VALUES)
def generation_pads_with_token_zero() -> Iterator[None]:
    """pad_token_id is 0 in generation_config.json: a token of the text."""
    with _generation(pad_token_id=0):
        yield


@fault("tokenizer-claims-512", VALUES)
def tokenizer_claims_512() -> Iterator[None]:
    """model_max_length is 512, from the class it was made with: whoever truncates loses the rest of the text."""
    right = Tokenizer.save

    def wrong(self: Tokenizer, folder: str | Path) -> None:
        right(self, folder)
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 512}))

    with swapped(Tokenizer, save=wrong):
        yield


# ---- GGUF ----

EXPERTS: dict[str, Any] = {"moe": {"n_experts": 5, "top_k": 2, "d_expert": 24}, "qk_norm": "none"}


def _said(*dropped: str, **changed: Any) -> Any:
    """A file whose metadata leave these keys out (by their ends), or have other values."""
    right = gguf.hyper_parameters

    def wrong(config: Any) -> dict[str, Any]:
        found = {key: value for key, value in right(config).items() if not key.endswith(dropped or ("?",))}
        return {key: changed.get(key.rpartition(".")[2], value) for key, value in found.items()}

    return swapped(gguf, hyper_parameters=wrong)


@fault("gguf-uses-one-expert-more", "gguf-says-what-it-is", model=EXPERTS)
def gguf_uses_one_expert_more() -> Iterator[None]:
    """expert_used_count is three where each token was trained with two."""
    with _said(expert_used_count=3):
        yield


@fault(
    "gguf-forgets-the-scaling",
    "gguf-says-what-it-is",
    model={"rope_scaling": {"kind": "linear", "factor": 4.0, "original_context": 16}},
)
def gguf_forgets_the_scaling() -> Iterator[None]:
    """The factor that positions are divided by is not in the file: each place is read as four."""
    with _said("rope.scaling.type", "rope.scaling.factor"):
        yield


@fault(
    "gguf-forgets-llama-3s-factors",
    "gguf-says-what-it-is",
    model={"rope_scaling": {"kind": "llama3", "factor": 4.0, "original_context": 16}, "qk_norm": "none"},
)
def gguf_forgets_llama_3s_factors() -> Iterator[None]:
    """The tensor rope_freqs is left out: long waves turn as they did before the context was stretched."""
    right = gguf.gguf_tensors

    def wrong(model: Any) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in right(model) if name != "rope_freqs.weight")

    with swapped(gguf, gguf_tensors=wrong):
        yield


@fault("gguf-experts-gate-and-up-exchanged", "gguf-holds-the-weights", model=EXPERTS)
def gguf_experts_gate_and_up_exchanged() -> Iterator[None]:
    """Stacks of experts are split in the other order: what is gated gates."""
    right = gguf_layout.renamed

    def wrong(*given: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in right(*given):
            swap = {"ffn_gate_exps": "ffn_up_exps", "ffn_up_exps": "ffn_gate_exps"}
            part = name.split(".")[2] if name.startswith("blk.") else ""
            yield name.replace(part, swap[part]) if part in swap else name, tensor

    with swapped(gguf_layout, renamed=wrong):
        yield


@fault("gguf-experts-model-not-interleaved", "gguf-holds-the-weights", model=EXPERTS)
def gguf_experts_model_not_interleaved() -> Iterator[None]:
    """Queries and keys of a mixture keep our order of rows, and its reader rotates neighbours."""
    with swapped(gguf_layout, interleaved=lambda rows, n_heads: rows):
        yield


# ---- conversion ----


def _assembled(change: Callable[[Tensor, list[Any]], list[Any]]) -> Any:
    """Import that fills a tensor of ours from other pieces than it should."""
    right = hf_import._assembled

    def wrong(checkpoint: Any, pieces: list[Any], spec: Any) -> Tensor:
        return right(checkpoint, change(torch.empty(0), pieces), spec)

    return swapped(hf_import, _assembled=wrong)


@fault("import-leaves-the-last-expert", FILLS, model=EXPERTS)
def import_leaves_the_last_expert() -> Iterator[None]:
    """The last expert of every stack stays as constructed: range(n - 1)."""
    with _assembled(lambda _, pieces: pieces[:-1] if len(pieces) >= 5 else pieces):
        yield


@fault("import-leaves-the-values", FILLS)
def import_leaves_the_values() -> Iterator[None]:
    """Of queries, keys and values the third is not copied: what memory held before stays."""
    with _assembled(lambda _, pieces: pieces[:2] if len(pieces) == 3 else pieces):
        yield


@fault("stacked-experts-start-as-zeros", FILLS, model=EXPERTS)
def stacked_experts_start_as_zeros() -> Iterator[None]:
    """Stacks of experts, as newer files hold them, are allocated and not filled."""
    right = hf_import._assembled

    def wrong(checkpoint: Any, pieces: list[Any], spec: Any) -> Tensor:
        made = right(checkpoint, pieces, spec)
        return torch.zeros_like(made) if len(pieces) == 1 and len(spec.shape) == 3 else made

    with swapped(hf_import, _assembled=wrong):
        yield


@fault("export-writes-a-norm-twice", FILLS)
def export_writes_a_norm_twice() -> Iterator[None]:
    """Both norms of the last layer are written from the first of them: shapes fit, and fresh norms are all ones."""
    right = hf.hf_tensors

    def wrong(*given: Any) -> dict[str, Tensor]:
        tensors = dict(right(*given))
        first = [name for name in tensors if name.endswith("input_layernorm.weight")][-1]
        tensors[first.replace("input_layernorm", "post_attention_layernorm")] = tensors[first]
        return tensors

    with swapped(hf, hf_tensors=wrong):
        yield
