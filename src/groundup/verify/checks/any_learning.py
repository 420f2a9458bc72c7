"""What anybody's model learns from: gradients, losses, and whether it can learn at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.verify import draw
from groundup.verify.adapter import Adapter
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.checks.any_model import COPIED, LENGTH, SCORED, TRAINED, laid, no_more_than, reach, telling
from groundup.verify.modes import buffers_kept, trained
from groundup.verify.rig import largest


@also("every-parameter-gets-gradient", "model")
def every_parameter_gets_gradient(adapter: Adapter) -> Measurement:
    """Trainable parameters, by their pieces (q, k, v; gate, up; each expert), that the loss does not hang on: the
    gradient is None, or sum |g w| of a matrix is below the loss's rounding, over eight rows of the context's length
    (128 at most), in training mode. What is so then is looked at with up to 23 other weights and batches, while they
    find more that moves: an expert may be chosen rarely. And rows of a table of places that stay without gradient
    though the rows are as long.

    sum |g w| is what the loss moves by, at most, when the matrix is changed by as much as it is: a router whose weights
    are normalised over one expert has a gradient of rounding alone. Frozen parameters are left out; but a matrix that a
    fresh model draws by its seed and keeps from being trained (`Adapter.frozen` names those that are meant) counts.
    """
    named = [(name, p) for name, p in adapter.module.named_parameters() if p.requires_grad]
    if not named:
        raise NotApplicable("every parameter is frozen")
    wrong: dict[str, str] = {}
    of = since = 0
    for attempt in range(24):
        with adapter.awake(attempt), _training(adapter):
            found = _unmoved(adapter, named, attempt)
        of = of or len(found)
        left = {name: why for name, why in found.items() if why and (attempt == 0 or name in wrong)}
        since = since + 1 if len(left) == len(wrong) else 0
        wrong = left
        if not wrong or since == 6:
            break
    return violations([*(f"{name} {why}" for name, why in wrong.items()), *_frozen_at_birth(adapter)], of)


def _training(adapter: Adapter) -> AbstractContextManager[None]:
    """Training mode without dropout, if the logits then are the same twice."""
    tokens = adapter.tokens(1, LENGTH, seed=60)
    return trained(adapter.module, lambda: adapter.ask(tokens), lambda found: adapter.rounding(largest(found)))


def _unmoved(adapter: Adapter, named: Sequence[tuple[str, Tensor]], more: int) -> dict[str, str]:
    """Each piece of each parameter: what is wrong with its gradient, or ""."""
    cut, n = adapter.pieces or (lambda name, tensor: [(name, tensor)]), reach(adapter)
    rows = adapter.tokens(8, n, seed=14 + more)
    adapter.module.zero_grad(set_to_none=True)
    loss = loss_of(adapter, rows[:, :-1], rows[:, 1:])
    loss.backward()
    floor, found = torch.finfo(torch.float32).eps * abs(float(loss.detach())), {}
    for name, p in named:
        if p.grad is None:
            found[name] = "has no gradient"
            continue
        for (part, gradient), (_, weight) in zip(cut(name, p.grad), cut(name, p.detach()), strict=True):
            none = "is all zero" if not bool(gradient.any()) else ""
            felt = gradient.ndim < 2 or float((gradient * weight).abs().sum()) > floor
            found[part] = none or ("" if felt else "has a gradient of rounding alone")
        owner = adapter.module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, torch.nn.Embedding) and adapter.ids not in p.shape and len(p) >= n:
            read = p.grad.any(1).nonzero()[:, 0]  # one behind the other, or it is no table of places
            if len(read) < n - 1 and int(read[-1] - read[0]) + 1 == len(read):
                found[name] = f"is read at {len(read)} places of rows of {n - 1}"
    return found


def _frozen_at_birth(adapter: Adapter) -> list[str]:
    """Parameters that a fresh model draws by its seed and keeps from being trained: a table by a formula is the same
    from two seeds."""
    if adapter.fresh is None or sum(p.numel() for p in adapter.module.parameters()) > COPIED:
        return []
    first, again = adapter.fresh(15).module, dict(adapter.fresh(16).module.named_parameters())
    return [
        f"{name} is drawn and never trained (`frozen` of the adapter names what is meant)"
        for name, p in first.named_parameters()
        if not p.requires_grad and not name.startswith(adapter.frozen) and not torch.equal(p, again.get(name, p))
    ]


def loss_of(adapter: Adapter, tokens: Tensor, targets: Tensor) -> Tensor:
    """The adapter's own loss, else the mean cross-entropy of its logits, with a graph."""
    if adapter.loss is not None:
        return adapter.loss(tokens.contiguous(), targets.contiguous())  # people write targets.view(-1)
    logits = adapter.checked(adapter.logits(tokens.contiguous()), tokens)
    return F.cross_entropy(logits.flatten(0, 1), targets.to(logits.device).flatten())


@check(
    "gradient-is-the-slope",
    "identity",
    "train",
    bug="The gradient is not the loss's: a branch is detached, computed under no_grad, or changed in place.",
    remedy="Look for detach(), .data, no_grad and custom backward functions between the named parameters and the loss.",
    reference="NVIDIA/Megatron-LM issue 7452; pytorch/torchtitan pull 3412; jingyaogong/minimind issue 858",
    looks_at="model",
    false_alarm=1e-3,  # several routers, or kinks, that switch inside the step on three rows of four
)
def gradient_is_the_slope(adapter: Adapter) -> Measurement:
    """|slope / sum |g_i| - 1|: how far the loss's slope along its gradient, each parameter's g_i scaled to length 1, is
    from what the gradient says it is.

    Central differences D(h) and D(h / 2), h such that the loss should move by 0.02, made one of (4 D(h/2) - D(h)) / 3.
    The bound: 3 |D(h) - D(h/2)|, nine times the error that D(h/2) has where all is smooth, and more than any one jump
    inside the step makes, a router that switches; and 3 r / h for the rounding r of the loss, ten times what it
    strays from a line over five steps of h / 1000. Of four rows the second best by its bound counts: kinks (ReLU)
    close to a row's own place are seen by no difference, a wrong gradient is wrong on every row. In training mode
    without dropout, if that says the same twice.
    """
    if not any(p.requires_grad for p in adapter.module.parameters()):
        raise NotApplicable("every parameter is frozen")
    with adapter.awake(), _training(adapter):
        telling(adapter, 1.0)
        found = [_slope(adapter, row[None]) for row in adapter.tokens(4, 13, seed=18)]
        return sorted(found, key=lambda one: one.value / one.bound if math.isfinite(one.value) else math.inf)[1]


def _slope(adapter: Adapter, row: Tensor) -> Measurement:
    """One row's measurement; the weights stand where they stood."""
    adapter.module.zero_grad(set_to_none=True)
    tokens, targets = row[:, :-1], row[:, 1:]
    with buffers_kept(adapter.module):
        loss_of(adapter, tokens, targets).backward()
    moved = [(p, p.grad, p.detach().clone()) for p in adapter.module.parameters() if p.grad is not None]
    lengths = [max(float(gradient.norm()), 1e-30) for _, gradient, _ in moved]
    expected = sum(lengths)
    h = 0.02 / max(expected, 1e-30)

    @torch.no_grad()
    def at(step: float) -> float:
        for (p, gradient, start), length in zip(moved, lengths, strict=True):
            p.copy_(start).add_(gradient, alpha=step / length)
        with buffers_kept(adapter.module):
            return float(loss_of(adapter, tokens, targets))

    wide, narrow = (at(h) - at(-h)) / (2 * h), (at(h / 2) - at(-h / 2)) / h
    near = [at(k * h / 1000) for k in (-2, -1, 1, 2, 0)]
    around = [near[0] - 2 * near[1] + near[4], near[1] - 2 * near[4] + near[2], near[4] - 2 * near[2] + near[3]]
    rounding = 10 * max(map(abs, around)) + torch.finfo(torch.float32).eps * abs(near[4])
    slope = (4 * narrow - wide) / 3 / max(expected, 1e-30)
    bound = max(3 * abs(wide - narrow) + 3 * rounding / h, 1e-30) / max(expected, 1e-30)
    return Measurement(abs(slope - 1), bound, f"slope {slope * expected:.5g}, by the gradient {expected:.5g}")


@also("eval-is-deterministic", "model")
def eval_is_deterministic(adapter: Adapter) -> Measurement:
    """Of up to three: two forwards in eval mode are bit-equal (on a GPU: within rounding); with every nn.Dropout's p
    at 0 they still are; in training mode, if any p is above 0, two forwards differ."""
    drops = [m for m in adapter.module.modules() if isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p > 0]
    with adapter.awake():
        tokens, found = adapter.tokens(2, LENGTH, seed=19), []
        before = adapter.ask(tokens)
        exact = next(adapter.module.parameters()).device.type == "cpu"
        bound = 0.0 if exact else adapter.rounding(largest(before))
        if not largest(adapter.ask(tokens) - before) <= bound:
            found.append("two forwards in eval mode differ")
        if drops:
            adapter.module.train()
            if torch.equal(adapter.ask(tokens), adapter.ask(tokens)):
                found.append("dropout does nothing in training mode")
            adapter.module.eval()
            ps = [m.p for m in drops]
            try:
                for m in drops:
                    m.p = 0.0
                if not largest(adapter.ask(tokens) - before) <= bound:
                    found.append("dropout changes the result in eval mode")
            finally:
                for m, p in zip(drops, ps, strict=True):
                    m.p = p
        return violations(found, 3 if drops else 1)


@also("init-loss", "model")
def init_loss(adapter: Adapter) -> Measurement:
    """|mean loss at a position - ln(V - 1)|, the worst of 8 positions; a fresh model, targets drawn at random. The
    token's own logit is left out: a tied head makes that one large in every sound model.

    Logits that are N(0, s^2) have the loss ln V + s^2 / 2. s = std sqrt(d) where the last norm gives a hidden
    state of length sqrt(d): 0.58 for PyTorch's own Linear, 0.02 sqrt(d) in GPT-2, Llama and those after; so s up to the
    larger of 1 and 0.02 sqrt(d) is let through. The mean over n rows strays by s / sqrt(n): five of those are met
    by chance once in a million.
    """
    if adapter.fresh is None:
        raise NotApplicable("the adapter has no `fresh`: no first weights to look at")
    no_more_than(adapter, COPIED)
    fresh, rows, positions = adapter.new(21), 128, 8
    fresh.module.eval()
    widths = [n for p in fresh.module.parameters() if p.ndim == 2 and adapter.ids in p.shape for n in p.shape]
    s = max(1.0, 0.02 * max((n for n in widths if n != adapter.ids), default=0) ** 0.5)
    tokens = torch.randint(adapter.ids, (rows, positions), generator=draw.generator(22))
    targets = (tokens + torch.randint(1, adapter.ids, tokens.shape, generator=draw.generator(23))) % adapter.ids
    found = []
    for some, wanted in zip(tokens.split(32), targets.split(32), strict=True):
        logits = fresh.ask(some).cpu()
        found.append(losses(logits.scatter(2, some[..., None], -math.inf), wanted))
    mean, uniform = torch.cat(found).mean(0), math.log(adapter.ids - 1)
    note = f"loss {float(mean.mean()):.4f}, ln(V - 1) {uniform:.4f}"
    return Measurement(largest(mean - uniform), s * s / 2 + 5 * s / rows**0.5, note)


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T) in fp64."""
    return F.cross_entropy(logits.double().cpu().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def scored(adapter: Adapter, seed: int) -> tuple[Tensor, Tensor]:
    """(tokens, targets) of 5 rows of the context's length, 128 at most, less what a model that shifts labels itself is
    handed more; about a quarter unscored, more in later rows; the last row altogether."""
    n = reach(adapter) - 1
    rows = adapter.tokens(5, n + 1, seed=seed)
    drop = torch.rand(5, n, generator=draw.generator(seed)) < torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])[:, None]
    return rows[:, :-1], torch.where(drop, -100, rows[:, 1:])


@also("loss-is-its-definition", "model")
def loss_is_its_definition(adapter: Adapter) -> Measurement:
    """|loss - mean over scored places of -log softmax(logits) at the target|, the mean in fp64 from the model's logits.

    Five rows, of which none, some, half and all places are masked with -100: a mean of the rows' means, or one
    over all places, is another number. Targets are the first id, the last and special ones too (`Adapter.special`):
    each is a token that must be learned. Rounding of the logits' size.
    """
    if adapter.loss is None:
        raise NotApplicable("the adapter has no `loss`")
    with adapter.awake(), torch.no_grad():
        tokens, targets = scored(adapter, seed=24)
        given, logits = float(adapter.loss(tokens.clone(), targets.clone())), adapter.ask(tokens)
        expected = float(losses(logits, targets.clamp(min=0))[targets >= 0].mean())
        note = f"loss {given:.5f}, by definition {expected:.5f}, {int((targets >= 0).sum())} places scored"
        return Measurement(abs(given - expected), adapter.rounding(largest(logits)), note)


@also("target-is-next-token", "model")
def target_is_next_token(adapter: Adapter) -> Measurement:
    """What the loss of one scored place t (0, 7, 18, the longest row's last) does wrong: it must be finite, change with
    token t and with the target (of four others at least one must change it above rounding), and stay within rounding
    when tokens after t change.

    Labels that are not shifted are scored by the logits of the target itself, those shifted twice by logits that
    have not seen token t.
    """
    if adapter.loss is None:
        raise NotApplicable("the adapter has no `loss`")
    with adapter.awake(), torch.no_grad():
        n = reach(adapter) - 1
        tokens, found = adapter.tokens(1, n, seed=25), []
        noise, slots = adapter.rounding(telling(adapter, largest(adapter.ask(tokens)))), torch.arange(n)

        def scored(row: Tensor, place: int, target: int) -> float:
            targets = torch.full_like(row, -100)
            targets[0, place] = target
            assert adapter.loss is not None
            return float(adapter.loss(row.contiguous(), targets.contiguous()))

        places = sorted({0, 7, SCORED - 2, n - 2})
        for place in places:
            target = int(tokens[0, place + 1])
            others = [(tokens + k * max(1, adapter.ids // 5)) % adapter.ids for k in (1, 2, 3, 4)]
            loss = scored(tokens.clone(), place, target)
            later = scored(torch.where(slots > place, others[0], tokens), place, target)
            own = [scored(torch.where(slots == place, other, tokens), place, target) for other in others]
            retold = [scored(tokens.clone(), place, int(other[0, place + 1])) for other in others]
            if not all(map(math.isfinite, (loss, later, *own, *retold))):
                found.append(f"place {place}: the loss is {loss}")
                continue
            wrong = {
                "sees the tokens after it": abs(later - loss) > noise,
                "does not see its own token": all(abs(one - loss) <= noise for one in own),
                "does not look at its target": all(abs(one - loss) <= noise for one in retold),
            }
            found += [f"the loss of place {place} {what}" for what, is_so in wrong.items() if is_so]
        return violations(found, 3 * len(places))


@also("all-masked-is-refused", "model")
def all_masked_is_refused(adapter: Adapter) -> Measurement:
    """Of one: the loss of a batch in which nothing is scored is a number. It must be nan or an error: 0 / 0."""
    if adapter.loss is None:
        raise NotApplicable("the adapter has no `loss`")
    with adapter.awake(), torch.no_grad():
        tokens = adapter.tokens(2, SCORED, seed=26)
        try:
            loss = float(adapter.loss(tokens, torch.full_like(tokens, -100)))
        except Exception:
            return violations([], 1)
        return violations([f"a loss of {loss} over no target"] if math.isfinite(loss) else [], 1)


@check(
    "inputs-are-left-alone",
    "locality",
    "model",
    bug="A forward pass changes what it was handed, or the weights: the next use of the batch is of another batch.",
    remedy="Look for masked_fill_, clamp_, labels[...] = and other in-place operations on arguments.",
    reference="NVIDIA-NeMo/Automodel issue 3917; huggingface/transformers issue 47741, pull 27333",
    looks_at="model",
)
def inputs_are_left_alone(adapter: Adapter) -> Measurement:
    """Tokens, targets and masks that are not bit-equal after logits, loss, padded and documents; and parameters."""
    with adapter.awake(), torch.no_grad():
        tokens, targets = scored(adapter, seed=27)
        n = tokens.shape[1]
        padded, real = laid(adapter, tokens, [n, 9, 12, 3, 1], n, 0)
        documents = (torch.arange(n) // 8).repeat(5, 1)
        uses: dict[str, tuple[Callable[..., Any] | None, tuple[Tensor, ...]]] = {
            "logits": (adapter.logits, (tokens,)),
            "loss": (adapter.loss, (tokens, targets)),
            "padded": (adapter.padded, (padded, real)),
            "documents": (adapter.documents, (tokens, documents)),
        }
        weights = {name: p.detach().clone() for name, p in adapter.module.named_parameters()}
        found, looked = [], 0
        for name, (use, given) in uses.items():
            if use is not None:
                kept, looked = [one.clone() for one in given], looked + len(given)
                use(*given)
                changed = [k for k, (one, was) in enumerate(zip(given, kept, strict=True)) if not torch.equal(one, was)]
                found += [f"{name} changes its argument {k + 1}" for k in changed]
        found += [
            f"{n} is changed by a forward"
            for n, p in adapter.module.named_parameters()
            if not torch.equal(p, weights[n])
        ]
        return violations(found, looked + len(weights))


@also("bf16-tracks-fp32", "model")
def bf16_tracks_fp32(adapter: Adapter) -> Measurement:
    """|logits under bf16 autocast - in fp32| / |in fp32| at a place, the lower decile over the places of two full rows,
    and of a padded batch's real places where there is `padded`.

    Each module with weights rounds its inputs, its weights and its output to 8 bits (2^-9 each, as a random walk
    sqrt(3) 2^-9), and n of them in a row sqrt(n) times that. The decile, since a router that was undecided sends a
    token elsewhere, and whatever reads it follows; what is lost in a norm or a mask is lost
    at every place. NaN at any place is infinite: a mask's lowest number, added twice.
    """
    module = adapter.module
    own = sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules())
    kind = next(module.parameters()).device.type
    with adapter.awake(), torch.no_grad():
        tokens, pairs = adapter.tokens(2, adapter.context, seed=32), []

        def both(ask: Callable[[], Tensor], real: Tensor) -> None:
            exact = ask()[real]
            with torch.autocast(kind, torch.bfloat16):
                pairs.append((exact, ask()[real]))

        both(lambda: adapter.ask(tokens), torch.ones_like(tokens, dtype=torch.bool))
        if adapter.padded is not None:
            short, real = laid(adapter, adapter.tokens(3, LENGTH, seed=33), [LENGTH, 13, 5], LENGTH, 0)
            padded = adapter.padded
            both(lambda: adapter.checked(padded(short, real), short), real)
        off = [((rough - exact).norm(dim=-1) / exact.norm(dim=-1)).double() for exact, rough in pairs]
        worst = max(float(o.quantile(0.1)) if bool(o.isfinite().all()) else math.inf for o in off)
        return Measurement(worst, 2**-9 * (3 * (own + 1)) ** 0.5)


@also("overfit-one-batch", "model")
def overfit_one_batch(adapter: Adapter) -> Measurement:
    """Mean loss of one batch after as many steps of AdamW on it as it takes, 320 at most; a fresh model, no dropout.
    One that has not learned it by then is drawn again, and taught at half the rate.

    Rows a x b x c x d x e, in which x is the same in all four rows and the other tokens are the row's own: at half of
    the places the next token, one of four, is known only to who reads what stood before x. Without the past the
    loss cannot fall below ln(4) / 2; half of that is the bound. With fewer than 21 ids the rows are a x a x a x a x a,
    k of them, and the bound is ln(k) / 4: with two ids, a row of the one and x, and a row of x alone.
    """
    if adapter.fresh is None:
        raise NotApplicable("the adapter has no `fresh`: nothing may be trained")
    no_more_than(adapter, TRAINED)
    rows = _by_heart(adapter)
    bound, loss, step = math.log(len(rows)) / 4, math.inf, 0
    for seed, rate in ((34, 1e-2), (35, 5e-3)):
        loss, step = _learned(adapter.new(seed), rows, rate, bound)
        if loss <= bound:
            break
    return Measurement(loss, bound, f"{step} steps of AdamW at {rate}")


def _by_heart(adapter: Adapter) -> Tensor:
    """(rows, 9): see `overfit_one_batch`."""
    ids = torch.randperm(min(adapter.ids, 10**6), generator=draw.generator(35))
    ids = ids if adapter.padding is None else ids[ids != adapter.padding]
    if len(ids) < 2:
        raise NotApplicable("one id alone: nothing could be learned")
    own, x = (ids[:20].view(4, 5), ids[20]) if len(ids) > 20 else (ids[: min(4, len(ids)), None], ids[-1])
    rows = torch.full((len(own), 9), int(x))
    rows[:, ::2] = own
    return rows


def _learned(fresh: Adapter, rows: Tensor, rate: float, enough: float) -> tuple[float, int]:
    """(mean loss, steps) of a model trained on `rows` until the loss is `enough`, or for 320 steps."""
    fresh.module.eval()
    named = [p for p in fresh.module.parameters() if p.requires_grad]
    width = max((p.shape[-1] for p in named if p.ndim == 2 and fresh.ids in p.shape), default=32)
    optimizer = torch.optim.AdamW(named, lr=min(rate, 30 * rate / width), betas=(0.9, 0.95), weight_decay=0.0)
    loss = math.inf
    for step in range(1, 321):
        mean = loss_of(fresh, rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(named, 1.0)
        optimizer.step()
        if step % 5 == 0:
            loss = float(losses(fresh.ask(rows[:, :-1]), rows[:, 1:]).mean())
            if not loss > enough:
                break
    return loss, step
