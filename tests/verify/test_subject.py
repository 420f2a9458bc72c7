"""The subject keeps the recipe's arrangement, and looks at real tokenizers and shards when there are any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundup.data.shard import ShardSet, write_shard
from groundup.record.rundir import RunDir
from groundup.record.stage import StageRecord
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.run import run_checks
from groundup.verify.subject import Subject


@pytest.mark.parametrize(
    ("heads", "kv_heads", "group"),
    [(4, 4, 1), (12, 12, 1), (8, 4, 2), (9, 3, 3), (32, 8, 4), (16, 1, 4), (6, 1, 4)],
)
def test_micro_model_keeps_the_group(heads: int, kv_heads: int, group: int, subject: Callable[..., Subject]) -> None:
    """A micro model with other sharing than the real one would check another attention."""
    micro = subject(model={"n_heads": heads, "n_kv_heads": kv_heads}).micro
    assert micro.n_heads // micro.n_kv_heads == group
    assert micro.problems() == []


def test_micro_model_keeps_the_variants(subject: Callable[..., Subject]) -> None:
    """A variant that falls back to its default would never be checked."""
    given = {
        "norm": "layernorm",
        "norm_eps": 1e-3,
        "position": "learned",
        "mlp": "gelu",
        "qk_norm": False,
        "tied": False,
        "bias": True,
        "dropout": 0.25,
        "rope_base": 123.0,
    }
    micro = subject(model=given).micro
    assert {name: getattr(micro, name) for name in given} == given


def _with_shards(subject: Callable[..., Subject], folder: Path, damage: bool = False) -> Subject:
    """A subject whose 'real' shards hold the micro corpus; damaged: the documents' ids are reversed."""
    one = subject()
    tokenizer = one.micro_tokenizer
    for name, texts in (("train", MICRO_CORPUS[:120]), ("validation", MICRO_CORPUS[120:])):
        with write_shard(
            folder / f"{name}.bin", vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash
        ) as writer:
            for n, text in enumerate(texts):
                ids = tokenizer.encode(text)
                writer.add([tokenizer.bos, *(ids[::-1] if damage else ids), tokenizer.eos], str(n), len(text.encode()))
    one.real_tokenizer, one.real_shards = tokenizer, ShardSet(folder, tokenizer.hash)
    return one


def test_real_shards_are_looked_at(subject: Callable[..., Subject], tmp_path: Path) -> None:
    """Checks that only ever see the micro corpus would pass over whatever was really prepared."""
    ids = ["document-ends", "shard-belongs-to-tokenizer", "train-validation-disjoint", "real-tokenizer-is-exact"]
    results = {r.id: r for r in run_checks(_with_shards(subject, tmp_path / "good"), only=ids)}
    assert all(r.passed for r in results.values()), [r for r in results.values() if not r.passed]

    damaged = run_checks(_with_shards(subject, tmp_path / "bad", damage=True), only=ids)
    assert "real-tokenizer-is-exact" in [r.id for r in damaged if r.failed]


def test_overlap_of_real_shards_is_seen(subject: Callable[..., Subject], tmp_path: Path) -> None:
    """A train shard that holds a validation document."""
    one = _with_shards(subject, tmp_path)
    assert one.real_shards is not None and one.real_tokenizer is not None
    stolen = np.array(one.real_shards.validation.document(3))
    tokenizer = one.real_tokenizer
    with write_shard(tmp_path / "train.bin", vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash) as writer:
        writer.add(stolen, "stolen", 9)
    one.real_shards = ShardSet(tmp_path, tokenizer.hash)
    result = run_checks(one, only=["train-validation-disjoint"])[0]
    assert result.failed and "real" in result.note


def test_flipped_bit_of_a_real_shard_is_seen(subject: Callable[..., Subject], tmp_path: Path) -> None:
    """Proving on micro shards that damage can be seen does not look at the shards that are trained on."""
    one = _with_shards(subject, tmp_path)
    path = tmp_path / "validation.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run_checks(one, only=["shards-are-whole"])[0]
    assert result.failed and result.note == "real validation"


def test_subject_of_a_run_takes_what_the_run_made(subject: Callable[..., Subject], tmp_path: Path) -> None:
    """A run's verification that quietly falls back to micro data would pass whatever the run holds."""
    run = RunDir(tmp_path)
    recipe = subject().recipe
    assert Subject.of_run(recipe, run).real_tokenizer is None

    made = _with_shards(subject, tmp_path / "data")
    made.micro_tokenizer.save(tmp_path / "tokenizer")
    for stage in ("tokenizer", "data"):
        run.write_stage(StageRecord(stage=stage, key="k"))
    found = Subject.of_run(recipe, run)
    assert found.tokenizer.hash == made.micro_tokenizer.hash
    assert [name for name, _, _ in found.shards()][2:] == ["real train", "real validation"]
