"""Faults of what stands beside a checkpoint's weights: tokenizer, template, ids, config.json, and its import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from torch import Tensor

from groundup.model.interchange import hf_import
from groundup.verify import folders
from groundup.verify.fault import fault, swapped
from groundup.verify.faults.any_tokenizer import END, EOS, START, backend
from groundup.verify.faults.checkpoint import LAST, Tensors, checkpoint, config, files, json_of, weights

# ---- tokenizer, template, ids ----


def _token_more(content: dict[str, Any]) -> None:
    first = content["added_tokens"][0]
    last = max(token["id"] for token in content["added_tokens"])
    content["added_tokens"] += [{**first, "id": last + 1 + n, "content": f"<|extra_{n}|>"} for n in range(4)]


@fault("folder-token-without-a-row", "rows-cover-the-tokenizer", on=json_of("tokenizer.json", _token_more))
def token_without_a_row() -> Iterator[None]:
    """Four tokens were added and the embedding, with its three rows of padding, was not resized."""
    yield


@fault("folder-vocab-size-of-another", "rows-cover-the-tokenizer", on=config(vocab_size=367))
def vocab_size_of_another() -> Iterator[None]:
    """vocab_size is one less than the rows that are stored."""
    yield


def _stop(content: dict[str, Any]) -> None:
    content["eos_token_id"] = backend().token_to_id(EOS)


@fault(
    "folder-stops-at-the-bases-end",
    "terminator-stops",
    "special-ids-agree",
    on=json_of("generation_config.json", _stop),
)
def stops_at_the_bases_end() -> Iterator[None]:
    """generation_config is the base model's: <|im_end|> is said and not stopped at."""
    yield


@fault(
    "folder-another-bos",
    "special-ids-agree",
    on=json_of("generation_config.json", lambda content: content.update(bos_token_id=1)),
)
def another_bos() -> Iterator[None]:
    """generation_config still has Llama's default bos, 1."""
    yield


@fault("folder-pad-is-minus-one", "special-ids-agree", on=config(pad_token_id=-1))
def pad_is_minus_one() -> Iterator[None]:
    """pad is -1, as the first Llama conversions had it: the last row of the embedding, or a crash."""
    yield


def _one_mean(tensors: Tensors) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        start, end = (backend().token_to_id(mark) for mark in (START, END))
        mean = tensors[name].mean(0)
        tensors[name][start], tensors[name][end] = mean, mean


@fault("folder-new-tokens-at-the-mean", "template-tokens-are-trained", on=weights(_one_mean))
def new_tokens_at_the_mean() -> Iterator[None]:
    """The template's two marks were added to a base model, set to the mean of all rows, and never trained."""
    yield


def _zero_end(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][backend().token_to_id(END)] = 0


@fault("folder-terminators-row-is-zero", "template-tokens-are-trained", on=weights(_zero_end))
def terminators_row_is_zero() -> Iterator[None]:
    """The end of turn was reserved in pretraining and never met: its row is zero (Llama 3's base)."""
    yield


def _shifted(content: dict[str, Any]) -> None:
    added = json.loads(files()["tokenizer.json"])["added_tokens"]
    flags = [{key: value for key, value in one.items() if key != "id"} for one in added]
    content["added_tokens_decoder"] = {
        str(one["id"] + (one is added[-1])): flag for one, flag in zip(added, flags, strict=True)
    }


@fault("folder-token-one-off", "tokenizer-files-agree", on=json_of("tokenizer_config.json", _shifted))
def token_one_off() -> Iterator[None]:
    """tokenizer_config.json has the last token at the next id."""
    yield


@fault(
    "folder-eos-named-twice",
    "tokenizer-files-agree",
    on=json_of("special_tokens_map.json", lambda content: content.update(eos_token=EOS)),
)
def eos_named_twice() -> Iterator[None]:
    """special_tokens_map.json still names the base model's eos."""
    yield


@fault("folder-transformers-builds-another", "tokenizer-json-is-what-loads", on=checkpoint)
def transformers_builds_another() -> Iterator[None]:
    """The tokenizer's class puts text into NFC, whatever tokenizer.json says (transformers 5 and Qwen 2)."""
    right = folders._by_transformers

    def wrong(folder: Path) -> Any:
        found = right(folder)
        assert found is not None
        found.given.backend_tokenizer.normalizer = normalizers.NFC()
        return found

    with swapped(folders, _by_transformers=wrong):
        yield


def _two_templates(content: dict[str, Any]) -> None:
    content["chat_template"] = files()["chat_template.jinja"].decode().replace("assistant\\n", "assistant")


@fault("folder-two-templates", "one-chat-template", on=json_of("tokenizer_config.json", _two_templates))
def two_templates() -> Iterator[None]:
    """chat_template.jinja was mended, and tokenizer_config.json was not."""
    yield


# ---- config.json ----


@fault("folder-two-architectures", "architecture-is-the-model-type", on=config(architectures=["MistralForCausalLM"]))
def two_architectures() -> Iterator[None]:
    """architectures says Mistral, model_type llama."""
    yield


@fault("folder-two-bases", "rope-spellings-agree", on=config(rope_theta=500000.0))
def two_bases() -> Iterator[None]:
    """rope_theta is 500,000, rope_parameters' is 10,000."""
    yield


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}


@fault("folder-scaling-in-one-place", "rope-spellings-agree", on=config(rope_theta=10000.0, rope_parameters=_YARN))
def scaling_in_one_place() -> Iterator[None]:
    """rope_parameters stretches by YaRN; for readers of the older keys nothing is stretched."""
    yield


@fault(
    "folder-scaling-of-two-kinds",
    "rope-spellings-agree",
    on=config(rope_parameters={**_YARN, "type": "linear"}),
)
def scaling_of_two_kinds() -> Iterator[None]:
    """type says linear, rope_type says yarn."""
    yield


@fault(
    "folder-local-base-differs",
    "rope-spellings-agree",
    on=config("gemma3", rope_theta=1000000.0, rope_local_base_freq=1000000.0),
)
def local_base_differs() -> Iterator[None]:
    """The layers with a window have the global base in the older spelling."""
    yield


@fault(
    "folder-claims-twice-the-length",
    "length-claims-agree",
    on=json_of("tokenizer_config.json", lambda content: content.update(model_max_length=256)),
)
def claims_twice_the_length() -> Iterator[None]:
    """The tokenizer lets 256 tokens through, the model has 128 positions."""
    yield


@fault("folder-table-longer-than-said", "length-claims-agree", on=config("gpt2", n_positions=127))
def table_longer_than_said() -> Iterator[None]:
    """config.json says a position less than the learned table has rows."""
    yield


# ---- the import ----


def _importing(**changes: Any) -> Any:
    """The import with another config than the folder's."""
    right = hf_import.config_from_hf
    return swapped(hf_import, config_from_hf=lambda *given: replace(right(*given), **changes))


@fault("import-with-another-base", "import-equals-transformers", on=checkpoint)
def import_with_another_base() -> Iterator[None]:
    """rope_parameters is not looked at: the default base is turned by, 1% from the right one."""
    with _importing(rope_base=10100.0):
        yield


@fault("import-loses-the-window", "import-equals-transformers", on=lambda: checkpoint("mistral"))
def import_loses_the_window() -> Iterator[None]:
    """The sliding window is not read: only texts longer than it are answered otherwise."""
    with _importing(window=0):
        yield


@fault("import-reads-the-last-values-from-the-first", "import-equals-transformers", on=checkpoint)
def import_reads_the_last_values_from_the_first() -> Iterator[None]:
    """One layer's value matrix is the layer's before."""
    right = hf_import._assembled

    def wrong(stored: Any, pieces: Any, spec: Any) -> Tensor:
        name = LAST + "self_attn.v_proj.weight"
        first = name.replace("layers.1", "layers.0")
        return right(stored, [replace(p, name=first) if p.name == name else p for p in pieces], spec)

    with swapped(hf_import, _assembled=wrong):
        yield
