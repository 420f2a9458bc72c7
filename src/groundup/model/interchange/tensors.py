"""Safetensors files a tensor at a time, so that no more than one tensor is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from groundup.errors import UserError, problems

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"


class Spec(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_tensors(file: IO[bytes], specs: Mapping[str, Spec], tensor_of: Callable[[str], Tensor]) -> None:
    """A safetensors file, each tensor asked for as its turn comes. The format: https://github.com/huggingface/safetensors

    Wider types come first, so that every tensor is aligned.
    """
    order = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)  # stable
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + specs[name].bytes
        header[name] = {"dtype": NAMES[specs[name].dtype], "shape": specs[name].shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for name in order:
        tensor = tensor_of(name)
        if (tensor.dtype, tuple(tensor.shape)) != specs[name]:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not what the header says")
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


class Checkpoint:
    """The safetensors files of a folder. One is open at a time; its pages go when the tensors read from it are gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: tuple[str, Any] | None = None
        self.files: dict[str, str] = {}  # tensor -> file
        self.specs: dict[str, Spec] = {}
        found = []
        for file, names in self._listed().items():
            if not (folder / file).is_file():
                found.append(f"{file} is missing, with {len(names) if names else 'all'} of its tensors: fetch it again")
                continue
            found += self._read_header(file, names)
        problems(str(folder), found)

    def _listed(self) -> dict[str, list[str] | None]:
        """File -> the tensors that the index says are in it (None: all that are)."""
        single = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if "model.safetensors" in single:  # as transformers: an index beside it is left over from an earlier save
            return {"model.safetensors": None}
        if (self.folder / INDEX).exists():
            try:
                where = json.loads((self.folder / INDEX).read_bytes())["weight_map"]
                listed: dict[str, list[str] | None] = {}
                for name, file in where.items():
                    listed.setdefault(str(file), []).append(name)  # type: ignore[union-attr]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{self.folder / INDEX} is damaged ({error!r}): fetch it again") from error
            if not listed:
                raise UserError(f"{self.folder / INDEX} lists no tensors: fetch it again")
            outside = [file for file in listed if Path(file).name != file]
            problems(str(self.folder / INDEX), [f"{file} is outside of the folder" for file in outside])
            return listed
        if len(single) == 1:
            return {single[0]: None}
        if single:
            raise UserError(f"{self.folder} holds {len(single)} safetensors files and no {INDEX}: fetch the index too")
        pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in self.folder.glob(kind))
        if pickled:
            raise UserError(
                f"{self.folder} holds {pickled[0]}, which can run any code when opened, and no safetensors. Convert it "
                "where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
            )
        raise UserError(f"{self.folder} holds no *.safetensors: is it a model folder of transformers?")

    def _read_header(self, file: str, names: list[str] | None) -> list[str]:
        """Note dtype and shape of a file's tensors; return what is wrong with it."""
        try:
            with safe_open(self.folder / file, framework="pt") as opened:
                there = set(opened.keys())
                for name in there if names is None else there & set(names):
                    part = opened.get_slice(name)
                    kind, shape = part.get_dtype(), tuple(part.get_shape())
                    self.files[name] = file
                    self.specs[name] = Spec(DTYPES.get(kind, kind), shape)
        except (SafetensorError, OSError) as error:
            return [f"{file} cannot be read ({error}): fetch it again"]
        absent = sorted(set(names or ()) - there)
        return [f"{file} has no {name}, though the index says so: fetch both again" for name in absent[:3]]

    def read(self, name: str) -> Tensor:
        """One tensor: a view of the mapped file, to be copied from."""
        file = self.files[name]
        if self._open is None or self._open[0] != file:
            self._open = None  # first: else two files are mapped at once
            self._open = (file, safe_open(self.folder / file, framework="pt"))
        return self._open[1].get_tensor(name)


def adapter_problems(folder: Path) -> list[str]:
    """That a folder is an adapter: a small change of a model that lies elsewhere, and no model."""
    path = folder / "adapter_config.json"
    if not path.is_file() or (folder / "model.safetensors").is_file() or (folder / INDEX).is_file():
        return []
    try:
        base = json.loads(path.read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return [
        f"is an adapter of {base or 'a model'}, which lies elsewhere. Merge them with peft and import that: "
        "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW_FOLDER)"
    ]
