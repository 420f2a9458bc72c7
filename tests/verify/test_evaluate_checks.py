"""What the checks of evaluation, serving and near copies stand on; test_faults says that they catch their bugs."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundup.data.shard import ShardSet, write_shard
from groundup.evaluate import bpb
from groundup.infer.engine import Engine
from groundup.serve import batcher
from groundup.verify.checks import evaluate, near
from groundup.verify.checks.data import SCAN
from groundup.verify.run import Result, run_checks
from groundup.verify.subject import Subject

Made = Callable[..., Subject]


def result(subject: Subject, name: str) -> Result:
    return run_checks(subject, only=[name])[0]


def test_without_the_harness_its_checks_are_skipped(subject: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: an extra that is not installed makes a sound recipe fail, or its checks pass unseen."""
    monkeypatch.delitem(sys.modules, "groundup.evaluate.adapter", raising=False)
    monkeypatch.delitem(sys.modules, "groundup.evaluate.tasks", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    found = result(subject(), "loglikelihood-is-sum-of-parts")
    assert found.skipped is not None and "lm-eval" in found.skipped
    assert result(subject(), "evaluation-leaves-no-trace").passed  # bits per byte needs none of it


def test_the_binomial_bound_is_exact() -> None:
    """Bug: a bound from the normal approximation, which at 1e-7 is wrong by a third."""
    m = evaluate.edge(120, 0.25, 2e-7)

    def outside(m: int) -> float:
        return sum(math.comb(120, k) * 0.25**k * 0.75 ** (120 - k) for k in range(121) if abs(k - 30) > m)

    assert outside(m) <= 2e-7 < outside(m - 1)


def test_checks_put_back_what_they_listen_to(subject: Made) -> None:
    """Bug: a check that leaves its own function in place of the one under test."""
    before = (bpb.score_pairs, batcher.Decoder, Engine.stream)
    names = ["held-out-text-is-what-is-scored", "cancelled-request-frees-its-row", "continuation-is-encoded-in-place"]
    assert all(found.passed for found in run_checks(subject(), only=names))
    assert (bpb.score_pairs, batcher.Decoder, Engine.stream) == before


def test_serving_is_checked_inside_an_event_loop(subject: Made) -> None:
    """Bug: in a notebook, whose cells run inside a loop, asyncio.run refuses and the check fails for nothing."""

    async def cell() -> bool:
        return result(subject(), "request-is-obeyed").passed

    assert asyncio.run(cell())


# ---- near copies ----


@pytest.mark.parametrize("n", [1, 2, 13, 52])
def test_equal_runs_have_equal_hashes_and_others_have_not(n: int) -> None:
    """Bug: the doubling drops or doubles a token, so that runs hash by a part of themselves."""
    tokens = np.random.default_rng(0).integers(3, size=4000)
    hashes = near.gram_hashes(tokens, n)
    assert len(hashes) == len(tokens) - n + 1
    runs = {tuple(tokens[i : i + n].tolist()): hashes[i] for i in range(len(hashes))}
    assert len(set(runs.values())) == len(runs)
    assert all(runs[tuple(tokens[i : i + n].tolist())] == hashes[i] for i in range(len(hashes)))
    assert len(near.gram_hashes(tokens[: n - 1], n)) == 0


def shards(folder: Path, train: list[list[int]], held: list[list[int]]) -> ShardSet:
    for name, documents in (("train", train), ("validation", held)):
        with write_shard(folder / f"{name}.bin", vocab_size=500, tokenizer_hash="x") as writer:
            for n, ids in enumerate(documents):
                writer.add(ids, str(n), 4 * len(ids))
    return ShardSet(folder)


def test_one_source_is_asked_for(tmp_path: Path) -> None:
    """Bug: a document whose every phrase stands somewhere is taken for a copy; one whose source stands in train two
    hundred times is not; a part of train that begins in the middle is read with the wrong documents."""
    draw = np.random.default_rng(1)
    words = [draw.integers(2, 500, size=80).tolist() for _ in range(60)]
    quilt = [i for n in range(8) for i in words[n][10:40]]
    often = draw.integers(2, 500, size=100).tolist()
    both = shards(
        tmp_path, [*words, *([often] * 200)], [quilt, [*often[:-1], 7], draw.integers(2, 500, size=90).tolist()]
    )
    assert near.near_copies(both).copies == [(1, 60)]
    parts = list(near.parts_of(both.train, SCAN))
    assert len(parts) == 1
    near_parts, near._PART = near._PART, 300
    try:
        assert len(list(near.parts_of(both.train, SCAN))) > 20
        assert near.near_copies(both).copies == [(1, 60)]
    finally:
        near._PART = near_parts


def test_reading_stops_in_time_and_says_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a corpus of a hundred million tokens holds up every run for minutes."""
    draw = np.random.default_rng(2)
    documents = [draw.integers(2, 500, size=100).tolist() for _ in range(50)]
    both = shards(tmp_path, documents, documents[:2])
    monkeypatch.setattr(near, "_PART", 500)
    monkeypatch.setattr(near, "SECONDS", 0.0)
    found = near.near_copies(both)
    assert 0 < found.read < 1000 and [pair for pair in found.copies if pair[0] != pair[1]] == []


def test_builtin_text_is_not_searched(subject: Made, tmp_path: Path) -> None:
    """Bug: town's sentences, which are alike by design, fail a sound run."""
    given = subject()
    copies = near.planted(given, tmp_path, ["one word changed"] * 5)
    found = result(
        Subject(given.recipe, tokenizer=given.micro_tokenizer, shards=copies), "validation-holds-no-near-copies"
    )
    assert found.passed and found.note.startswith("the micro corpus")


def test_short_questions_are_no_evidence(subject: Made, tmp_path: Path) -> None:
    """Bug: "What is 2 + 2?" stands in every corpus, and is called contamination."""
    given = subject(evaluate={"tasks": ["town-arithmetic"]})
    both = near.planted(given, tmp_path, [])
    found = result(Subject(given.recipe, tokenizer=given.micro_tokenizer, shards=both), "benchmark-text-not-in-train")
    assert found.skipped is not None and "13 words" in found.skipped
