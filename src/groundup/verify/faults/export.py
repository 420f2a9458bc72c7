"""Faults of export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.model.interchange import gguf, gguf_layout, gguf_tokenizer, hf, hf_import
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.fault import fault, swapped

LLAMA: dict[str, Any] = {"qk_norm": "none", "tied": False}


def _tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Any:
    right = hf.hf_tensors
    return swapped(hf, hf_tensors=lambda *given: change(dict(right(*given))))


def _exchanged(tensors: dict[str, Tensor], a: str, b: str) -> dict[str, Tensor]:
    return {**tensors, a: tensors[b], b: tensors[a]}


def _last_layer(tensors: dict[str, Tensor]) -> str:
    layers = [int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")]
    return f"model.layers.{max(layers)}."


@fault("gate-and-up-exchanged-in-the-last-layer", "exported-logits-equal-ours", "export-import-is-exact")
def gate_and_up_exchanged_in_the_last_layer() -> Iterator[None]:
    """One layer's packed matrix is split in the other order: shapes fit, and nothing is missing."""

    def wrong(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last = _last_layer(tensors)
        return _exchanged(tensors, f"{last}mlp.gate_proj.weight", f"{last}mlp.up_proj.weight")

    with _tensors(wrong):
        yield


@fault("queries-and-keys-exchanged", "exported-logits-equal-ours", model={"n_heads": 4, "n_kv_heads": 4})
def queries_and_keys_exchanged() -> Iterator[None]:
    """q and k of every layer have each other's names: with as many heads of both, their shapes are one."""

    def wrong(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name.replace("q_proj", "?").replace("k_proj", "q_proj").replace("?", "k_proj"): tensor
            for name, tensor in tensors.items()
        }

    with _tensors(wrong):
        yield


@fault("rows-in-the-other-rotary-order", "exported-logits-equal-ours", model=LLAMA)
def rows_in_the_other_rotary_order() -> Iterator[None]:
    """Rows of q and k are put in pairs of neighbours, as Meta's own files have them and llama.cpp reads them."""

    def wrong(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        def paired(name: str, rows: Tensor) -> Tensor:
            return (
                gguf_layout.interleaved(rows, rows.shape[0] // 8)
                if name.endswith(("q_proj.weight", "k_proj.weight"))
                else rows
            )

        return {name: paired(name, tensor) for name, tensor in tensors.items()}

    with _tensors(wrong):
        yield


def _config(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    right = hf.hf_config
    return swapped(hf, hf_config=lambda *given: change(dict(right(*given))))


@fault("export-forgets-the-rope-base", "exported-logits-equal-ours", model={"rope_base": 500.0})
def export_forgets_the_rope_base() -> Iterator[None]:
    """config.json has the library's default base."""

    def wrong(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "rope_theta": 10000.0, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}

    with _config(wrong):
        yield


@fault("export-forgets-the-window", "exported-logits-equal-ours", "no-choice-is-lost-in-export", model={"window": 7})
def export_forgets_the_window() -> Iterator[None]:
    """A model of short sight is exported as one that sees everything: equal up to the window's length."""

    def wrong(config: dict[str, Any]) -> dict[str, Any]:
        layers = ["full_attention"] * config["num_hidden_layers"]
        return {**config, "use_sliding_window": False, "sliding_window": None, "layer_types": layers}

    with _config(wrong):
        yield


@fault("import-casts-through-half", "export-import-is-exact")
def import_casts_through_half() -> Iterator[None]:
    """Imported tensors pass through F16 on their way: the last bits are gone."""
    right = hf_import._assembled
    with swapped(hf_import, _assembled=lambda *given: (found := right(*given)).half().to(found.dtype)):
        yield


@fault("import-forgets-the-eps", "export-import-is-exact", model={"norm_eps": 1e-3})
def import_forgets_the_eps() -> Iterator[None]:
    """The eps of config.json is not read: each tensor is right, and the function is another."""
    right = hf_import.config_from_hf
    with swapped(hf_import, config_from_hf=lambda content, where: right({**content, "rms_norm_eps": 1e-6}, where)):
        yield


@fault("caps-are-no-obstacle", "no-choice-is-lost-in-export")
def caps_are_no_obstacle() -> Iterator[None]:
    """A capped model is exported under a class without caps: it loads, and answers differently."""
    right = hf.hf_obstacles

    def wrong(config: Any, architecture: str | None = None) -> list[str]:
        return [one for one in right(config, architecture) if "softcap" not in one]

    with swapped(hf, hf_obstacles=wrong):
        yield


def _saved(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Any:
    """Tokenizer folders whose tokenizer.json and tokenizer_config.json `change` has edited."""
    right = Tokenizer.save

    def wrong(self: Tokenizer, folder: str | Path) -> None:
        right(self, folder)
        paths = [Path(folder) / name for name in ("tokenizer.json", "tokenizer_config.json")]
        contents = [json.loads(path.read_text()) for path in paths]
        change(*contents)
        for path, content in zip(paths, contents, strict=True):
            path.write_text(json.dumps(content))

    return swapped(Tokenizer, save=wrong)


@fault("exported-tokenizer-normalises", "exported-tokenizer-is-ours")
def exported_tokenizer_normalises() -> Iterator[None]:
    """The exported tokenizer composes accents first, as the class that its model's type stands for does."""

    def wrong(content: dict[str, Any], config: dict[str, Any]) -> None:
        content["normalizer"] = {"type": "NFC"}

    with _saved(wrong):
        yield


@fault("exported-tokenizer-puts-a-space-first", "exported-tokenizer-is-ours", tokenizer={"kind": "bpe"})
def exported_tokenizer_puts_a_space_first() -> Iterator[None]:
    """add_prefix_space: a text that begins with a letter begins with a space and that letter."""

    def wrong(content: dict[str, Any], config: dict[str, Any]) -> None:
        step = content["pre_tokenizer"]
        for one in step.get("pretokenizers", [step]):
            if one["type"] == "ByteLevel":
                one["add_prefix_space"] = True

    with _saved(wrong):
        yield


@fault("exported-template-has-a-line-more", "exported-tokenizer-is-ours")
def exported_template_has_a_line_more() -> Iterator[None]:
    """A line break behind the assistant's name, as many templates have: the prompt is one token off."""

    def wrong(content: dict[str, Any], config: dict[str, Any]) -> None:
        config["chat_template"] += "{{ '\\n' if add_generation_prompt else '' }}"

    with _saved(wrong):
        yield


@fault("generation-ends-at-end-of-text-alone", "exported-model-stops")
def generation_ends_at_end_of_text_alone() -> Iterator[None]:
    """The end of turn is no end of generation."""
    right = hf._generation_config

    def wrong(ids: dict[str, int], stop_ids: Any) -> dict[str, Any]:
        return {**right(ids, stop_ids), "eos_token_id": ids["eos"]}

    with swapped(hf, _generation_config=wrong):
        yield


@fault("config-pads-with-eos", "exported-model-stops")
def config_pads_with_eos() -> Iterator[None]:
    """pad_token_id = eos in config.json: transformers never trains that embedding again."""
    right = hf._config_ids
    with swapped(hf, _config_ids=lambda ids: {**right(ids), "pad_token_id": ids["eos"]}):
        yield


@fault("config-says-float32", "safetensors-are-as-asked")
def config_says_float32() -> Iterator[None]:
    """Half weights under a config.json that says float32."""
    right = hf._json

    def wrong(content: dict[str, Any]) -> bytes:
        return right({**content, "dtype": "float32"} if "dtype" in content else content)

    with swapped(hf, _json=wrong):
        yield


@fault("index-counts-elements", "safetensors-are-as-asked")
def index_counts_elements() -> Iterator[None]:
    """The index' total size is the number of weights."""
    right = hf._index

    def wrong(shards: Any) -> dict[str, Any]:
        found = right(shards)
        found["metadata"]["total_size"] = sum(
            torch.Size(spec.shape).numel() for part in shards.values() for spec in part.values()
        )
        return found

    with swapped(hf, _index=wrong):
        yield


@fault("index-names-the-next-file", "safetensors-are-as-asked")
def index_names_the_next_file() -> Iterator[None]:
    """The first tensor of each further file is said to be in the one before."""
    right = hf._index

    def wrong(shards: dict[str, dict[str, Any]]) -> dict[str, Any]:
        found, files = right(shards), list(shards)
        for before, file in pairwise(files):
            found["weight_map"][next(iter(shards[file]))] = before
        return found

    with swapped(hf, _index=wrong):
        yield


# ---- GGUF ----


def _encoded(change: Callable[[str, Tensor, str], Tensor]) -> Any:
    right = gguf._encoded
    return swapped(gguf, _encoded=lambda name, tensor, kind: right(name, change(name, tensor, kind), kind))


@fault("weights-pass-through-half", "gguf-holds-the-weights")
def weights_pass_through_half() -> Iterator[None]:
    """F32 files are made of F16 numbers."""
    with _encoded(lambda name, tensor, kind: tensor.half().float()):
        yield


@fault("one-scale-for-a-matrix", "gguf-holds-the-weights")
def one_scale_for_a_matrix() -> Iterator[None]:
    """Q8_0 is made of numbers that were rounded with one scale for the whole matrix: blocks of small ones lose bits."""

    def wrong(name: str, tensor: Tensor, kind: str) -> Tensor:
        step = tensor.abs().max() / 127
        return (tensor / step).round() * step if kind == "Q8_0" else tensor

    with _encoded(wrong):
        yield


@fault("square-matrices-transposed", "gguf-holds-the-weights")
def square_matrices_transposed() -> Iterator[None]:
    """Square matrices are written the other way about: every shape fits."""

    def wrong(name: str, tensor: Tensor, kind: str) -> Tensor:
        return tensor.T if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] else tensor

    with _encoded(wrong):
        yield


@fault("gguf-rows-not-interleaved", "gguf-logits-equal-ours", model=LLAMA)
def gguf_rows_not_interleaved() -> Iterator[None]:
    """The llama layout rotates neighbours, and gets rows for halves: fluent nonsense."""
    with swapped(gguf_layout, interleaved=lambda rows, n_heads: rows):
        yield


@fault("gguf-keys-interleaved-by-query-heads", "gguf-logits-equal-ours", model=LLAMA)
def gguf_keys_interleaved_by_query_heads() -> Iterator[None]:
    """Rows of k are put in order as if there were as many heads as of q: right without grouped queries."""
    right = gguf_layout.interleaved

    def wrong(rows: Tensor, n_heads: int) -> Tensor:
        return right(rows, n_heads if n_heads == 4 else 1)

    with swapped(gguf_layout, interleaved=wrong):
        yield


@fault("gguf-gate-and-up-exchanged", "gguf-logits-equal-ours")
def gguf_gate_and_up_exchanged() -> Iterator[None]:
    """ffn_gate is what goes up, and the other way about."""
    right = gguf_layout.renamed

    def wrong(*given: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in right(*given):
            yield name.replace("ffn_gate", "?").replace("ffn_up", "ffn_gate").replace("?", "ffn_up"), tensor

    with swapped(gguf_layout, renamed=wrong):
        yield


def _metadata(*dropped: str, **changed: Any) -> Any:
    """A file without these keys (by their ends), or with others' values."""
    right = gguf._add

    def wrong(writer: Any, key: str, value: Any) -> None:
        if not key.endswith(dropped or ("?",)):
            right(writer, key, changed.get(key.rpartition(".")[2], value))

    return swapped(gguf, _add=wrong)


@fault("gguf-without-end-of-turn", "gguf-says-what-it-is")
def gguf_without_end_of_turn() -> Iterator[None]:
    """No id ends a turn: llama.cpp guesses one by its name, or none."""
    with _metadata("eot_token_id"):
        yield


@fault("gguf-without-template", "gguf-says-what-it-is")
def gguf_without_template() -> Iterator[None]:
    """The chat template stays behind: programs take one of their own."""
    with _metadata("chat_template"):
        yield


@fault("gguf-puts-no-bos", "gguf-says-what-it-is")
def gguf_puts_no_bos() -> Iterator[None]:
    """Texts begin as no training document did."""
    with _metadata(add_bos_token=False):
        yield


@fault("gguf-specials-are-text", "gguf-says-what-it-is")
def gguf_specials_are_text() -> Iterator[None]:
    """Special tokens are kept as words: they are printed, and typed."""
    with swapped(gguf_tokenizer, CONTROL=gguf_tokenizer.USER_DEFINED):
        yield
