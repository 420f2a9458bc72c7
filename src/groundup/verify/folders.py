"""A Hugging Face folder, as the checks see it: what lies in its files, its tokenizer, and the model that it makes.

Everything is read once and kept. Nothing is fetched and no code of the folder is run; pickled weights are not opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from groundup.errors import UserError, missing_extra
from groundup.model.interchange.tensors import DTYPES, INDEX, Spec
from groundup.verify.check import Face, NotApplicable
from groundup.verify.libraries import of_sentencepiece
from groundup.verify.outside import OutsideTokenizer
from groundup.verify.target import Target

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
VOCAB_FILES = (("*vocab.json", "*merges.txt"), ("encoder.json", "vocab.bpe"))  # GPT-2's, under both of their names


@dataclass
class Fit:
    """How the stored weights fit the model that config.json describes; names of tensors."""

    missing: list[str] = field(default_factory=list)  # the model has it, the files do not: it starts at random
    unexpected: list[str] = field(default_factory=list)  # the files have it, nothing reads it
    mismatched: list[str] = field(default_factory=list)  # with both shapes
    problem: str = ""  # why no model can be made of the folder at all


class Checkpoint:
    """A folder with config.json, perhaps weights, a tokenizer, generation_config.json. It must not change meanwhile.

    config, generation, tokenizer_config: the JSON objects, {} where the file is absent.
    """

    kind = "checkpoint"

    def __init__(self, folder: Path, keep: Any = None) -> None:
        self.folder, self.keep = folder, keep  # keep: lives as long as this does (a temporary folder)
        self.config = self.json("config.json")
        self.generation = self.json("generation_config.json")
        self.tokenizer_config = self.json("tokenizer_config.json")

    # ---- files ----

    def json(self, name: str) -> dict[str, Any]:
        """A file of the folder as an object; {} where there is none. Errors: UserError for a damaged one."""
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): fetch it again") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} is not a JSON object: fetch it again")
        return found

    @cached_property
    def shards(self) -> list[str]:
        """The safetensors files that transformers would read; they may be absent."""
        if (self.folder / "model.safetensors").is_file():
            return ["model.safetensors"]
        listed = self.json(INDEX).get("weight_map", {})
        if listed:
            return sorted(set(map(str, listed.values())))
        return sorted(path.name for path in self.folder.glob("*.safetensors"))

    @cached_property
    def tensors(self) -> dict[str, tuple[str, Spec]]:
        """Stored tensor -> (its file, dtype and shape). Of a file that cannot be read there is nothing here."""
        found: dict[str, tuple[str, Spec]] = {}
        for shard in self.shards:
            try:
                with safe_open(self.folder / shard, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  not a dict
                        part = opened.get_slice(name)
                        kind = part.get_dtype()
                        found[name] = (shard, Spec(DTYPES.get(kind, kind), tuple(part.get_shape())))
            except (SafetensorError, OSError):
                continue
        return found

    def weights(self) -> None:
        """NotApplicable where there are none that can be read."""
        if not self.tensors:
            pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in self.folder.glob(kind))
            raise NotApplicable(
                f"{pickled[0]} is a pickle, which can run any code; only safetensors are read"
                if pickled
                else "the folder holds no weights"
            )

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """Every stored tensor, one in memory at a time."""
        self.weights()
        for shard in self.shards:
            names = [name for name, (where, _) in self.tensors.items() if where == shard]
            if names:
                with safe_open(self.folder / shard, framework="pt") as opened:
                    for name in names:
                        yield name, opened.get_tensor(name)

    def tensor(self, name: str) -> Tensor:
        with safe_open(self.folder / self.tensors[name][0], framework="pt") as opened:
            return opened.get_tensor(name)

    def stored(self, tails: tuple[str, ...]) -> str | None:
        """The name of the stored tensor that ends in one of these: the embedding, the head."""
        return next((n for tail in tails for n in self.tensors if n == tail or n.endswith("." + tail)), None)

    @property
    def parameters(self) -> int:
        return sum(torch.Size(spec.shape).numel() for _, spec in self.tensors.values())

    # ---- what transformers makes of it ----

    @cached_property
    def _loaded(self) -> tuple[Any, Fit]:
        """(the model in fp32 or None, how the weights fit it)."""
        self.weights()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if 4 * self.parameters > 0.6 * memory:
            raise NotApplicable(f"{self.parameters:,} parameters in fp32 do not fit {memory / 1e9:.0f} GB of memory")
        if "auto_map" in self.config:
            raise NotApplicable("its code lies in the folder, and is not run here")
        if (quantised := self.config.get("quantization_config")) is not None:
            method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
            raise NotApplicable(
                f"its weights are quantised ({method or quantised!s:.40}): give the folder it was made of"
            )
        try:
            transformers = library()
        except UserError as error:
            raise NotApplicable(str(error)) from error
        if (reason := _unknown(transformers, self.config.get("model_type"))) != "":
            raise NotApplicable(reason)
        try:
            with silent():
                model, said = transformers.AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=torch.float32,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except Exception as error:  # whatever the library makes of a damaged folder
            return None, Fit(problem=f"transformers cannot load it ({type(error).__name__}: {str(error)[:200]})")
        odd = [f"{name}: {tuple(a)} is stored, the model has {tuple(b)}" for name, a, b in said["mismatched_keys"]]
        missing, unexpected = sorted(said["missing_keys"]), sorted(said["unexpected_keys"])
        return model.eval(), Fit(missing, unexpected, sorted(odd), "; ".join(map(str, said.get("error_msgs") or [])))

    @property
    def fit(self) -> Fit:
        """NotApplicable without weights, or without transformers."""
        return self._loaded[1]

    @property
    def model(self) -> Any:
        """transformers' model in fp32 and in eval mode. NotApplicable where none can be made."""
        model, fit = self._loaded
        if model is None:
            raise NotApplicable(fit.problem)
        return model

    @cached_property
    def tokenizer(self) -> OutsideTokenizer | None:
        return tokenizer_of(self.folder)

    # ---- as a target ----

    def face(self, name: Face) -> Any | None:
        if name == "checkpoint":
            return self
        return self._adapter if name == "model" else self.tokenizer if name == "tokenizer" else None

    @cached_property
    def _adapter(self) -> Any | None:
        """The model as the checks of any model see it; None where transformers or the weights are missing."""
        try:
            from groundup.verify.hf import of_transformers

            return of_transformers(self.model, None if self.tokenizer is None else self.tokenizer.given)
        except Exception:  # `weights-fit-the-config` tells what is wrong
            return None


def opened(path: Path) -> Target:
    """A checkpoint's folder, or a tokenizer's folder or file. Errors: UserError for what is neither."""
    if path.is_dir() and (path / "config.json").is_file():
        return Checkpoint(path)
    found = tokenizer_of(path) if path.is_dir() else tokenizer_of_file(path)
    if found is None:
        raise UserError(
            f"{path} holds no config.json, tokenizer.json, *.model, nor vocab.json with merges.txt: give the folder of "
            "a model or of a tokenizer"
        )
    return found


def is_folder(path: Path) -> bool:
    """Whether a folder is one that `opened` reads."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    return path.is_dir() and (
        any((path / name).is_file() for name in names) or _vocab_files(path) is not None or len(_models(path)) == 1
    )


def _vocab_files(folder: Path) -> tuple[Path, Path] | None:
    """The vocabulary and the merges of a byte-level BPE that came without a tokenizer.json, if there is one pair."""
    for vocab, merges in VOCAB_FILES:
        pairs = [(a, b) for a in sorted(folder.glob(vocab)) for b in sorted(folder.glob(merges))]
        if len(pairs) == 1:
            return pairs[0]
    return None


def _models(folder: Path) -> list[Path]:
    named = folder / "tokenizer.model"
    return [named] if named.is_file() else sorted([*folder.glob("*.model"), *folder.glob("*.model.v*")])


def tokenizer_of(folder: Path) -> OutsideTokenizer | None:
    """The tokenizer of a folder, by transformers where it can, or else as its files describe it; None without one."""
    named = (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file()
    there = (folder / "tokenizer.json").is_file()
    if named and (there or (folder / "tokenizer_config.json").is_file()):
        found = _by_transformers(folder)
        if found is not None:
            return found
        if there and (ours := _by_groundup(folder)) is not None:
            return ours
    if there:
        return tokenizer_of_file(folder / "tokenizer.json")
    if (pair := _vocab_files(folder)) is not None:
        return OutsideTokenizer.of(_byte_level(*pair))
    found_models = _models(folder)
    if len(found_models) > 1:
        raise UserError(f"{folder} holds {', '.join(p.name for p in found_models)}: give the one that is meant")
    return tokenizer_of_file(found_models[0]) if found_models else None


def tokenizer_of_file(path: Path) -> OutsideTokenizer | None:
    """The tokenizer that a tokenizer.json or a SentencePiece model describes. Errors: UserError for a damaged one."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder")
    if path.suffix == ".json":
        try:
            return OutsideTokenizer.of(Backend.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise UserError(f"{path} is no tokenizer of the tokenizers library, or damaged ({error})") from error
    if ".model" in path.name:
        return of_sentencepiece(path)
    return None


def _by_transformers(folder: Path) -> OutsideTokenizer | None:
    try:
        transformers = library()
        with silent():
            return OutsideTokenizer.of(transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception:  # not installed, or a class that it does not have: the files are read instead
        return None


def _by_groundup(folder: Path) -> OutsideTokenizer | None:
    from groundup.tokenizer.foreign import from_checkpoint

    try:
        tokenizer, brought = from_checkpoint(folder)
    except UserError:
        return None
    found = OutsideTokenizer.of(tokenizer)
    found.template = found.template if brought else None
    return found


def _byte_level(vocab: Path, merges: Path) -> Backend:
    """GPT-2's files, read as GPT-2's code reads them: its way to split text, no normaliser, no special tokens."""
    try:
        backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:
        raise UserError(f"{vocab} and {merges.name} are no vocabulary and merges of BPE ({error})") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = backend.token_to_id("<|endoftext|>")
    if end is not None:
        backend.add_special_tokens(["<|endoftext|>"])
    return backend


def library() -> Any:
    """transformers. Errors: UserError without it."""
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("hf", "transformers") from error
    return transformers


def _unknown(transformers: Any, kind: Any) -> str:
    """Why the installed transformers has no language model for a model_type; "" where it has one, or none is named."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not isinstance(kind, str) or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return ""
    known = kind in transformers.CONFIG_MAPPING
    what = "makes no language model of" if known else "does not know"
    return f"transformers {transformers.__version__} {what} model_type {kind!r}" + (
        "" if known else ": a newer one may"
    )


@contextmanager
def silent() -> Iterator[None]:
    """transformers without its warnings and bars, inside: what it would warn of is what the checks are about."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
