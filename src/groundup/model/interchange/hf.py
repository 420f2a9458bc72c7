"""Export to Hugging Face: the same function under the names that transformers knows.

Plain JSON and safetensors; transformers itself is not imported. A config that no known architecture computes
exactly is refused with the fields that stand in the way: a model that loads but answers differently is worse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from groundup.errors import UserError, problems
from groundup.model.interchange.configs import architecture_of, hf_config, hf_obstacles
from groundup.model.interchange.families import FAMILIES
from groundup.model.interchange.names import layout
from groundup.model.interchange.tensors import INDEX, Spec, write_tensors
from groundup.model.transformer import Transformer
from groundup.record.files import atomic_file, atomic_write, disk_errors

__all__ = ["architecture_of", "export_hf", "hf_config", "hf_obstacles", "hf_tensors"]

END = "<|end|>"  # what closes a turn in the chat template of our own tokenizers
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
BESIDE = {*TOKENIZER_FILES, "README.md", ".gitattributes"}
SHARD_BYTES = 5_000_000_000


def export_hf(
    model: Transformer,
    tokenizer_folder: str | Path,
    out: str | Path,
    *,
    architecture: str | None = None,
    stop_ids: Sequence[int] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` open; return what was written.

    The weights keep the model's dtype; past `max_shard_bytes` they are cut into several files with an index.
    architecture: one of `FAMILIES`; None = the nearest. stop_ids: where generation ends; None = <|end|>, where the
    tokenizer has it, and eos.
    Returns {"architecture", "parameters", "dtype", "files": {name: bytes}}.
    Raises UserError when no architecture fits (see `hf_obstacles`), when the tokenizer is not the model's, or when
    `out` already holds other files: weights left over from another export could be read instead of these.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper puts a prefix before every name
    config, source, out = model.config, Path(tokenizer_folder), Path(out)
    obstacles = hf_obstacles(config, architecture)
    if obstacles:
        raise UserError("no Hugging Face architecture computes this model: " + "; ".join(obstacles))
    architecture = architecture or architecture_of(config)
    ids = _special_ids(source, config.vocab_size)
    tensors = hf_tensors(model, architecture)
    shards = _shards({name: Spec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}, max_shard_bytes)

    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    files = {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).exists()}
    files |= _keeps_its_class(files, FAMILIES[architecture].model_type)
    whole = {**hf_config(config, architecture), **_config_ids(ids), "dtype": dtype, "torch_dtype": dtype}
    files["config.json"] = _json(whole)
    files["generation_config.json"] = _json(_generation_config(ids, stop_ids))
    if len(shards) > 1:
        files[INDEX] = _json(_index(shards))
    problems(str(out), _in_the_way(out, {*files, *shards}))
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for name, specs in shards.items():
        with atomic_file(out / name) as file:
            write_tensors(file, specs, tensors.__getitem__)
    for name, content in files.items():
        atomic_write(out / name, content)
    return {
        "architecture": architecture,
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtype": dtype,
        "files": {name: (out / name).stat().st_size for name in [*files, *shards]},
    }


def hf_tensors(model: Transformer, architecture: str | None = None) -> dict[str, Tensor]:
    """The weights under the architecture's names, as views of the model's; a tied head is left out."""
    family = FAMILIES[architecture or architecture_of(model.config)]
    state = model.state_dict()
    return {
        piece.name: state[ours][piece.at].T if piece.transposed else state[ours][piece.at]
        for ours, entry in layout(model.config, family.model_type).items()
        for piece in entry.pieces
    }


# transformers 5 opens a qwen2 model's tokenizer as Qwen2Tokenizer whatever it says it is, which normalises text to NFC
# and adds a token: other ids than the model was trained on. It leaves alone what names a class of its own.
OWN_CLASS = "tokenization_as_saved.PreTrainedTokenizerFast"
OWN_CODE = b"""# transformers would open this tokenizer as Qwen2Tokenizer, whose ids differ: it stays as it was saved.
from transformers import PreTrainedTokenizerFast

__all__ = ["PreTrainedTokenizerFast"]
"""


def _keeps_its_class(files: dict[str, bytes], model_type: str) -> dict[str, bytes]:
    """What has to stand beside a tokenizer for transformers to read its tokenizer.json as it is; {} = nothing."""
    if model_type != "qwen2" or "tokenizer.json" not in files:
        return {}
    if (json.loads(files["tokenizer.json"]).get("normalizer") or {}).get("type") == "NFC":
        return {}  # Qwen's own
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    config["auto_map"] = {"AutoTokenizer": [OWN_CLASS, OWN_CLASS]}
    return {"tokenizer_config.json": _json(config), f"{OWN_CLASS.split('.')[0]}.py": OWN_CODE}


def _shards(specs: dict[str, Spec], limit: int) -> dict[str, dict[str, Spec]]:
    """File name -> its tensors, in order, each file at most `limit` bytes (or one tensor)."""
    parts: list[dict[str, Spec]] = [{}]
    room = limit
    for name, spec in specs.items():
        if spec.bytes > room and parts[-1]:
            parts.append({})
            room = limit
        parts[-1][name] = spec
        room -= spec.bytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{n:05}-of-{len(parts):05}.safetensors": part for n, part in enumerate(parts, 1)}


def _index(shards: dict[str, dict[str, Spec]]) -> dict[str, Any]:
    total = sum(spec.bytes for part in shards.values() for spec in part.values())
    return {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }


def _special_ids(folder: Path, vocab_size: int) -> dict[str, int]:
    """{"bos", "eos", "end"}, as far as the tokenizer has them; its ids must fit the model's vocabulary."""
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_bytes())
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # a Unigram model's: [piece, score] in the order of ids
            vocabulary = {piece: n for n, (piece, _) in enumerate(vocabulary)}
        vocabulary = vocabulary | {token["content"]: int(token["id"]) for token in content["added_tokens"]}
        special = {token["content"] for token in content["added_tokens"] if token.get("special")}
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        named = {key: config.get(f"{key}_token") for key in ("bos", "eos")} | {"end": END}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a tokenizer ({error}): give the folder that holds it") from error
    names = {key: name.get("content") if isinstance(name, dict) else name for key, name in named.items()}
    ids = {key: vocabulary[name] for key, name in names.items() if name in vocabulary}
    found = (
        []
        if "eos" in ids
        else ["its tokenizer_config.json names no eos_token of the vocabulary: nothing would end a text"]
    )
    # A special beyond the rows ([PAD], added to Llama 2's tokenizer alone) came so, and no text holds it.
    largest = max((i for name, i in vocabulary.items() if name not in special or name in names.values()), default=0)
    if largest >= vocab_size:
        found.append(f"its ids reach {largest}, the model's vocabulary is {vocab_size}: is it this model's tokenizer?")
    problems(str(path), found)
    return ids


def _config_ids(ids: dict[str, int]) -> dict[str, Any]:
    """TRAP: no id to pad with here. Ours is eos, and transformers gives the embedding of `config.pad_token_id` no
    gradient: whoever fine-tunes the export would never train the end of a text. Null, or some families take 0."""
    return {"bos_token_id": ids.get("bos"), "eos_token_id": ids["eos"], "pad_token_id": None}


def _generation_config(ids: dict[str, int], stop_ids: Sequence[int] | None) -> dict[str, Any]:
    """A chat turn ends with one id, a text with another: generation stops at either."""
    stops = [ids[key] for key in ("end", "eos") if key in ids] if stop_ids is None else list(dict.fromkeys(stop_ids))
    return {"bos_token_id": ids.get("bos"), "eos_token_id": stops, "pad_token_id": ids["eos"]}


def _in_the_way(out: Path, written: set[str]) -> list[str]:
    if out.exists() and not out.is_dir():
        return ["is a file; give a folder"]
    others = sorted(p.name for p in out.iterdir() if p.name not in written | BESIDE) if out.exists() else []
    return [f"holds other files ({', '.join(others[:3])}); give an empty or new folder"] if others else []


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
