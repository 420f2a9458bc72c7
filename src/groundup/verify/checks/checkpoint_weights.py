"""The weights of a Hugging Face folder: all there, alive, as the config says, and in transformers the same as here."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from groundup.errors import UserError
from groundup.model.interchange.families import FAMILIES
from groundup.model.interchange.hf_import import EXTRAS
from groundup.model.interchange.tensors import INDEX
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.folders import EMBEDDINGS, HEADS, Checkpoint, silent
from groundup.verify.rig import largest

MOST = 300_000_000  # parameters of a model that is run twice


@check(
    "weights-fit-the-config",
    "identity",
    "export",
    bug="Weights that the files do not hold start at random, those that nothing reads are dropped: a warning at most.",
    remedy="Compare the names in the files with the model's; look for a wrong prefix, a head left out, too few layers.",
    reference="vllm-project/vllm pull 53020; huggingface/transformers issue 46620, pull 43429",
    looks_at="checkpoint",
)
def weights_fit_the_config(checkpoint: Checkpoint) -> Measurement:
    """Tensors missing, left over, or of another shape, when transformers makes the model of config.json. None may.

    By from_pretrained's own account (output_loading_info), which knows what is tied and what is renamed on the way.
    Tables that nothing reads (rotary angles, causal masks of old files) are no tensors here.
    """
    fit = checkpoint.fit
    found = [f"{name} is missing" for name in fit.missing]
    found += [f"{name} is read by nothing" for name in fit.unexpected if not EXTRAS.search(name)]
    found += fit.mismatched + ([fit.problem] if fit.problem else [])
    return violations(found, len(checkpoint.tensors))


@check(
    "tied-flag-agrees-with-weights",
    "identity",
    "export",
    bug="tie_word_embeddings says one thing and the files another: a trained head is thrown away, or one is made up.",
    remedy="Set tie_word_embeddings to what was trained; save the head where it differs from the embedding.",
    reference="huggingface/transformers pulls 43429, 42612; NVIDIA-NeMo/Automodel pull 2511",
    looks_at="checkpoint",
)
def tied_flag_agrees_with_weights(checkpoint: Checkpoint) -> Measurement:
    """Tied: elements in which a head stored besides differs from the embedding. Untied: 1 where no head is stored.

    Exact. Where config.json is silent, what transformers takes for that family; NotApplicable for unknown families.
    """
    checkpoint.weights()
    kinds = {family.model_type: family.defaults.get("tie_word_embeddings", False) for family in FAMILIES.values()}
    tied = checkpoint.config.get("tie_word_embeddings", kinds.get(str(checkpoint.config.get("model_type"))))
    head, embedding = checkpoint.stored(HEADS), checkpoint.stored(EMBEDDINGS)
    if tied is None or (head is None and embedding is None):
        raise NotApplicable("config.json does not say whether the head is tied, and its family is not known")
    if not tied:
        return violations([] if head else ["the head is not tied, and none is stored"], 1)
    if head is None or embedding is None:
        return Measurement(0.0, 0.0, "one of the two is stored")
    a, b = checkpoint.tensor(head), checkpoint.tensor(embedding)
    different = a.numel() if a.shape != b.shape else int((a != b).sum())
    return Measurement(float(different), 0.0, f"of {a.numel():,} elements of {head}, which is meant to be {embedding}")


@check(
    "stored-weights-are-finite",
    "identity",
    "export",
    bug="A NaN or an infinity is saved: a spike at the end of training, or a cast to fp16 past 65,504.",
    remedy="Take an earlier checkpoint; cast through bf16 or fp32; look at the tensor that is named.",
    reference="ultralytics/ultralytics pull 24731; huggingface/transformers pull 28122",
    looks_at="checkpoint",
)
def weights_are_finite(checkpoint: Checkpoint) -> Measurement:
    """Elements that are NaN or infinite, over all stored tensors. None may be: arithmetic."""
    found: dict[str, int] = {}
    looked = 0
    for name, tensor in checkpoint.each():
        if tensor.is_floating_point():
            looked += tensor.numel()
            if bad := int((~torch.isfinite(tensor.float())).sum()):
                found[name] = bad
    note = ", ".join(f"{name}: {n:,}" for name, n in list(found.items())[:4]) or f"{looked:,} looked at"
    return Measurement(float(sum(found.values())) if looked else math.nan, 0.0, note)


@check(
    "weights-are-alive",
    "sensitivity",
    "export",
    bug="A matrix or a norm of zeros, dead rows: a part that was never loaded or trained, or was lost in a merge.",
    remedy="Look at how the named tensor was converted, merged or initialised (meta device, empty_like).",
    reference="NVIDIA-NeMo/Speech issue 11951; huggingface/transformers pull 43429",
    looks_at="checkpoint",
)
def weights_are_alive(checkpoint: Checkpoint) -> Measurement:
    """Matrices that are zero throughout; rows of 8 and more elements that hold one value alone; columns of 8 and more
    that are zero (half a matrix may be, where the parts of several devices were put together); norms of zeros where not
    all are (Gemma's norms are stored as their distance from 1).

    Of embedding and head the columns alone: rows are left to `template-tokens-are-trained`, since those that were never
    met stay what they were. None may be: of random weights of any continuous distribution, a row is constant and a
    column zero with probability 0. Left out is Mamba's A_log, whose first column is ln 1.
    """
    found: list[str] = []
    vectors: dict[str, bool] = {}
    looked = 0
    for name, tensor in checkpoint.each():
        if not tensor.is_floating_point() or name.endswith("A_log") or EXTRAS.search(name):
            continue
        looked += 1
        if tensor.ndim == 1 and name.endswith("weight"):
            vectors[name] = not tensor.float().any()
        elif tensor.ndim >= 2 and tensor.shape[-1] >= 8:
            found += [f"{name}: {dead}" for dead in _dead(tensor, not name.endswith(EMBEDDINGS + HEADS))]
    if not all(vectors.values()):
        found += [f"{name}: all zero" for name, zero in vectors.items() if zero]
    return violations(found, looked)


def _dead(tensor: torch.Tensor, rows_too: bool) -> list[str]:
    """What of a matrix, or of several in one tensor, is dead, in words."""
    tensor = tensor.float()
    if not tensor.any():
        return ["all zero"]
    found, flat = [], tensor.flatten(0, -2)
    same = int((flat.amax(1) == flat.amin(1)).sum()) if rows_too else 0
    if same:
        found.append(f"{same} of {len(flat)} rows are constant")
    empty = (tensor == 0).all(-2) if tensor.shape[-2] >= 8 else torch.zeros(0)
    if int(empty.sum()):
        found.append(f"{int(empty.sum())} of {empty.numel()} columns are zero")
    return found


@check(
    "layers-are-distinct",
    "sensitivity",
    "export",
    bug="Two layers hold the very same matrix: a converter read one layer twice, and another's weights are nowhere.",
    remedy="Look at the layer index in the conversion; compare with the original file.",
    reference=(
        "huggingface/transformers pull 24381; KempnerInstitute/KempnerForge issue 202; "
        "NVIDIA-NeMo/Megatron-Bridge issue 1871"
    ),
    looks_at="checkpoint",
)
def layers_are_distinct(checkpoint: Checkpoint) -> Measurement:
    """Matrices that are byte for byte another layer's of the same name; none may be, unless a model was made deeper by
    copying its layers and never trained since. Matrices of one value alone are not compared (the zero points of a
    quantised model are the same in all layers).

    Compared by checksum (CRC-32 and Adler-32, 64 bits: a chance of n^2 / 2^65 that two others agree).
    """
    layer = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
    seen: dict[tuple[str, int, int], str] = {}
    found, looked = [], 0
    for name, tensor in checkpoint.each():
        if tensor.ndim >= 2 and layer.search(f".{name}") and not EXTRAS.search(name) and _varied(tensor):
            looked += 1
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
            key = (layer.sub(".N.", f".{name}"), zlib.crc32(data), zlib.adler32(data))
            if key in seen:
                found.append(f"{name} is {seen[key]}")
            seen.setdefault(key, name)
    if not looked:
        raise NotApplicable("no layers are found by their names")
    return violations(found, looked)


def _varied(tensor: torch.Tensor) -> bool:
    flat = tensor.flatten()
    return flat.numel() > 0 and bool((flat.view(torch.uint8) if flat.element_size() == 1 else flat).ne(flat[0]).any())


@check(
    "stored-dtype-is-the-configs",
    "identity",
    "export",
    bug="config.json names another dtype than the files hold: loaded as it says, weights are rounded, or overflow.",
    remedy="Set dtype (torch_dtype) to what is stored, or cast before saving.",
    reference="huggingface/transformers issues 29955, 30305, 34743",
    looks_at="checkpoint",
)
def stored_dtype_is_the_configs(checkpoint: Checkpoint) -> Measurement:
    """Parameters, as a share, that are stored in another dtype than most, and 1 where most are not in config.json's.

    transformers 5 loads in the config's dtype. A few tensors may be kept wider (norms, routers): up to 1% of the
    parameters, since all vectors of a model of width d together are below 1/d of its matrices, d > 100.
    """
    checkpoint.weights()
    sizes: Counter[str] = Counter()
    for _, (dtype, shape) in checkpoint.tensors.values():
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            sizes[str(dtype).removeprefix("torch.")] += torch.Size(shape).numel()
    config = checkpoint.config
    said = config.get("dtype") or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    if "quantization_config" in config:
        raise NotApplicable("the weights are quantised")
    if not sizes or not isinstance(said, str):
        raise NotApplicable("config.json names no dtype" if sizes else "the weights are quantised")
    said, most = said.removeprefix("torch."), sizes.most_common(1)[0][0]
    share = 1 - sizes[most] / sizes.total()
    note = f"config.json says {said}; stored: {', '.join(f'{n:,} in {kind}' for kind, n in sizes.most_common())}"
    return Measurement(1.0 if said != most else share, 0.01, note)


@check(
    "index-names-what-is-there",
    "identity",
    "export",
    bug="The index of a model in parts names what is not there, or an old index lies beside new weights.",
    remedy="Save again into an empty folder, or fetch the parts that are missing; compare sizes.",
    reference="sgl-project/sglang pull 32279; Blaizzy/mlx-vlm pulls 1827, 1464",
    looks_at="checkpoint",
)
def index_names_what_is_there(checkpoint: Checkpoint) -> Measurement:
    """Tensors of the index that are not in the file it names, files that are absent or cannot be read, tensors in the
    parts that the index does not name, and numbers of parts (-00001-of-00003) that are wanting. Exact. An index beside
    a whole model.safetensors must name the same tensors: one of the two is read by each library.
    """
    index = checkpoint.json(INDEX)
    if not index:
        raise NotApplicable("the folder has no index of parts")
    listed = {str(name): str(file) for name, file in index.get("weight_map", {}).items()}
    single, here = (checkpoint.folder / "model.safetensors").is_file(), set(checkpoint.tensors)
    found = [
        f"{file} is not there" for file in sorted(set(listed.values())) if not (checkpoint.folder / file).is_file()
    ]
    where = {name: file for name, (file, _) in checkpoint.tensors.items()}
    if not single:
        found += [f"{name} is not in {file}" for name, file in listed.items() if where.get(name) != file]
        wanted = {int(m[1]) for file in listed.values() if (m := re.search(r"-of-(\d+)\.", file))}
        parts = set(listed.values())
        found += [f"{len(parts)} parts of {n}" for n in wanted if len(parts) != n]
    elif set(listed) != here:
        found.append(f"it names {len(set(listed) - here)} tensors that model.safetensors has not")
    found += [f"{name} is in {where[name]}, and not in the index" for name in sorted(here - set(listed))]
    return violations(found, len(listed))


@check(
    "import-equals-transformers",
    "identity",
    "export",
    bug="A converted model computes something else: q and k swapped, another rotation, a norm's epsilon, a bias lost.",
    remedy="Compare layer by layer; see model/interchange for what each key of config.json means.",
    reference="pytorch/torchtitan pull 3772; EleutherAI/gpt-neox pull 1345; karpathy/llama2.c pull 286",
    looks_at="checkpoint",
)
def import_equals_transformers(checkpoint: Checkpoint) -> Measurement:
    """Largest difference of a logit between transformers' model and groundup's import of the same folder, over the
    bound that it must keep: once with the stored weights, and once with weights redrawn at a size where every part
    matters (`Adapter.awake`), under the folder's own config.json.

    Two programs that round alike in fp32 differ by `Adapter.rounding` at most, hence the ratio's bound of 1. Families
    that groundup does not read do not apply, nor models over 300M parameters.
    """
    from groundup.verify.adapter import Adapter

    checkpoint.weights()
    if checkpoint.parameters > MOST:
        raise NotApplicable(f"{checkpoint.parameters:,} parameters are run by their own checks alone")
    adapter = checkpoint.face("model")
    if not isinstance(adapter, Adapter):
        raise NotApplicable(checkpoint.fit.problem or "transformers makes no model of it that can be looked at")
    worst, notes = _apart(checkpoint.folder, adapter), []
    notes.append(f"as stored {worst:.2g}")
    with tempfile.TemporaryDirectory() as folder, adapter.awake(), silent():
        module: Any = adapter.module
        module.save_pretrained(folder)
        shutil.copy(checkpoint.folder / "config.json", Path(folder) / "config.json")
        awake = _apart(Path(folder), adapter)
    notes.append(f"redrawn {awake:.2g}")
    return Measurement(max(worst, awake), 1.0, ", ".join(notes) + " times the rounding")


def _apart(folder: Path, adapter: Any) -> float:
    """Largest difference of the folder's import from the adapter's model, over the adapter's rounding."""
    from groundup.model.interchange.hf_import import import_hf
    from groundup.model.storage import load_model

    with tempfile.TemporaryDirectory() as out:
        try:
            import_hf(folder, out)
            ours: Any = load_model(Path(out)).eval()
        except UserError as error:
            raise NotApplicable(f"groundup does not read it ({str(error)[:160]})") from error
    tokens = adapter.tokens(2, min(adapter.context, ours.config.context, 48), seed=11)
    theirs = adapter.ask(tokens)
    with torch.no_grad():
        logits = ours.logits(ours(tokens))
    return largest(logits[..., : theirs.shape[-1]] - theirs) / adapter.rounding(largest(theirs))
