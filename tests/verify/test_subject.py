"""The subject keeps the recipe's arrangement, and looks at real tokenizers and shards when there are any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.data.shard import ShardSet, write_shard
from groundup.plan.resolve import SEARCH_ONLY
from groundup.record.rundir import RunDir
from groundup.record.stage import StageRecord
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.healthy import VARIANTS
from groundup.verify.micro import CAP, shortened
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


# What a micro model is given its own numbers for. Everything else is carried as the recipe has it.
SIZES = {"d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "context", "vocab_size"}
SHRUNK = {"window", "moe", "latent", "rope_scaling", "score_dim", "mup_width", "relative_buckets", "relative_distance"}
SHRUNK |= {"attention_softcap", "logit_softcap"}


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_model_keeps_every_choice(name: str, subject: Callable[..., Subject]) -> None:
    """A choice that falls back to its default would never be checked; one that is added later, neither."""
    given = subject(model=VARIANTS[name]).recipe.model.model_dump(exclude=set(SEARCH_ONLY))
    micro = subject(model=VARIANTS[name]).micro
    assert micro.problems() == []
    for field, value in given.items():
        found = getattr(micro, field)
        if field in SHRUNK:
            assert (found in (None, 0)) == (value in (None, 0)), field
        elif field not in SIZES:
            assert found == (tuple(value) if isinstance(value, list) else value), field
    if micro.moe is not None:
        rest = {k: v for k, v in given["moe"].items() if k not in ("n_experts", "top_k", "d_expert", "n_shared")}
        assert {k: getattr(micro.moe, k) for k in rest} == rest and micro.moe.top_k < micro.moe.n_experts


def test_micro_model_keeps_what_follows_from_sizes(subject: Callable[..., Subject]) -> None:
    """Gemma 3's scales taken over as they are: 34 times a micro embedding drowns everything that blocks add."""
    gemma = {
        "d_model": 1152,
        "n_heads": 4,
        "n_kv_heads": 1,
        "head_dim": 256,
        "n_layers": 26,
        "d_ff": 6912,
        "context": 32768,
        "window": 512,
        "window_pattern": "LLLLLG",
        "score_dim": 512,
        "embed_scale": 33.94,
        "rope_scaling": {"kind": "linear", "factor": 8, "original_context": 4096},
        "rope_fraction": 0.4,
        "init": "mup",
        "mup_width": 288,
        "logit_softcap": 30.0,
        "moe": {"n_experts": 128, "top_k": 8, "d_expert": 768, "first_dense": 3},
    }
    micro = subject(model=gemma).micro
    assert micro.problems() == []
    assert micro.embed_scale == pytest.approx(micro.d_model**0.5)
    assert micro.mup_width / micro.d_model == 288 / 1152 and micro.score_dim == 2 * micro.head_dim
    assert micro.window_pattern == "LLLLLG" and micro.n_layers == 6 and 2 <= micro.window <= 8
    assert micro.rope_scaling is not None and micro.rope_scaling.original_context == micro.context // 8
    assert 0 < micro.rope_dim < micro.head_dim and micro.rope_dim % 2 == 0
    assert micro.moe is not None and (micro.moe.n_experts, micro.moe.top_k, micro.moe.first_dense) == (6, 3, 1)
    assert micro.logit_softcap == CAP


@pytest.mark.parametrize(
    ("pattern", "short"),
    [("LG", "LG"), ("LLLLLG", "LLLLLG"), ("L" * 20 + "G", "LLLLLG"), ("GLLLLLLLLG", "GLLLLG"), ("LG" * 6, "LGLGLG")],
)
def test_long_patterns_keep_their_letters_and_order(pattern: str, short: str) -> None:
    """A pattern cut off before its one global layer is another architecture."""
    assert shortened(pattern, 6) == short


@pytest.mark.parametrize("name", VARIANTS)
def test_woken_logits_are_of_order_one(name: str, subject: Callable[..., Subject]) -> None:
    """Logits near 0 hide an error, saturated ones (at a cap, or one-hot) hide it too."""
    model = subject(model=VARIANTS[name]).build_model()
    tokens = torch.randint(model.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.logits(model(tokens))
    size = float(logits.std()) / model.config.output_scale
    assert 0.4 < size < 2, size
    if model.config.logit_softcap:
        assert (logits.abs() > 0.9 * model.config.logit_softcap).float().mean() < 0.01


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
