"""What a tuning stage holds out is never trained on."""

from groundup.stages.training import MOST_HELD_OUT, hold_out


def test_copies_land_on_one_side():
    """Bug: once enough are held out, an equal copy of a held one slips into training (36 of 256 did)."""
    items = [f"{n % 9000}" for n in range(20_000)]
    held, rest = hold_out(items, str)
    assert held and not set(held) & set(rest)
    assert len(held) + len(rest) == len(items)
    assert len(held) < 2 * MOST_HELD_OUT


def test_few_items_hold_out_all_copies_of_one():
    """Bug: the fallback holds out one copy and trains on the other."""
    held, rest = hold_out(["b", "a", "a"], str)
    assert set(held) == {"a"} and rest == ["b"]


def test_one_item_alone_does_both():
    """Bug: a smoke test on one row is refused, or trains on nothing."""
    assert hold_out(["a"], str) == (["a"], ["a"])
