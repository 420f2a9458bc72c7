"""Faults of checkpoint folders: a small model as transformers saves it, and one file changed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from tokenizers import normalizers
from torch import Tensor

from groundup.verify.fault import fault
from groundup.verify.faults.any_tokenizer import BOS, END, EOS, PAD, backend, with_template
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


def _half_of_the_columns(tensor: Tensor) -> Tensor:
    tensor[:, tensor.shape[1] // 2 :] = 0
    return tensor


@fault(
    "folder-half-the-columns",
    "weights-are-alive",
    on=weights(_put(LAST + "mlp.down_proj.weight", _half_of_the_columns)),
)
def half_the_columns() -> Iterator[None]:
    """Of a matrix that was in two parts, side by side, the second was not read: its columns are zero."""
    yield


@fault(
    "folder-embedding-half-empty",
    "weights-are-alive",
    on=weights(_put("model.embed_tokens.weight", _half_of_the_columns)),
)
def embedding_half_empty() -> Iterator[None]:
    """Half of the width of the embedding is zero."""
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
