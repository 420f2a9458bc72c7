"""Where anybody's model treats one id, or one score, otherwise than the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from groundup.verify import draw
from groundup.verify.adapter import Adapter
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.any_learning import loss_of
from groundup.verify.checks.any_model import LENGTH, has_router, laid, telling
from groundup.verify.modes import Looked
from groundup.verify.rig import largest

AT = 7  # place of the id that is looked at
LOUD = 600.0  # what vectors are multiplied by: scores, a product of two, then reach 3e5


@check(
    "special-ids-are-read",
    "sensitivity",
    "model",
    bug="One id is no token to the model: 0 or the end of text is masked, read as another, or its vector never learns.",
    remedy="Mask by position, not by `tokens == pad_id`; see padding_idx, clamp() and what is done where an id is 0.",
    reference=(
        "NVIDIA-NeMo/Automodel issue 1336; lucidrains/DALLE2-pytorch issue 207; bingreeky/MemGen pull 33; "
        "NVIDIA-NeMo/Megatron-Bridge pull 4660"
    ),
    looks_at="model",
)
def special_ids_are_read(adapter: Adapter) -> Measurement:
    """Of the first id, the last, the tokenizer's special ones and those beside them, at one place of a row: pairs that
    give the same logits there or behind it; ids whose looked-up vector gets no gradient from the logits behind it (they
    are masked); ids of which no batch gives the table's row a gradient.

    The same: within ten times rounding; a gradient is none when it is exactly 0. Left out are the padding's id (`pad`,
    or the tokenizer's, if it is no other special token), and for the last an Embedding's padding_idx: what it
    promises. With a tokenizer to which that id is an ordinary token it counts.
    """
    with adapter.awake():
        base = adapter.tokens(1, LENGTH, seed=50)
        beside = [n + d for n in adapter.special for d in (1, -1) if 0 <= n + d < adapter.ids]
        ids = [n for n in dict.fromkeys([*adapter.special, *beside, int(base[0, 3])]) if n != adapter.padding]
        if len(ids) < 2:
            raise NotApplicable("one id alone")
        rows = base.repeat(len(ids), 1)
        rows[:, AT] = torch.tensor(ids)
        logits = adapter.ask(rows)
        noise, found = 10 * adapter.rounding(telling(adapter, largest(logits))), []
        for a in range(len(ids)):
            for b in range(a):
                off = (logits[a] - logits[b]).abs().amax(-1)
                if float(off[AT]) <= noise or float(off[AT + 1 :].max()) <= noise:
                    found.append(f"ids {ids[b]} and {ids[a]} are read as one")
        found += [f"id {n} is not read by the places behind it" for n in _unread(adapter, rows, ids)]
        found += [f"id {n} gets no gradient in its row" for n in _rowless(adapter, rows, ids)]
        return violations(found, len(ids) * (len(ids) - 1) // 2 + 2 * len(ids))


def _unread(adapter: Adapter, rows: Tensor, ids: list[int]) -> list[int]:
    """Ids at AT whose vector the later logits do not depend on; none where the vectors are not looked up by torch."""
    with Looked(rows) as looked:
        logits = adapter.logits(rows)
    weights = torch.randn(logits[:, AT + 1 :].shape, generator=draw.generator(51)).to(logits)
    if len(looked.found) != 1:
        return []
    (logits[:, AT + 1 :] * weights).sum().backward()
    gradient = looked.found[0].grad
    return [] if gradient is None else [n for r, n in enumerate(ids) if not bool(gradient[r, AT].any())]


def _rowless(adapter: Adapter, rows: Tensor, ids: list[int]) -> list[int]:
    """Ids whose row of the table gets no gradient from a loss over rows that hold it."""
    tokens = rows[:, :-1]
    with Looked(tokens, cut=False) as looked:
        loss_of(adapter, tokens, rows[:, 1:]).backward()
    if len(looked.tables) != 1:
        return []
    table, passed = looked.tables[0]
    adapter_knows = adapter.tokenizer is not None and passed not in (None, -1, adapter.padding)
    if passed is not None and not (adapter_knows and passed not in _named(adapter)):
        ids = [n for n in ids if n != passed]
    if table.grad is None:
        return []
    return [n for n in ids if not bool(table.grad[n].any())]


def _named(adapter: Adapter) -> set[int | None]:
    """The tokenizer's special ids."""
    try:
        one = adapter.face("tokenizer")
        return {*one.specials.values(), one.bos, one.eos, one.pad, one.unk}  # type: ignore[union-attr]
    except Exception:  # its own checks say what is wrong with it
        return set(adapter.special)


@check(
    "mask-holds-against-any-score",
    "locality",
    "model",
    bug="The mask is a number like -1e4, which learned scores undercut: in the end the model reads its own targets.",
    remedy="Mask with -inf, or with the lowest number of the scores' own dtype (torch.finfo(dtype).min).",
    reference="karpathy/minGPT issue 75; huggingface/transformers issues 17121, 15199",
    looks_at="model",
)
def mask_holds_against_any_score(adapter: Adapter) -> Measurement:
    """Largest change of a logit before place t when the tokens from t on change (t = 5, 12, 23), of a real place when
    its padding's filler does, and of documents B and C when A does, once with all vectors times 600 (norms, biases)
    and once with all matrices but the vocabulary's and the tables: scores, products of two, are then of order 1e5.

    A masked weight is exp(-inf) = 0 whatever the scores: rounding of the logits' size. Masks of -1e9 pass: no score
    comes near. Scores that choose one key alone turn rounding into other answers, so models with a router, where
    another batch rounds otherwise, are not looked at, nor those whose numbers overflow.
    """
    if has_router(adapter):
        raise NotApplicable("a router turns rounding into other answers at such scores")
    found = []
    for vectors in (True, False):
        with adapter.awake(), _loud(adapter, vectors):
            tokens = adapter.tokens(3, LENGTH, seed=52)
            before = adapter.ask(tokens)
            if not bool(before.isfinite().all()):
                continue
            found.append((max(_leaks(adapter, tokens, before)), adapter.rounding(largest(before))))
    if not found:
        raise NotApplicable("at scores of 1e5 the logits are not finite")
    worst, bound = max(found, key=lambda one: one[0] / one[1])
    return Measurement(worst, bound, f"{len(found)} of 2 ways to large scores")


@contextmanager
def _loud(adapter: Adapter, vectors: bool) -> Iterator[None]:
    """All vectors, or all matrices that are neither the vocabulary's nor a table, times 600; `awake` puts them back."""
    with torch.no_grad():
        for name, p in adapter.module.named_parameters():
            owner = adapter.module.get_submodule(name.rpartition(".")[0])
            table = isinstance(owner, nn.Embedding) or adapter.ids in p.shape
            if p.is_floating_point() and (p.ndim == 1 if vectors else p.ndim >= 2 and not table):
                p.mul_(LOUD)
    yield


def _leaks(adapter: Adapter, tokens: Tensor, before: Tensor) -> Iterator[float]:
    """How far logits move that what changed must not reach."""
    other = adapter.other(tokens)
    for cut in (5, 12, 23):
        after = adapter.ask(torch.where(torch.arange(LENGTH) < cut, tokens, other))
        yield largest(after[:, :cut] - before[:, :cut])
    with torch.no_grad():
        if adapter.padded is not None:
            told = []
            for filler in (0, adapter.ids - 1):
                filled, real = laid(adapter, tokens, [LENGTH, 17, 6], LENGTH, filler)
                told.append(adapter.checked(adapter.padded(filled, real), filled)[real])
            yield largest(told[1] - told[0])
        if adapter.documents is not None:
            documents = torch.tensor([0] * 8 + [1] * 9 + [2] * 7).expand(3, -1)
            changed = torch.where(documents == 0, other, tokens)
            both = [adapter.checked(adapter.documents(rows, documents), rows)[:, 8:] for rows in (tokens, changed)]
            yield largest(both[1] - both[0])
