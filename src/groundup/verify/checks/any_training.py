"""Anybody's model as it is trained: in training mode, in parts of a batch, recomputed, in half precision, fresh."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.linear import Linear
from groundup.verify import draw
from groundup.verify.adapter import Adapter
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.checks.any_model import COPIED, LENGTH, laid, no_more_than, reach
from groundup.verify.modes import HALF, Listening, buffers_kept, in_dtype, is_half, without_dropout
from groundup.verify.rig import largest


def ways(adapter: Adapter, seed: int) -> dict[str, Callable[[], Tensor]]:
    """What the adapter can be asked, each with a batch of its own: name -> the answer."""
    n = reach(adapter)
    tokens = adapter.tokens(3, n, seed=seed)
    targets = adapter.tokens(3, n - 1, seed=seed + 1)
    targets = torch.where(torch.rand(targets.shape, generator=draw.generator(seed)) < 0.3, -100, targets)
    lengths = [n, 17, 5]
    filled, real = laid(adapter, tokens, lengths, n, adapter.ids - 1)
    documents = (torch.arange(n) // 9).repeat(3, 1)
    found: dict[str, Callable[[], Tensor]] = {"logits": lambda: adapter.checked(adapter.logits(tokens), tokens)}
    if adapter.padded is not None:
        padded = adapter.padded
        found["padded"] = lambda: adapter.checked(padded(filled, real), filled)[real]
    if adapter.documents is not None:
        packed = adapter.documents
        found["documents"] = lambda: adapter.checked(packed(tokens, documents), tokens)
    if adapter.loss is not None:
        loss = adapter.loss
        found["loss"] = lambda: loss(tokens[:, :-1].clone(), targets.clone()).float().cpu()
    return found


@check(
    "training-mode-computes-the-same",
    "invariance",
    "train",
    bug="Training mode does more than drop out: another mask, labels shifted once more, a branch that inference lacks.",
    remedy="Look for `if self.training`: but for dropout and a router's noise both modes are to compute one function.",
    reference="lucidrains/muse-maskgit-pytorch pull 43; facebookresearch/detr issue 498",
    looks_at="model",
)
def training_mode_computes_the_same(adapter: Adapter) -> Measurement:
    """Largest difference between eval mode and training mode, of logits, padded and packed logits and the loss, all
    dropout being taken out (torch's functions give back what they are given). With a graph, as training has one.

    The same numbers by the same formulas: rounding (`Adapter.rounding`). A model that is noisy all the same, of which
    two forwards in training mode differ, is not looked at; batch norms and tokens dropped past an expert's capacity are
    shown as what they are, another function.
    """
    module = adapter.module
    with adapter.awake(), without_dropout():
        asked, calm, worst, where = ways(adapter, seed=61), {}, 0.0, ""
        for name, ask in asked.items():
            module.eval()
            calm[name] = ask().detach()
        scale = largest(calm["logits"])
        bound = adapter.rounding(scale)
        for name, ask in asked.items():
            module.train()
            with buffers_kept(module):
                first = ask().detach()
            with buffers_kept(module):
                again = ask().detach()
            if bool(first.isfinite().all()) and largest(again - first) > bound:
                raise NotApplicable(f"{name} in training mode is drawn at random, even without torch's dropouts")
            off = largest(first - calm[name])
            if off > worst:
                worst, where = off, name
        return Measurement(worst, bound, ", ".join(asked) + (f"; most in {where}" if worst else ""))


@also("accumulation-equals-full-batch", "model")
def accumulation_equals_full_batch(adapter: Adapter) -> Measurement:
    """|sum of five micro-batches' losses, each divided by the whole batch's count, - mean over all scored places|, the
    mean in fp64 from the model's logits. Rows of which all, most, half, few and no places are scored.

    transformers: `num_items_in_batch`, which Trainer hands to every model with open arguments, and then divides by
    nothing more: one that does not look at it is trained on a sum of means. Rounding of the logits' size.
    """
    if adapter.loss_over is None:
        raise NotApplicable("the adapter has no `loss_over`: how a part of a batch is averaged is its caller's")
    from groundup.verify.checks.any_learning import losses, scored

    with adapter.awake(), torch.no_grad():
        tokens, targets = scored(adapter, seed=63)
        count = int((targets >= 0).sum())
        parts = [float(adapter.loss_over(t[None], w[None], count)) for t, w in zip(tokens, targets, strict=True)]
        logits = adapter.ask(tokens)
        expected = float(losses(logits, targets.clamp(min=0))[targets >= 0].mean())
        note = f"{sum(parts):.5f} in five parts, {expected:.5f} at once"
        return Measurement(abs(sum(parts) - expected), adapter.rounding(largest(logits)), note)


@check(
    "recompute-changes-no-gradient",
    "invariance",
    "train",
    bug="Activations computed anew in the backward pass are others (another dropout mask): wrong gradients, no error.",
    remedy="Keep preserve_rng_state, recompute under the same autocast, and put no state into the recomputed part.",
    reference="allenai/OLMo-core pull 828; openai/guided-diffusion issue 167; huggingface/transformers issue 26221",
    looks_at="model",
)
def recompute_changes_no_gradient(adapter: Adapter) -> Measurement:
    """Largest difference of a gradient, over the largest of all gradients, between activations kept and activations
    recomputed; from one seed, in training mode, every dropout that is 0 set to 0.1. The loss counts likewise.

    On a fresh copy where there is one. The same operations run twice: rounding of numbers of size 1.
    """
    if adapter.recompute is None:
        raise NotApplicable("the adapter has no `recompute`: activations are kept")
    if adapter.fresh is not None:
        no_more_than(adapter, COPIED)
    one = adapter.new(64) if adapter.fresh is not None else adapter
    if one.recompute is None:
        raise NotApplicable("the fresh adapter has no `recompute`")
    with one.awake(), _dropping(one.module):
        found = []
        for on in (False, True):
            one.recompute(on)
            found.append(_gradients(one))
        one.recompute(False)
        (loss, kept), (again, anew) = found
        scale = max((largest(g) for g in kept.values()), default=0.0)
        if kept.keys() != anew.keys() or not scale:
            return violations([f"{len(kept)} parameters get a gradient, {len(anew)} when recomputed"], 1)
        off = max(largest(kept[name] - anew[name]) for name in kept) / scale
        return Measurement(max(off, abs(loss - again)), one.rounding(1.0), f"loss {loss:.5f}, recomputed {again:.5f}")


@contextmanager
def _dropping(module: nn.Module) -> Iterator[None]:
    """Training mode in which each dropout that the modules know of drops, if only a tenth."""
    kept: list[tuple[nn.Module, str, float]] = []
    for one in module.modules():
        named = ["p"] if isinstance(one, nn.modules.dropout._DropoutNd) else []
        named += [name for name in vars(one) if re.search(r"dropout$", name)]
        kept += [(one, name, getattr(one, name)) for name in named if getattr(one, name) in (0, 0.0)]
    kept = [(one, name, p) for one, name, p in kept if isinstance(p, float)]
    try:
        for one, name, _ in kept:
            setattr(one, name, 0.1)
        module.train()
        yield
    finally:
        for one, name, p in kept:
            setattr(one, name, p)


def _gradients(adapter: Adapter) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients by name) of one batch, from one state of the random numbers."""
    from groundup.verify.checks.any_learning import loss_of

    module = adapter.module
    module.zero_grad(set_to_none=True)
    rows = adapter.tokens(3, LENGTH + 1 if adapter.context > LENGTH else LENGTH, seed=65)
    here = next(module.parameters()).device
    with torch.random.fork_rng(devices=[here] if here.type == "cuda" else []), buffers_kept(module):
        torch.random.default_generator.manual_seed(draw.shifted(66))
        if here.type == "cuda":
            torch.cuda.manual_seed(draw.shifted(66))
        loss = loss_of(adapter, rows[:, :-1], rows[:, 1:])
        loss.backward()
    return float(loss.detach()), {
        n: p.grad.detach().clone() for n, p in module.named_parameters() if p.grad is not None
    }


_SUMS = {
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy",
    "nll_loss",
    "mean",
    "var",
    "std",
    "norm",
    "vector_norm",
    "rsqrt",
    "layer_norm",
    "rms_norm",
}


@check(
    "sums-stay-in-fp32",
    "identity",
    "train",
    bug="A softmax, a norm or the loss is computed in half precision: a loss of 5 then moves in steps of 1/32.",
    remedy="Put .float() before a norm's mean square, the softmax and the loss; cast back what goes on.",
    reference=(
        "Modalities/modalities pull 464; google-deepmind/optax issue 1020; huggingface/transformers issue 30186; "
        "pytorch/torchtitan pull 3772"
    ),
    looks_at="model",
)
def sums_stay_in_fp32(adapter: Adapter) -> Measurement:
    """Sums in half precision. Of a model with fp32 weights, outside autocast: calls of softmax, mean, norm, rsqrt,
    cross_entropy and their like on bf16 or fp16 numbers, which somebody must have cast on purpose. Of transformers, and
    of a module that is held in half precision, besides, run in bf16: rsqrt on bf16 (a norm written by hand without
    .float()), and a loss of one scored place that has no more than bf16's 8 bits at all of four places, which an fp32
    loss has once in 2^64.

    A kernel's own softmax or layer norm on bf16 is not told: it sums in fp32 within, and rounds its result as each
    matmul does. Nor is a plain F.cross_entropy in a model with fp32 weights, which autocast runs in fp32.
    """
    module, found, looked = adapter.module, [], 0
    half = is_half(module)
    with adapter.awake(), torch.no_grad():
        if not is_half(module):
            looked += 1
            heard = _heard(lambda: _all_of(adapter), _SUMS)
            found += [f"{name} on {dtype} though the weights are fp32" for name, dtype in heard] if not half else []
        if half or hasattr(module, "save_pretrained"):
            with in_dtype(module, torch.bfloat16, of=(torch.float32, *HALF)):
                try:
                    heard, coarse = _heard(lambda: _all_of(adapter), {"rsqrt"}), _coarse(adapter)
                except (RuntimeError, NotImplementedError):  # a kernel that this device has not in bf16
                    heard, coarse = [], []
            looked += 1 + len(coarse)
            found += [f"{name} on {dtype} in bf16" for name, dtype in heard]
            found += ["the loss has 8 bits"] if coarse and all(coarse) else []
    return violations(found, looked)


def _all_of(adapter: Adapter) -> None:
    for ask in ways(adapter, seed=67).values():
        ask()


def _heard(run: Callable[[], Any], names: set[str]) -> list[tuple[str, str]]:
    """(function, dtype) of each call of one of the functions on half precision while `run` runs, outside autocast."""
    found: dict[tuple[str, str], None] = {}

    def hear(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input")
        if name not in names or not isinstance(given, Tensor) or given.dtype not in HALF:
            return
        if kwargs.get("dtype") in (None, *HALF) and not torch.is_autocast_enabled(given.device.type):
            found[name, str(given.dtype).removeprefix("torch.")] = None

    with Listening(hear):
        run()
    return list(found)


def _coarse(adapter: Adapter) -> list[bool]:
    """Of four scored places, each alone in its batch: whether bf16 can hold the loss exactly."""
    if adapter.loss is None:
        return []
    found = []
    for place in range(4):
        rows = adapter.tokens(1, LENGTH, seed=68 + place)
        targets = torch.full_like(rows[:, 1:], -100)
        targets[0, 3 + place] = rows[0, 4 + place]
        loss = adapter.loss(rows[:, :-1].contiguous(), targets.contiguous()).float()
        found.append(bool(loss == loss.bfloat16().float()))
    return found


@check(
    "first-matrices-are-of-a-size",
    "identity",
    "model",
    bug="One matrix of a fresh model is drawn far too large, or left at zero, behind norms that hide it from the loss.",
    remedy="Print std * sqrt(fan-in) of each matrix; see what the initialisation skips: another class, another name.",
    reference="pytorch/torchtitan pull 2450; hpcaitech/ColossalAI pull 251; NVIDIA-BioNeMo/bionemo-recipes pull 983",
    looks_at="model",
)
def first_matrices_are_of_a_size(adapter: Adapter) -> Measurement:
    """Matrices of a fresh model whose spread is another than their likes' in other layers, by more than 2 sqrt(layers);
    that are zero where their likes are not; linear layers whose std sqrt(fan-in) is above 4.

    Schemes differ by depth as 1 / sqrt(layer) at most, so between the first and the last of n layers by sqrt(n); twice
    that leaves room for the draw. PyTorch's Linear has std sqrt(fan-in) = 0.58, Xavier and He at most 1.42, 0.02
    reaches 4 at a width of 40,000. What is the same from two seeds is a formula, and not looked at.
    """
    if adapter.fresh is None:
        raise NotApplicable("the adapter has no `fresh`: no first weights to look at")
    no_more_than(adapter, COPIED)
    from groundup.verify.checks.any_weights import role

    first, again = adapter.new(69), dict(adapter.new(70).module.named_parameters())
    alike: dict[str, dict[str, float]] = {}
    found = []
    for name, p in first.module.named_parameters():
        if p.ndim < 2 or not p.is_floating_point() or (bool(p.any()) and torch.equal(p, again[name])):
            continue
        owner = first.module.get_submodule(name.rpartition(".")[0])
        for part, piece in first.pieces(name, p.detach()) if first.pieces else [(name, p.detach())]:
            if piece.ndim < 2 or piece.numel() < 64:
                continue
            std = float(piece.float().square().mean().sqrt())
            alike.setdefault(role(part), {})[part] = std
            linear = type(owner) in (nn.Linear, Linear) or type(owner).__name__ == "Conv1D"  # a subclass may scale
            fan_in = piece.shape[0 if type(owner).__name__ == "Conv1D" else -1]
            if linear and adapter.ids not in piece.shape and std * fan_in**0.5 > 4:
                found.append(f"{part}: std {std:.3g}, times sqrt({fan_in}) {std * fan_in**0.5:.3g}")
    if not alike:
        raise NotApplicable("no matrix is drawn at random")
    for some in alike.values():
        usual = sorted(some.values())[len(some) // 2]
        room = 2 * math.sqrt(len(some))
        for part, std in some.items():
            if usual and not usual / room <= std <= usual * room:
                found.append(f"{part}: std {std:.3g}, its likes {usual:.3g}")
    return violations(found, sum(map(len, alike.values())))
