"""Does padding count where it must not?"""

from __future__ import annotations

from collections.abc import Iterator

from groundup.data import load
from groundup.model.batch import Batch
from groundup.tune import dpo
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.chat import packed
from groundup.verify.checks.experts import layers_of
from groundup.verify.subject import Subject


@check(
    "padding-is-not-balanced",
    "invariance",
    "train",
    bug="Padding counts in the experts' balance: it is one token over and over, and drives real text off its experts.",
    remedy="Batches mark padding by a negative document; observe in model/moe.py leaves it out.",
    reference="huggingface/transformers issue 31464, 28255",
)
def padding_is_not_balanced(subject: Subject) -> Measurement:
    """Experts' layers whose load over a forward pass is not top_k times the tokens that are real; in the last window of
    a shard, packed conversations, and rows of pairs. Whole numbers: equality. What is real is counted from what went
    into the batch, not from its marks."""
    moe = subject.micro.moe
    if moe is None:
        raise NotApplicable("no layer has experts")
    model, found, looked = subject.chat_model(), [], 0
    for name, batch, real in _batches(subject):
        if batch.tokens.numel() <= real:
            found.append(f"{name} has no padding to look at")
        for _, experts in layers_of(model):
            experts.load.zero_()
        subject.objective(model, batch)
        for layer, experts in layers_of(model):
            looked += 1
            if int(experts.load.sum()) != moe.top_k * real:
                found.append(f"{name}, layer {layer}: {int(experts.load.sum()) / moe.top_k:g} of {real} real tokens")
        model.router_loss()
    return violations(found, looked)


def _batches(subject: Subject) -> Iterator[tuple[str, Batch, int]]:
    """(what, a batch with padding, tokens in it that are real), as the loader, SFT and DPO make them."""
    shard, context = subject.micro_shards.train, 32
    *_, last = load.validation_batches(shard, context, 1)
    left = len(shard.tokens) % context
    if left > 1:  # else the last window ends with the shard
        yield "the last window", last, left
    source = packed(subject)
    rows = source.rows
    yield "packed chats", source.batch(rows), sum(len(source.chats[i].ids) - 1 for row in rows for i in row)
    chats = source.chats
    yield "rows of pairs", dpo.rows_to_batch(chats, subject.tokenizer.eos), sum(len(c.ids) - 1 for c in chats)
