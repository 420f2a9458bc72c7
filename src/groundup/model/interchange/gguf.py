"""Export to GGUF, the format of llama.cpp and the programs built on it: weights, tokenizer and template in one file.

A model or a tokenizer that llama.cpp would compute otherwise is refused, with what stands in the way.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from groundup.errors import UserError, did_you_mean, missing_extra, problems
from groundup.model.interchange.gguf_layout import LAYOUTS, gguf_obstacles, gguf_tensors, hyper_parameters, layout_of
from groundup.model.interchange.gguf_tokenizer import gguf_tokenizer
from groundup.model.transformer import Transformer
from groundup.record.files import atomic_file

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["QUANTS", "export_gguf", "gguf_obstacles"]

QUANTS = ("f32", "f16", "bf16", "q8_0", "q4_0")
ALWAYS_F32 = ("position_embd", "ffn_gate_inp", "rope_freqs")  # besides all vectors; llama.cpp expects these so


def export_gguf(
    model: Transformer,
    tokenizer_folder: str | Path,
    out_file: str | Path,
    quant: str = "f16",
    name: str = "groundup",
    tokens: dict[str, int | None] | None = None,
    inexact_tokenizer: bool = False,
) -> dict[str, Any]:
    """Write one .gguf file, whole or not at all; return what was written.

    quant               type of the matrices. Vectors (norms, biases), GPT-2's positions and routers stay F32. Q8_0 and
                        Q4_0 are blocks of 32 numbers: a matrix whose rows they do not fill becomes F16. Under q4_0
                        embeddings and output are Q8_0: their errors go straight into the logits.
    tokens              ids of bos, eos and end (what closes a turn) of a tokenizer that others trained
    inexact_tokenizer   write the file although llama.cpp would give some text other ids

    Returns {"architecture", "layout", "quant", "parameters", "bytes", "types": {type: tensors}, "fallback": [tensors
    that are F16 for their width], "pre_tokenizer", "differences", "notes"}.
    Raises UserError for what no layout computes, for tokenizers that llama.cpp would compute otherwise, and for weights
    that are not finite or too large for the type.
    """
    if quant not in QUANTS:
        raise UserError(f'quant: unknown "{quant}"{did_you_mean(quant, QUANTS)}')
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "gguf") from error
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper puts a prefix before every name
    config, out_file = model.config, Path(out_file)
    problems("no GGUF architecture computes this model", gguf_obstacles(config))
    tokenizer = gguf_tokenizer(Path(tokenizer_folder), config.vocab_size, tokens)
    if tokenizer.differences and not inexact_tokenizer:
        problems(
            "llama.cpp would give some text other ids than this tokenizer, and the model would answer worse there "
            "(inexact_tokenizer writes the file all the same)",
            tokenizer.differences,
        )

    layout = layout_of(config)
    shapes = {tensor_name: tuple(part.shape) for tensor_name, part in gguf_tensors(model)}
    types = {tensor_name: type_of(tensor_name, shape, quant) for tensor_name, shape in shapes.items()}
    file_type = "ALL_F32" if quant == "f32" else f"MOSTLY_{quant.upper()}"
    metadata = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(gguf.LlamaFileType[file_type]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **hyper_parameters(config),
        **tokenizer.fields,
    }
    with atomic_file(out_file) as file, closing(gguf.GGUFWriter(file.name, LAYOUTS[layout].arch)) as writer:
        # The writer opens the temporary file by its name. All names and shapes stand before the data, so the tensors
        # are gone through twice, and none of them is held.
        for key, value in metadata.items():
            _add(writer, key, value)
        for tensor_name, shape in shapes.items():
            _announce(writer, tensor_name, shape, types[tensor_name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor_name, part in gguf_tensors(model):
            writer.write_tensor_data(_encoded(tensor_name, part, types[tensor_name]))
    return {
        "architecture": LAYOUTS[layout].arch,
        "layout": layout,
        "quant": quant,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "bytes": out_file.stat().st_size,
        "types": dict(sorted(Counter(types.values()).items())),
        "fallback": [n for n, kind in types.items() if kind == "F16" and quant in ("q8_0", "q4_0")],
        "pre_tokenizer": tokenizer.fields["tokenizer.ggml.pre"],
        "differences": tokenizer.differences,
        "notes": tokenizer.notes,
    }


def type_of(name: str, shape: tuple[int, ...], quant: str) -> str:
    """Type that a tensor gets."""
    if len(shape) == 1 or any(part in name for part in ALWAYS_F32):
        return "F32"
    if quant in ("q8_0", "q4_0") and shape[-1] % 32:
        return "F16"
    if quant == "q4_0" and name in ("token_embd.weight", "output.weight"):
        return "Q8_0"
    return quant.upper()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):  # before int, which it is too
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _announce(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Name, shape and type."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    stored = quant_shape_to_byte_shape(shape, GGMLQuantizationType[kind])  # the last in bytes
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=GGMLQuantizationType[kind])


def _encoded(name: str, tensor: Tensor, kind: str) -> np.ndarray:
    """The numbers as they stand in the file."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds numbers that are not finite: the model diverged; export an earlier one")
    largest = float(tensor.abs().max())
    if kind == "F16" and largest > torch.finfo(torch.float16).max:
        raise UserError(f"{name} reaches {largest:.3g}, and F16 ends at 65504: use bf16 or f32")
    return np.ascontiguousarray(quantize(tensor.float().contiguous().numpy(), GGMLQuantizationType[kind]))
