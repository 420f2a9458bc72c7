"""Anybody's model, from outside: what every language model must hold to, whatever it is made of.

Each is handed an `Adapter`. Weights are redrawn for the while (`Adapter.awake`), since first weights hide errors;
bounds are rounding's (`Adapter.rounding`), since how somebody else's kernels cut a sum is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from groundup.verify.adapter import Adapter
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.modes import routes
from groundup.verify.rig import largest

LENGTH = 24  # tokens in a row, at most what the smallest context holds
LONG = 128  # tokens in the longest row, of a model whose context is longer
EVERY = 3e9  # parameters times tokens up to which each place of a row has a forward pass of its own
SCORED = 20  # tokens in a row whose loss is asked for: a model that shifts labels itself is handed one more
COPIED = 2e8  # parameters of which a second copy is made
TRAINED = 2e7  # parameters that are trained for a few steps


def reach(adapter: Adapter) -> int:
    """Tokens in the longest row that is asked for, decoding apart: the context, `LONG` at most."""
    return min(adapter.context, LONG)


def telling(adapter: Adapter, scale: float) -> float:
    """The same scale. NotApplicable where weights stay in half precision: what is small is lost in their rounding."""
    if adapter.rounding(1.0) > 0.05:
        raise NotApplicable("the module does not run in fp32, and rounding to 8 bits hides what is to be seen here")
    return scale


def has_router(adapter: Adapter) -> bool:
    """Whether a forward pass chooses among numbers of its own."""
    tokens = adapter.tokens(1, LENGTH)
    return routes(lambda: adapter.ask(tokens))


def settled(run: Callable[[Adapter, int], Measurement]) -> Callable[[Adapter], Measurement]:
    """A way of looking, once more with other weights and tokens where it has failed on a model that has a router.

    In another batch an expert's matmul is cut otherwise, and a router that was undecided to the last bit sends a token
    elsewhere: of 10,000 choices among 128 experts about one in a hundred such rows has one. A bug fails both times.
    """

    @wraps(run)
    def way(adapter: Adapter) -> Measurement:
        found = run(adapter, 0)
        if found.passed or not has_router(adapter):
            return found
        again = run(adapter, 1000)
        return again if again.passed else found

    del way.__wrapped__  # type: ignore[attr-defined]  # its signature is a check's
    return way


def _places(adapter: Adapter, n: int) -> list[int]:
    """Places 1 to n - 1 of a row: all, if the model is small; else some, the last among them."""
    if sum(p.numel() for p in adapter.module.parameters()) * n * n <= EVERY:
        return list(range(1, n))
    return sorted({1, 7, 12, 23, *(n * k // 8 - 1 for k in range(4, 9))} & set(range(1, n)))


@also("causality", "model")
@settled
def causality(adapter: Adapter, more: int) -> Measurement:
    """Largest change of a logit before place t when only the tokens from t on change: for each t of a row as long as
    the context (128 at most), in a model of many parameters for t = 1, 7, 12, 23 and some behind.

    Rounding alone (`Adapter.rounding`): a masked score has weight 0, but another batch may be summed in another order.
    Places whose own token changes nothing are counted as infinite: a model deaf to its input would pass.
    """
    n = reach(adapter)
    with adapter.awake(more):
        tokens = adapter.tokens(3, n, seed=3 + more)
        before, other, worst, slots = adapter.ask(tokens), adapter.other(tokens), 0.0, torch.arange(n)
        for some in torch.tensor(_places(adapter, n)).split(32):
            of, own = torch.arange(len(some)) % 3, torch.arange(len(some))
            early = slots < some[:, None]
            after = adapter.ask(torch.where(early, tokens[of], other[of]))
            changed = (after - before[of]).abs().amax(-1)
            worst = max(worst, largest(changed[early]))
            deaf = (changed[own, some] == 0).nonzero()[:, 0].tolist()
            if deaf:
                return Measurement(float("inf"), 0.0, f"token {int(some[deaf[0]])} changes nothing")
        return Measurement(worst, adapter.rounding(largest(before)))


@check(
    "rows-do-not-mix",
    "locality",
    "model",
    bug="What a row says depends on the other rows of its batch: a softmax, a norm or a reshape over the wrong axis.",
    remedy="Look for dim=0, batch norms, and view() where transpose() was meant.",
    reference="bigscience-workshop/Megatron-DeepSpeed issue 335; kekzl/imp issue 1314",
    looks_at="model",
)
@settled
def rows_do_not_mix(adapter: Adapter, more: int) -> Measurement:
    """Largest change of a row's logits when it is read alone, behind other rows, in another order, and last of twelve
    of which eleven are one row (experts with room for their share of tokens are then full). Rows of 24 tokens, and of
    the context's length (128 at most).

    The same numbers summed in another order: rounding (`Adapter.rounding`).
    """
    with adapter.awake(more):
        worst, bound = 0.0, 0.0
        for n in {LENGTH, reach(adapter)}:
            tokens = adapter.tokens(4, n, seed=5 + more)
            together = adapter.ask(tokens)
            worst = max(worst, *(largest(adapter.ask(tokens[r : r + 1])[0] - together[r]) for r in range(4)))
            order = torch.tensor([2, 0, 3, 1])
            worst = max(worst, largest(adapter.ask(tokens[order]) - together[order]))
            crowd = torch.tensor([0] * 11 + [1])
            worst = max(worst, largest(adapter.ask(tokens[crowd])[-1] - together[1]))
            bound = max(bound, adapter.rounding(largest(together)))
        return Measurement(worst, bound)


def packings(adapter: Adapter) -> list[tuple[int, ...]]:
    """Lengths of the documents of a row: three short ones; in a longer context a long one behind, and many."""
    n = reach(adapter)
    if n == LENGTH:
        return [(8, 9, 7)]
    some, rest = divmod(n - 5, 11)
    return [(8, 9, 7), (5, n - 5), (5, *[11] * some, *([rest] if rest else []))]


@also("documents-isolated", "model")
@settled
def documents_isolated(adapter: Adapter, more: int) -> Measurement:
    """Largest change of a logit outside a document when only that does, the first and the last but one of a row; of
    three documents, of two and of many, in rows of 24 tokens and of the context (128 at most): rounding."""
    if adapter.documents is None:
        raise NotApplicable("the adapter has no `documents`: this model reads a row as one text")
    worst, bound = 0.0, 0.0
    with adapter.awake(more), torch.no_grad():
        for lengths in packings(adapter):
            tokens = adapter.tokens(2, sum(lengths), seed=6 + more)
            documents = torch.cat([torch.full((n,), d) for d, n in enumerate(lengths)]).expand(2, -1)
            before = adapter.checked(adapter.documents(tokens, documents), tokens)
            for one in {0, len(lengths) - 2}:
                its = documents == one
                changed = torch.where(its, adapter.other(tokens), tokens)
                after = adapter.checked(adapter.documents(changed, documents), tokens)
                if torch.equal(before[its], after[its]):
                    return violations([f"document {one + 1} does not see itself"], 1)
                worst = max(worst, largest((after - before)[~its]))
            bound = max(bound, adapter.rounding(largest(before)))
        return Measurement(worst, bound)


@also("packed-equals-alone", "model")
@settled
def packed_equals_alone(adapter: Adapter, more: int) -> Measurement:
    """Largest difference between the logits of each document when packed in a row, and alone; three documents, two and
    many, in rows of 24 tokens and of the context (128 at most): rounding."""
    if adapter.documents is None:
        raise NotApplicable("the adapter has no `documents`: this model reads a row as one text")
    worst, bound = 0.0, 0.0
    with adapter.awake(more), torch.no_grad():
        for lengths in packings(adapter):
            tokens, begin = adapter.tokens(2, sum(lengths), seed=7 + more), 0
            documents = torch.cat([torch.full((n,), d) for d, n in enumerate(lengths)]).expand(2, -1)
            packed = adapter.checked(adapter.documents(tokens, documents), tokens)
            for n in lengths:
                alone = adapter.ask(tokens[:, begin : begin + n])
                worst, begin = max(worst, largest(packed[:, begin : begin + n] - alone)), begin + n
            bound = max(bound, adapter.rounding(largest(packed)))
        return Measurement(worst, bound)


@check(
    "prefix-reads-alike",
    "invariance",
    "model",
    bug="What the model says of a text's beginning depends on how long the text is: it is never served as trained.",
    remedy="Look for a norm, a mean or a scale over the tokens of a row, and for squeeze() where a row has one token.",
    reference="huggingface/transformers issue 48748; karpathy/nanochat issue 844",
    looks_at="model",
)
@settled
def prefix_reads_alike(adapter: Adapter, more: int) -> Measurement:
    """Largest difference between the logits of a row's first n tokens, read alone, and within a row of the context's
    length (128 at most); n = 1, 2, 7, 16, 23, and every eighth of the longer row, less one.

    What causality cannot see: no later token needs to be looked at, that it is there is enough. Rounding.
    """
    full = reach(adapter)
    with adapter.awake(more):
        tokens = adapter.tokens(2, full, seed=8 + more)
        whole = adapter.ask(tokens)
        cuts = {1, 2, 7, 16, 23, *(full * k // 8 - 1 for k in range(4, 9))}
        worst = max(largest(adapter.ask(tokens[:, :n]) - whole[:, :n]) for n in sorted(cuts))
        return Measurement(worst, adapter.rounding(largest(whole)))


@also("positions-matter", "model")
def positions_matter(adapter: Adapter) -> Measurement:
    """Smallest change of the logits two places after the first of two neighbours that change places, over four pairs,
    and eight in a context that is longer; of 8 rows the largest counts. It must be ten times what rounding can do.

    A model without an encoding passes with two layers or more, where the order shows in what a token has seen: only a
    bag of words fails. `forward-is-its-definition` sees a missing rotation.
    """
    with adapter.awake():
        n = reach(adapter) // 2 * 2
        tokens = adapter.tokens(8, n, seed=9)
        tokens[:, 1::2] = torch.where(
            tokens[:, 1::2] == tokens[:, ::2], (tokens[:, ::2] + 1) % adapter.ids, tokens[:, 1::2]
        )
        before, least = adapter.ask(tokens), math.inf
        telling(adapter, 1.0)
        for at in sorted({0, 4, 10, 20, *(n * k // 16 * 2 - 4 for k in range(5, 9))}):
            order = torch.arange(n)
            order[[at, at + 1]] = order[[at + 1, at]]
            least = min(least, largest((adapter.ask(tokens[:, order]) - before)[:, at + 2]))
        return Measurement(least, 10 * adapter.rounding(largest(before)), direction=">=")


@check(
    "past-is-used",
    "sensitivity",
    "model",
    bug="A token that stands within reach is never read: a key masked away, a token id taken for padding, a lost head.",
    remedy="Change one token, look at the later logits; see the mask, and what is done where a token equals pad_id.",
    reference="huggingface/trl issue 884; huggingface/trl pull 4970; bingreeky/MemGen pull 33",
    looks_at="model",
)
def past_is_used(adapter: Adapter) -> Measurement:
    """Pairs of a token and a later place that does not feel its change, though it feels that of an earlier token; and
    tokens that the very next place does not feel.

    Felt: of two rows the larger change is above 100 times rounding; not felt: within rounding. What lies between,
    as at the end of a window's reach through many layers, is not judged. In a row of the context's length (128 at most)
    not felt is what changes no bit, since far tokens are read softly. A model that skips places on purpose in every
    layer (dilated attention) fails by this definition.
    """
    with adapter.awake():
        telling(adapter, 1.0)
        places, felt = torch.arange(LENGTH - 1), torch.zeros(LENGTH - 1, LENGTH)  # [changed, place]
        for row in adapter.tokens(2, LENGTH, seed=10):
            changed = row.repeat(LENGTH - 1, 1)
            changed[places, places] = (row[:-1] + 1) % adapter.ids
            before = adapter.ask(row[None])
            felt = torch.maximum(felt, (adapter.ask(changed) - before).abs().amax(-1))
        noise, found = adapter.rounding(largest(before)), []
        for place in range(1, LENGTH):
            deaf = (felt[:place, place] <= noise).nonzero()[:, 0].tolist()
            first = min((felt[:place, place] > 100 * noise).nonzero()[:, 0].tolist(), default=place)
            found += [f"place {place} does not read token {j}, but token {first}" for j in deaf if j > first]
            if place - 1 in deaf:
                found.append(f"place {place} does not read the token before it")
        looked = LENGTH * (LENGTH - 1) // 2
        if reach(adapter) > LENGTH:
            far, more = _unread_far(adapter, noise)
            found, looked = found + far, looked + more
        return violations(found, looked)


def _unread_far(adapter: Adapter, noise: float) -> tuple[list[str], int]:
    """(what is wrong, pairs looked at) in a row of the longest length, all weights as they are."""
    n = reach(adapter)
    places = torch.tensor([p - 1 for p in _places(adapter, n)])
    row, felt = adapter.tokens(1, n, seed=42)[0], []
    for some in places.split(32):
        changed = row.repeat(len(some) + 1, 1)
        own = torch.arange(len(some))
        changed[own, some] = (changed[own, some] + 1) % adapter.ids
        logits = adapter.ask(changed)  # the last is the row itself, of the same batch: what is not read changes no bit
        felt.append((logits[:-1] - logits[-1]).abs().amax(-1))
    moved, found = torch.cat(felt), []
    for place in range(LENGTH, n):
        before = places < place
        deaf = places[before & (moved[:, place] == 0)].tolist()
        first = min(places[before & (moved[:, place] > 100 * noise)].tolist(), default=place)
        found += [f"place {place} does not read token {j}, but token {first}" for j in deaf if j > first]
        if place - 1 in deaf:
            found.append(f"place {place} does not read the token before it")
    return found, int((places[:, None] < torch.arange(LENGTH, n)).sum())


@check(
    "padding-changes-nothing",
    "invariance",
    "model",
    bug="A short row of a padded batch reads otherwise than alone: padding is attended to, or shifts the positions.",
    remedy="Hand the mask on to every layer, and count positions from the first real token (cumsum of the mask - 1).",
    reference=(
        "huggingface/transformers issue 35352; TransformerLensOrg/TransformerLens issue 1609; "
        "ndif-team/nnsight pull 673"
    ),
    looks_at="model",
)
@settled
def padding_changes_nothing(adapter: Adapter, more: int) -> Measurement:
    """Largest difference between a row's logits alone, and padded into a batch: rows of 24, 17, 9 and 1 tokens, and in
    a longer context rows of all of it (128 at most), of 7 less, 9 and 1; with two kinds of filler. A masked weight is
    0: rounding."""
    if adapter.padded is None:
        raise NotApplicable("the adapter has no `padded`: rows of one length alone")
    n = reach(adapter)
    with adapter.awake(more), torch.no_grad():
        rows, worst, scale = adapter.tokens(4, n, seed=11 + more), 0.0, 0.0
        wide = [([LENGTH, 17, 9, 1], 0), ([LENGTH, 17, 9, 1], adapter.ids - 1)]
        wide += [([n, n - 7, 9, 1], adapter.ids - 1)] if n > LENGTH else []
        for lengths, filler in wide:
            tokens, real = laid(adapter, rows, lengths, max(lengths), filler)
            given = adapter.checked(adapter.padded(tokens, real), tokens)
            for r, n in enumerate(lengths):
                alone = adapter.ask(rows[r : r + 1, :n])[0]
                worst, scale = max(worst, largest(given[r][real[r]] - alone)), max(scale, largest(alone))
        return Measurement(worst, adapter.rounding(scale), f"padded on the {adapter.pads}")


def laid(adapter: Adapter, rows: Tensor, lengths: list[int], width: int, filler: int) -> tuple[Tensor, Tensor]:
    """(tokens, real), (B, width) both: the first n tokens of each row, padded on the adapter's side."""
    slots, count = torch.arange(width).expand(len(rows), -1), torch.tensor(lengths)[:, None]
    at = slots - (width - count) if adapter.pads == "left" else slots
    real = (at >= 0) & (at < count)
    return torch.where(real, rows.gather(1, at.clamp(0, rows.shape[1] - 1)), filler), real


@also("cached-decode-equals-forward", "model")
@settled
def cached_decode_equals_forward(adapter: Adapter, more: int) -> Measurement:
    """Largest difference between the logits of decoding with a cache and of one forward pass.

    Twice: rows of 3, 9 and 14 tokens, padded, and one row of 5; both are decoded until the longest row holds
    `context` tokens, which is past a small window and past the first wrap of a cache that has one. Rounding:
    the same sums over keys in another order.
    """
    if adapter.decoder is None:
        raise NotApplicable("the adapter has no `decoder`: no cache to look at")
    with adapter.awake(more), torch.no_grad():
        rows = adapter.tokens(4, adapter.context, seed=12 + more)
        full, worst, where = adapter.ask(rows), 0.0, "nowhere"
        for group, lengths in ((slice(0, 3), [3, 9, 14]), (slice(3, 4), [5])):
            for name, n, off in _decoded(adapter, rows[group], full[group], lengths):
                if off > worst:
                    worst, where = off, f"{name} token {n}"
        return Measurement(worst, adapter.rounding(largest(full)), f"most at {where}")


def _decoded(adapter: Adapter, rows: Tensor, full: Tensor, lengths: list[int]) -> Iterator[tuple[str, int, float]]:
    """(prefill or step, place, largest difference to the full forward) of a decoding."""
    assert adapter.decoder is not None
    tokens, real = laid(adapter, rows, lengths, max(lengths), 0)
    first, step = adapter.decoder(tokens, real)
    first = adapter.checked(first, tokens)
    for r, n in enumerate(lengths):
        yield "prefill of", n, largest(first[r][real[r]] - full[r, :n])
    every, at = torch.arange(len(lengths)), torch.tensor(lengths)
    while int(at.max()) < rows.shape[1]:
        logits = step(rows[every, at]).float().to(full.device)
        yield "step to", int(at.max()) + 1, largest(logits - full[every, at])
        at = at + 1


@also("causality-with-cache", "model")
@settled
def causality_with_cache(adapter: Adapter, more: int) -> Measurement:
    """Largest change of what a short row is told, prefilled and in 8 steps, when only these are others: the filler in
    its padding, the tokens of the other row, what an earlier and longer request left behind. Rounding."""
    if adapter.decoder is None:
        raise NotApplicable("the adapter has no `decoder`: no cache to look at")
    with adapter.awake(more), torch.no_grad():
        rows = adapter.tokens(2, LENGTH, seed=13 + more)
        other = torch.stack([rows[0], adapter.other(rows)[1]])
        ours = _told(adapter, rows, 0)
        _told(adapter, adapter.other(rows), adapter.ids - 1, first=16)
        worst = max(largest(_told(adapter, one, filler) - ours) for one, filler in ((rows, 0), (rows, 1), (other, 0)))
        return Measurement(worst, adapter.rounding(largest(ours)))


def _told(adapter: Adapter, rows: Tensor, filler: int, first: int = 6) -> Tensor:
    """The logits of the first of two rows, which begins with `first` tokens where the other has 14; 8 steps."""
    assert adapter.decoder is not None
    lengths = [first, 14]
    tokens, real = laid(adapter, rows, lengths, max(lengths), filler)
    logits, step = adapter.decoder(tokens, real)
    told = [adapter.checked(logits, tokens)[0][real[0]]]
    for more in range(8):
        told.append(step(rows[torch.arange(2), torch.tensor(lengths) + more])[:1].float())
    return torch.cat(told)


def no_more_than(adapter: Adapter, most: float) -> None:
    held = sum(p.numel() for p in adapter.module.parameters())
    if held > most:
        raise NotApplicable(f"{held:,} parameters, more than {most:,.0f}: give a smaller config of the same model")


@also("forward-is-its-definition", "model")
def forward_is_its_definition(adapter: Adapter) -> Measurement:
    """Largest difference between the logits and an independent fp64 computation of the architecture, written from the
    papers (`verify/reference.py`): the module is saved, imported into groundup, and only weights and config are
    shared. For transformers' models of the families that groundup imports. Rounding."""
    if not hasattr(adapter.module, "save_pretrained"):
        raise NotApplicable("no second definition of this model is known")
    no_more_than(adapter, COPIED)
    from groundup.errors import UserError
    from groundup.verify.hf import definition

    with adapter.awake():
        tokens = adapter.tokens(2, reach(adapter), seed=36)
        try:
            expected = definition(adapter.module, tokens)
        except UserError as error:
            raise NotApplicable(f"groundup has no definition of this architecture: {error}") from error
        logits = adapter.ask(tokens)
        return Measurement(largest(logits.cpu() - expected), adapter.rounding(largest(expected)))


@also("ids-in-range", "model")
def ids_in_range(adapter: Adapter) -> Measurement:
    """Ids of the adapter's tokenizer (of its vocabulary, its added and special tokens, a few texts) at or above the
    width of the logits, or below 0: what the model cannot say, or looks up past its embedding's end."""
    if adapter.tokenizer is None:
        raise NotApplicable("the adapter has no `tokenizer`")
    ids = _ids(adapter.tokenizer)
    wide = int(adapter.ask(torch.zeros(1, 4, dtype=torch.int64)).shape[-1])
    found = [f"{name!r} is {n}, the logits are {wide} wide" for name, n in ids.items() if not 0 <= n < wide]
    return violations(found, len(ids))


def _ids(tokenizer: Any) -> dict[str, int]:
    """Every (token, id) that can be found out about a tokenizer of transformers, tokenizers, tiktoken or groundup."""
    found: dict[str, int] = {}
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if callable(vocabulary):
        found |= vocabulary()
    for name in ("n_vocab", "vocab_size"):
        size = getattr(tokenizer, name, None)
        if isinstance(size, int) and not found:
            found[f"the last of {name}"] = size - 1
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "eot_token"):
        special = getattr(tokenizer, name, None)
        if isinstance(special, int):
            found[name] = special
    specials = getattr(tokenizer, "special_ids", None)  # groundup's
    found |= specials if isinstance(specials, dict) else {}
    for text in ("The quick brown fox, 1234.", "naïve 東京 🙂"):
        given = tokenizer.encode(text)
        ids = getattr(given, "ids", given)
        found |= {f"{text!r}[{k}]": int(n) for k, n in enumerate(ids)}
    return found
