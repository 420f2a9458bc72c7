"""Faults of checkpoint folders: a small model as transformers saves it, and one file changed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from tokenizers import normalizers
from torch import Tensor

from groundup.model.interchange import hf_import
from groundup.verify import folders
from groundup.verify.fault import fault, swapped
from groundup.verify.faults.any_tokenizer import BOS, END, EOS, PAD, START, backend, with_template
from groundup.verify.folders import Checkpoint, library, silent

Tensors = dict[str, Tensor]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LAST = "model.layers.1."
# Families by transformers' config class, and what they need besides SIZES.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rms_norm_eps": 1e-5}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 8}),
}


@lru_cache(maxsize=16)
def files(family: str = "llama") -> dict[str, bytes]:
    """A sound checkpoint: a random model as transformers saves it, with a small tokenizer and its template."""
    transformers = library()
    kind, more = FAMILIES[family]
    names = backend()
    ids = {f"{role}_token_id": names.token_to_id(name) for role, name in (("bos", BOS), ("eos", END), ("pad", PAD))}
    sizes = {} if family == "gpt2" else SIZES
    config = getattr(transformers, kind)(vocab_size=names.get_vocab_size() + 3, **sizes, **more, **ids)
    with torch.random.fork_rng(devices=[]), silent(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = [ids["eos_token_id"], names.token_to_id(EOS)]
        model.save_pretrained(folder)
        inner = backend()
        if (
            family == "qwen2"
        ):  # transformers 5 puts this normaliser in, whatever is saved: see tokenizer-json-is-what-loads
            inner.normalizer = normalizers.NFC()
        tokenizer = with_template(inner=inner).given
        tokenizer.model_max_length = 128
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def checkpoint(family: str = "llama", change: Callable[[Path], None] | None = None) -> Checkpoint:
    """A sound checkpoint in a folder of its own, with one thing changed."""
    keep = tempfile.TemporaryDirectory(prefix="groundup-verify-")
    folder = Path(keep.name)
    for name, content in files(family).items():
        (folder / name).write_bytes(content)
    if change is not None:
        change(folder)
    return Checkpoint(folder, keep)


def json_of(name: str, edit: Callable[[dict[str, Any]], None], family: str = "llama") -> Callable[[], Checkpoint]:
    """A checkpoint with one JSON file edited."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        edit(content)
        path.write_text(json.dumps(content))

    return lambda: checkpoint(family, change)


def config(family: str = "llama", **values: Any) -> Callable[[], Checkpoint]:
    """A checkpoint whose config.json says something else."""
    return json_of("config.json", lambda content: content.update(values), family)


def weights(edit: Callable[[Tensors], None], family: str = "llama", **said: Any) -> Callable[[], Checkpoint]:
    """A checkpoint with its tensors edited; `said` goes into config.json."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load(path.read_bytes())
        edit(tensors)
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))
        if said:
            content = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**content, **said}))

    return lambda: checkpoint(family, change)


def _put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: value(tensors[name].clone())})


# ---- weights ----


@fault(
    "folder-lacks-a-tensor",
    "weights-fit-the-config",
    on=weights(lambda t: t.__delitem__(LAST + "mlp.down_proj.weight")),
)
def lacks_a_tensor() -> Iterator[None]:
    """The last layer's down projection was not saved: transformers makes up a random one."""
    yield


@fault("folder-config-drops-a-layer", "weights-fit-the-config", on=config(num_hidden_layers=1))
def config_drops_a_layer() -> Iterator[None]:
    """config.json says a layer less than was trained: the last is left out, with a warning."""
    yield


@fault("folder-another-width", "weights-fit-the-config", on=config(num_key_value_heads=4))
def another_width() -> Iterator[None]:
    """config.json says a key head for each query head, the files have half as many."""
    yield


def _other_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][-1, -1] += 1


@fault("folder-trained-head-tied-away", "tied-flag-agrees-with-weights", on=weights(_other_head, "qwen3"))
def trained_head_tied_away() -> Iterator[None]:
    """tie_word_embeddings is true, and the head that was trained (here: one number of it) is another."""
    yield


@fault(
    "folder-head-made-up",
    "tied-flag-agrees-with-weights",
    "weights-fit-the-config",
    on=config("qwen3", tie_word_embeddings=False),
)
def head_made_up() -> Iterator[None]:
    """The head was tied and therefore not saved; config.json says that it is not."""
    yield


def _nan(tensor: Tensor) -> Tensor:
    tensor[-1, -1] = float("nan")
    return tensor


@fault("folder-one-nan", "stored-weights-are-finite", on=weights(_put(LAST + "self_attn.o_proj.weight", _nan)))
def one_nan() -> Iterator[None]:
    """One number of the last layer is NaN."""
    yield


def _half(tensors: Tensors) -> None:
    name = LAST + "mlp.up_proj.weight"
    tensors[name][3, 5] = 1e5
    tensors.update({key: tensor.half() for key, tensor in tensors.items()})


@fault("folder-overflows-in-fp16", "stored-weights-are-finite", on=weights(_half, dtype="float16"))
def overflows_in_fp16() -> Iterator[None]:
    """Cast to fp16, a weight past 65,504 became infinite."""
    yield


def _dead_row(tensor: Tensor) -> Tensor:
    tensor[7] = 0
    return tensor


@fault("folder-dead-row", "weights-are-alive", on=weights(_put(LAST + "mlp.gate_proj.weight", _dead_row)))
def dead_row() -> Iterator[None]:
    """One unit of the last layer has no weights."""
    yield


@fault(
    "folder-expert-never-loaded",
    "weights-are-alive",
    on=weights(_put("model.layers.1.block_sparse_moe.experts.3.w2.weight", torch.zeros_like), "mixtral"),
)
def expert_never_loaded() -> Iterator[None]:
    """The last expert's down projection is zero throughout."""
    yield


@fault("folder-norm-of-zeros", "weights-are-alive", on=weights(_put(LAST + "input_layernorm.weight", torch.zeros_like)))
def norm_of_zeros() -> Iterator[None]:
    """One norm's weights were never loaded: its layer hears nothing."""
    yield


def _read_twice(tensors: Tensors) -> None:
    tensors[LAST + "self_attn.v_proj.weight"] = tensors["model.layers.0.self_attn.v_proj.weight"].clone()


@fault("folder-layer-read-twice", "layers-are-distinct", on=weights(_read_twice))
def layer_read_twice() -> Iterator[None]:
    """The last layer's values are the first layer's: an index one off in a converter."""
    yield


@fault(
    "folder-dtype-of-another",
    "stored-dtype-is-the-configs",
    on=weights(lambda t: t.update({k: v.bfloat16() for k, v in t.items()}), dtype="float16"),
)
def dtype_of_another() -> Iterator[None]:
    """bf16 is stored, config.json says fp16: what is large overflows, what is small vanishes."""
    yield


@fault(
    "folder-one-layer-in-half",
    "stored-dtype-is-the-configs",
    on=weights(lambda t: t.update({k: v.bfloat16() for k, v in t.items() if k.startswith(LAST)})),
)
def one_layer_in_half() -> Iterator[None]:
    """One layer was saved in bf16, the rest in fp32."""
    yield


def _sharded(edit: Callable[[dict[str, Any], dict[str, Tensors]], None]) -> Callable[[], Checkpoint]:
    """A checkpoint in two parts, index and parts edited."""

    def change(folder: Path) -> None:
        whole = load((folder / "model.safetensors").read_bytes())
        (folder / "model.safetensors").unlink()
        parts: dict[str, Tensors] = {f"model-0000{n}-of-00002.safetensors": {} for n in (1, 2)}
        for n, (name, tensor) in enumerate(sorted(whole.items())):
            parts[list(parts)[n % 2]][name] = tensor
        size = sum(tensor.numel() * tensor.element_size() for tensor in whole.values())
        names = {name: file for file, tensors in parts.items() for name in tensors}
        index = {"metadata": {"total_size": size}, "weight_map": names}
        edit(index, parts)
        for file, tensors in parts.items():
            (folder / file).write_bytes(save(tensors, {"format": "pt"}))
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return lambda: checkpoint("llama", change)


def _misplaced(index: dict[str, Any], parts: dict[str, Tensors]) -> None:
    first, second = parts
    name = next(iter(parts[first]))
    index["weight_map"][name] = second


@fault("folder-index-misplaces-a-tensor", "index-names-what-is-there", on=_sharded(_misplaced))
def index_misplaces_a_tensor() -> Iterator[None]:
    """The index says that a tensor is in the second part; it is in the first."""
    yield


@fault(
    "folder-part-missing",
    "index-names-what-is-there",
    on=_sharded(lambda index, parts: parts.__delitem__("model-00002-of-00002.safetensors")),
)
def part_missing() -> Iterator[None]:
    """One of two parts was not uploaded."""
    yield


def _stale(content: dict[str, Any]) -> None:
    names = ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight"]
    content["weight_map"] = dict.fromkeys(names, "model.safetensors")


@fault(
    "folder-index-of-an-earlier-save", "index-names-what-is-there", on=json_of("model.safetensors.index.json", _stale)
)
def index_of_an_earlier_save() -> Iterator[None]:
    """An index of a deeper model lies beside the whole file."""
    yield


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
