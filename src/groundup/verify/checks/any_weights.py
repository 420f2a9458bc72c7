"""The weights of anybody's model: tied where they should be, sound, and not copies of one another."""

from __future__ import annotations

import copy
import hashlib
import re
from typing import Any

import torch
from torch import Tensor

from groundup.verify.adapter import Adapter
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.checks.any_model import COPIED, no_more_than


@also("tied-is-one-storage", "model")
def tied_is_one_storage(adapter: Adapter) -> Measurement:
    """Pairs of vocabulary matrices that are equal in two storages, or one storage under two parameters (whose gradients
    are not added); and names that were tied and are not after deepcopy, load_state_dict or .double().

    Of the weights as they are. The chance that two matrices drawn apart are bit-equal is nil.
    """
    module = adapter.module
    wide = [(n, p) for n, p in module.named_parameters() if p.ndim == 2 and adapter.ids in p.shape]
    ties = _ties(module)
    if len(wide) < 2 and not ties:
        raise NotApplicable("one vocabulary matrix under one name: nothing could come apart")
    found = [
        f"{a} and {b} are equal in two storages" if p.data_ptr() != q.data_ptr() else f"{a} and {b}: two parameters"
        for k, (a, p) in enumerate(wide)
        for b, q in wide[k + 1 :]
        if p.shape == q.shape and torch.equal(p, q) and not _constant(p)
    ]
    small = sum(p.numel() for p in module.parameters()) <= COPIED
    if small:  # a fresh one where there is one: what a module keeps of its last pass with a graph cannot be copied
        loaded = adapter.fresh(20).module if adapter.fresh is not None else copy.deepcopy(module)
        loaded.load_state_dict(module.state_dict())
        moments = {"load_state_dict": loaded, "deepcopy": copy.deepcopy(loaded)}
        moments["double()"] = copy.deepcopy(loaded).double()
        found += [f"{names} come apart by {how}" for how, one in moments.items() for names in ties - _ties(one)]
    return violations(found, len(wide) + (3 * len(ties) if small else 0))


def _ties(module: torch.nn.Module) -> set[str]:
    """Names that share one parameter, as "a = b"."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {" = ".join(sorted(shared)) for shared in names.values() if len(shared) > 1}


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@check(
    "weights-are-finite",
    "identity",
    "model",
    bug="A tensor was lost on the way: NaN, infinity, or nothing but zeros in a layer whose likes are full.",
    remedy="Compare the named tensor with the file it came from: its name, its dtype (overflow in fp16), its shard.",
    reference=(
        "huggingface/transformers pull 28122; ultralytics/ultralytics pull 24731; AnswerDotAI/ModernBERT issue 215"
    ),
    looks_at="model",
)
def weights_are_finite(adapter: Adapter) -> Measurement:
    """Parameters that hold NaN or infinity, buffers that hold NaN (masks may hold -inf), and matrices of zeros where
    the same matrix of another layer is not: schemes that begin with zeros do so in all layers. As they are."""
    module = adapter.module
    found = [f"{n} is not finite" for n, p in module.named_parameters() if not bool(p.isfinite().all())]
    found += [f"{n} holds NaN" for n, b in module.named_buffers() if bool(b.isnan().any())]
    alike: dict[str, dict[str, bool]] = {}
    for name, p in module.named_parameters():
        for part, piece in adapter.pieces(name, p.detach()) if adapter.pieces else [(name, p)]:
            if piece.ndim >= 2:
                alike.setdefault(role(part), {})[part] = bool(piece.any())
    found += [
        f"{part} is all zero"
        for full in alike.values()
        if any(full.values())
        for part, any_ in full.items()
        if not any_
    ]
    return violations(found, len(list(module.parameters())))


@check(
    "layers-start-unlike",
    "sensitivity",
    "model",
    bug="Two layers begin with the same numbers, or every seed does: pipeline chunks seeded alike learn alike.",
    remedy="Seed once, before the first layer, not per layer or per chunk; let each rank's chunk draw its own.",
    reference="pytorch/torchtitan issue 514; pytorch/pytorch issue 139304; PaddlePaddle/PaddleNLP pull 9425",
    looks_at="model",
)
def layers_start_unlike(adapter: Adapter) -> Measurement:
    """Pairs of equal matrices (experts of a stack too) that are not one storage, in a fresh model where the adapter has
    `fresh`, else in this one; and with `fresh`, matrices that two seeds give alike while their like in another layer
    is drawn anew, or all of them. What does not follow the seed in any layer is a formula, and not looked at.

    The chance that two matrices drawn apart are bit-equal is nil. Layers or experts copied on purpose show here: look
    at them after some training, or let this check through. Vocabulary matrices: see tied-is-one-storage.
    """
    found, fixed = [], set()
    first = adapter
    if adapter.fresh is not None:
        no_more_than(adapter, COPIED)
        first = adapter.fresh(28)
        drawn, again = _drawn(first), _drawn(adapter.fresh(29))
        same = {name for name, matrix in drawn.items() if torch.equal(matrix, again.get(name, matrix))}
        if drawn and len(same) == len(drawn):
            found.append("every matrix is the same from two seeds")
        moving = {role(name) for name in drawn.keys() - same}
        found += [f"{name} is the same from two seeds" for name in sorted(same) if role(name) in moving]
        fixed = {name for name in same if role(name) not in moving}
    drawn = {name: matrix for name, matrix in _drawn(first).items() if name not in fixed}
    if not drawn and not found:
        raise NotApplicable("no matrix is drawn at random")
    seen: dict[tuple[Any, ...], str] = {}
    for name, matrix in drawn.items():
        if adapter.ids not in matrix.shape:
            numbers = matrix.detach().float().cpu().contiguous().numpy()
            twin = seen.setdefault((matrix.shape, hashlib.sha256(numbers.data).digest()), name)
            found += [f"{name} begins as {twin}"] if twin != name else []
    return violations(found, max(1, len(drawn)))


def role(name: str) -> str:
    """A parameter's name without its layer's number, and its expert's."""
    return re.sub(r"\d+", "*", name)


def _drawn(adapter: Adapter) -> dict[str, Tensor]:
    """Matrices that are not constant, by their pieces."""
    parts = [
        part
        for name, p in adapter.module.named_parameters()
        if p.ndim >= 2
        for part in (adapter.pieces(name, p.detach()) if adapter.pieces else [(name, p.detach())])
    ]
    return {name: matrix for name, matrix in parts if matrix.ndim >= 2 and not _constant(matrix)}
