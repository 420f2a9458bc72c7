"""Memory that stays with the process while it trains."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from groundup.train import allocator
from groundup.train.allocator import OFF, kept_memory


@pytest.fixture
def nobody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OFF, "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)


def faults() -> int:
    """Pages that the kernel had to give while 48 MB were taken, written and freed three times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_freed_memory_is_used_again(nobody_chose: None) -> None:
    """Bug: the thresholds are set in a way that glibc refuses, and every step pays for its pages again."""
    with kept_memory("cpu") as kept:
        if not kept:
            pytest.skip("another C library")
        for _ in range(5):  # an aligned block does not fit where its equal lay: some are taken before they go round
            faults()
        again = faults()
    after = faults()
    assert again < 1000 < after  # three times 12,000 pages; given back at the end


def test_the_allocator_is_left_alone_where_it_should_be(nobody_chose: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a user's own settings are overwritten, or a switch that nothing reads."""
    with kept_memory("cuda") as kept:
        assert not kept
    for name, value in ((OFF, "0"), ("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with kept_memory("cpu") as kept:
                assert not kept


def test_a_library_that_refuses_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: glibc before 2.35 refuses thresholds over 32 MB, and after the other call keeps its first one, 128 KB, for
    good: each larger tensor is mapped and given back, slower than if nothing had been set."""
    calls: list[tuple[int, int]] = []

    class Old:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            taken = what != allocator._MMAP_THRESHOLD or value <= 32 << 20
            calls.extend([(what, value)] * taken)
            return int(taken)

        @staticmethod
        def malloc_trim(_: int) -> int:
            return 1

    monkeypatch.setattr(allocator, "_glibc", Old)
    with kept_memory("cpu") as kept:
        assert not kept
        assert [what for what, _ in calls] == [allocator._MMAP_THRESHOLD, allocator._TRIM_THRESHOLD]
