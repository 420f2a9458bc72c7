"""Packed conversations: nothing leaks, nothing is cut, nothing is scored that should not be."""

import pytest
import torch

from groundup.data import town
from groundup.errors import UserError
from groundup.model.batch import IGNORE
from groundup.tokenizer.chat import Rendered, render_many
from groundup.train.objective import language_modelling
from groundup.tune.dpo import rows_to_batch
from groundup.tune.pack import PackedChats, pack


@pytest.fixture(scope="module")
def chats(tokenizer):
    return render_many(tokenizer, [c["messages"] for c in town.conversations(0, 60)])


def packed(chats, context=128, batch_size=4, micro=2, seed=0):
    return PackedChats(chats, context, batch_size, micro, 1, seed)


def test_every_item_is_packed_once_and_fits():
    """Bug: an item lost or doubled by the packer, or a row that overflows."""
    lengths = [5, 9, 1, 10, 3, 3, 7, 2, 10, 4]
    rows = pack(lengths, 10)
    assert sorted(i for row in rows for i in row) == list(range(10))
    assert all(sum(lengths[i] for i in row) <= 10 for row in rows)
    assert len(rows) == 6  # 54 places in rows of 10: no packing does better


def test_packed_loss_is_the_sum_of_separate_losses(model, chats):
    """Bug: attention across conversations, or the first token of a packed conversation predicted from another."""
    source = packed(chats)
    together = sum(float(language_modelling(model, source.batch([row])).total) for row in source.rows)
    alone = sum(float(language_modelling(model, rows_to_batch([c], 1)).total) for c in source.chats)
    assert together == pytest.approx(alone, rel=1e-5)


def test_scored_are_exactly_the_answers(tokenizer, chats):
    """Bug: the prompt is scored, the terminator is not, or targets are shifted once too often."""
    source = packed(chats)
    for row in source.rows[:10]:
        batch = source.batch([row])
        wanted = [
            i for index in row for i, m in zip(source.chats[index].ids, source.chats[index].mask, strict=True) if m
        ]
        assert batch.targets[batch.targets != IGNORE].tolist() == wanted
        assert tokenizer.end in wanted


def test_each_row_once_an_epoch_and_seek_is_free(chats):
    """Bug: an order that depends on what was asked before, or a row drawn twice."""
    a, b = packed(chats, batch_size=3), packed(chats, batch_size=3)
    later = a.micro_batches(7)  # without having asked for 0..6
    for step in range(8):
        last = b.micro_batches(step)
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(later, last, strict=True))
    drawn = [tuple(a._row(k)) for k in range(len(a.rows))]
    assert len(set(drawn)) == len(a.rows)


def test_too_long_conversations_are_left_out_and_counted(chats):
    """Bug: truncation takes the end-of-turn away, and the model never learns to stop."""
    source = packed(chats, context=48)
    assert source.too_long == sum(len(c.ids) - 1 > 48 for c in chats) > 0
    assert all(c.ids[-1] == 5 for c in source.chats)


def test_nothing_that_fits_is_an_error():
    """Bug: training on an empty set."""
    with pytest.raises(UserError, match="longer than the context"):
        packed([Rendered(list(range(50)), [True] * 50)], context=8)
