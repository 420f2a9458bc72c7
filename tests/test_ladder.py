"""A ladder as a whole: trained once, resumed, extended, held out, refused."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from command import MICRO, Forked, groundup

from groundup.console import Reporter
from groundup.ladder import Ladder
from groundup.model.count import count
from groundup.model.storage import load_config
from groundup.plan.fit import Point, fit
from groundup.plan.ladder import Options, sizes
from groundup.report.svg import COLOURS

SIZES = "1x16x2,1x32x2,2x32x2,2x48x3"
SETTINGS = (
    *("--set", "tokenizer.vocab_size=300", "--set", "model.context=32", "--set", "pretrain.log_every=1"),
    *("--set", "data.sources.0.max_documents=150", "--set", "evaluate.bits_per_byte_bytes=1000"),
)
ARGUMENTS = ("--tokens-per-parameter", "4,2", "--predict", "4x64x4", *SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def quick_plan() -> Any:
    """The plan's two seconds of measuring are tested with the plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundup.plan.budget.peak_flops", lambda *_: 1e11)
        patch.setattr("groundup.plan.budget.matmul_rate", lambda *_: 1e11)
        patch.setattr("groundup.plan.fit.BOOTSTRAPS", 100)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ladder. Read it; to change it, take `copied`."""
    runs = tmp_path_factory.mktemp("ladder")
    result = groundup("ladder", MICRO, "--sizes", SIZES, *ARGUMENTS, "--runs", runs)
    assert result.code == 0, result.err
    assert "Held out: 2x48x3-r4 was predicted at" in result.out
    assert "7 rungs, 0 done before" in result.err
    return runs


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def folder(runs: Path) -> Path:
    return runs / "micro" / "ladder"


def found(runs: Path) -> dict[str, Any]:
    return json.loads((folder(runs) / "ladder.json").read_text())


def models(runs: Path) -> dict[str, int]:
    """Rung -> when its model was written."""
    paths = folder(runs).glob("rungs/*/pretrain/model/model.safetensors")
    return {path.parents[2].name: path.stat().st_mtime_ns for path in paths}


def opened(runs: Path, **changes: Any) -> Ladder:
    asked = {"sizes": sizes(SIZES, ""), "tokens_per_parameter": (4.0, 2.0), **changes}
    overrides = [word for word in SETTINGS if word != "--set"]
    return Ladder.open(MICRO, runs, Options(**asked), overrides, Reporter(quiet=True))


# ---- what it finds ----


def test_rungs_and_the_one_held_out(finished: Path) -> None:
    """Bugs: the held-out size is fitted too, or not the largest; the error has the wrong sign or the wrong base."""
    rows = {row["name"]: row for row in found(finished)["rungs"]}
    small = [f"{size}-r{ratio}" for size in ("1x16x2", "1x32x2", "2x32x2") for ratio in (4, 2)]
    assert set(rows) == {*small, "2x48x3-r4"}  # the held-out one only once
    assert [name for name, row in rows.items() if row["held_out"]] == ["2x48x3-r4"]
    held = rows["2x48x3-r4"]
    points = [Point(r["parameters"], r["tokens"], r["loss"], r["flops"]) for n, r in rows.items() if n in small]
    expected = fit(points, seed=1337).predict(held["parameters"], held["tokens"], held["flops"])
    assert held["predicted"]["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert held["error_percent"] == pytest.approx(100 * (expected.loss - held["loss"]) / held["loss"])
    assert found(finished)["largest_error_percent"] == abs(held["error_percent"])
    assert found(finished)["fit_without_held_out"]["points"] == 6
    assert found(finished)["fit"]["points"] == 7


def test_rungs_are_comparable(finished: Path) -> None:
    """Bugs: rungs with tokenizers of their own; losses on other text; tokens that were not all trained on."""
    rows = found(finished)["rungs"]
    assert len({row["scored_bytes"] for row in rows}) == 1
    assert [path.parent.name for path in folder(finished).rglob("tokenizer.json")] == ["tokenizer"]
    hashes = set()
    for row in rows:
        config, extra = load_config(folder(finished) / "rungs" / row["name"] / "pretrain" / "model")
        hashes.add(extra["tokenizer_hash"])
        assert (config.context, config.vocab_size) == (32, 300)
        assert row["tokens"] == row["steps"] * row["batch_size"] * 32
        assert row["tokens_per_parameter"] == pytest.approx(float(row["name"].split("-r")[1]), rel=0.03)
        assert row["parameters"] == row["non_embedding"] + 300 * row["d_model"] - norms(config)
        results = folder(finished) / "rungs" / row["name"] / "evaluate-base" / "results.json"
        scored = json.loads(results.read_text())["bits_per_byte"]
        assert row["loss"] * scored["tokens"] == pytest.approx(row["bits_per_byte"] * scored["bytes"] * math.log(2))
    assert len(hashes) == 1
    assert [row["flops"] for row in rows] == sorted(row["flops"] for row in rows)


def norms(config: Any) -> int:
    return (2 * config.n_layers + 1) * config.d_model + 2 * config.n_layers * config.head_dim


def test_every_rung_cools_down_to_the_end(finished: Path) -> None:
    """Bug: the schedule is counted in steps of the largest rung, and the small ones end at their peak rate."""
    for row in found(finished)["rungs"]:
        log = folder(finished) / "rungs" / row["name"] / "pretrain" / "metrics.jsonl"
        rates = [r["learning_rate"] for r in map(json.loads, log.read_text().splitlines()) if "learning_rate" in r]
        assert len(rates) == row["steps"]
        assert max(rates) == pytest.approx(row["learning_rate"])
        assert rates[-1] < 0.01 * max(rates)


def test_summary_and_pictures(finished: Path) -> None:
    """Bugs: stand-in colours or CSS variables in a file that has no page; a picture that is no XML."""
    text = (folder(finished) / "ladder.md").read_text()
    assert "2x48x3-r4 (held out)" in text and "Predicted: " in text and "![loss.svg](loss.svg)" in text
    svg = (folder(finished) / "loss.svg").read_text()
    assert ET.fromstring(svg).tag.endswith("svg")
    assert ">1e" in svg and "mathdefault" not in svg  # ticks that a reader can read
    assert "var(" not in svg and not any(colour in svg for colour in COLOURS.values())
    prediction = found(finished)["predictions"][0]
    assert prediction["size"] == "4x64x4" and prediction["times_largest"] > 3
    assert prediction["loss"] > 0 and prediction["low"] <= prediction["loss"] <= prediction["high"]
    assert any("repeated data" in note for note in prediction["notes"])


# ---- again, further, killed ----


def test_a_finished_ladder_trains_nothing(copied: Path) -> None:
    """Bug: a rung's own batch size makes the shards stale, so that everything runs again."""
    before, shards = models(copied), (folder(copied) / "data" / "train.bin").stat().st_mtime_ns
    again = groundup("ladder", MICRO, "--sizes", SIZES, *ARGUMENTS, "--runs", copied, "--json")
    assert again.code == 0, again.err
    assert again.json() == found(copied)
    assert models(copied) == before
    assert (folder(copied) / "data" / "train.bin").stat().st_mtime_ns == shards


def test_a_new_size_trains_alone(copied: Path) -> None:
    """Bug: another rung on the ladder, and the old ones are trained anew."""
    before = models(copied)
    more = groundup("ladder", MICRO, "--sizes", f"{SIZES},1x48x3", *ARGUMENTS, "--runs", copied)
    assert more.code == 0, more.err
    assert "9 rungs, 7 done before" in more.err
    after = models(copied)
    assert set(after) - set(before) == {"1x48x3-r4", "1x48x3-r2"}
    assert {name: after[name] for name in before} == before


def test_killed_and_run_again(finished: Path, tmp_path: Path) -> None:
    """Bugs: finished rungs are lost with the process; a killed one starts over, or ends with another loss."""
    runs = tmp_path / "runs"
    command = ("ladder", MICRO, "--sizes", SIZES, *ARGUMENTS, "--runs", runs)

    def third_has_begun() -> bool:
        begun = list(folder(runs).glob("rungs/*/pretrain/checkpoints/step-*"))
        return len(models(runs)) >= 2 and any(path.parents[2].name not in models(runs) for path in begun)

    assert Forked(*command, log=tmp_path / "log").kill_when(third_has_begun) == -signal.SIGKILL
    before = models(runs)
    assert 2 <= len(before) < 7 and not (folder(runs) / "ladder.json").exists()
    again = groundup(*command)
    assert again.code == 0, again.err
    assert "resuming from step" in again.err
    assert {name: models(runs)[name] for name in before} == before
    losses = [{row["name"]: row["loss"] for row in found(where)["rungs"]} for where in (finished, runs)]
    assert losses[0] == losses[1]


def test_the_shards_do_not_depend_on_a_rung(finished: Path) -> None:
    """Bug: a rung's batch size is in the key of the data it reads."""
    ladder = opened(finished)
    base = ladder.base.keys()
    for rung in ladder.rungs:
        keys = ladder.pipeline(rung).keys()
        assert {name: keys[name] for name in ("tokenizer", "data")} == {k: base[k] for k in ("tokenizer", "data")}
    assert len({rung.recipe.pretrain.batch_size for rung in ladder.rungs}) > 1
    assert all(ladder.done(rung) for rung in ladder.rungs) and ladder.seconds() == {}


# ---- other ladders ----


def test_one_vocabulary_for_all(tmp_path: Path) -> None:
    """Bug: `vocab_size: auto` follows each rung's size, and a loss a token means something else in every rung."""
    options = Options(sizes("300K,600K,2M,8M", ""), (20.0,))
    ladder = Ladder.open(MICRO, tmp_path, options, ["tokenizer.vocab_size=auto"], Reporter(quiet=True))
    vocabulary = ladder.base.ctx.recipe.tokenizer.vocab_size
    assert [rung.config.vocab_size for rung in ladder.rungs] == [vocabulary] * 4
    totals = [count(rung.config)["total"] for rung in ladder.rungs]
    assert totals == pytest.approx([3e5, 6e5, 2e6, 8e6], rel=0.25)
    assert [rung.held_out for rung in ladder.rungs] == [False, False, False, True]
    assert not list(tmp_path.iterdir())  # opening writes nothing


@pytest.mark.full
def test_isoflop(tmp_path: Path) -> None:
    """Bugs: budgets in tokens and not in FLOPs; a parabola through rungs of another budget."""
    arguments = ("--sizes", "1x16x2,1x32x2,1x48x3", "--isoflop", "1e10,2e10", "--hold-out", "none", *SETTINGS)
    result = groundup("ladder", MICRO, *arguments, "--runs", tmp_path, "--json")
    assert result.code == 0, result.err
    done = result.json()
    assert done["fit_without_held_out"] is None and not any(row["held_out"] for row in done["rungs"])
    for row in done["rungs"]:
        assert row["flops"] == pytest.approx(row["budget"], rel=0.05)
    curves = done["isoflop"]["parabolas"]
    assert [curve["flops"] for curve in curves] == pytest.approx([1e10, 2e10], rel=0.05)
    assert ET.fromstring((folder(tmp_path) / "isoflop.svg").read_text()).tag.endswith("svg")


def test_the_rule_decides_batch_and_rate(tmp_path: Path) -> None:
    """Bugs: the rule's name is read and not used; a rate beyond what tied embeddings bear."""
    by_rule = {}
    for rule in ("olmo-ladder", "deepseek", "nanochat"):
        rungs = opened(tmp_path, rule=rule, tokens_per_parameter=(400.0,)).rungs
        by_rule[rule] = [(r.recipe.pretrain.batch_size, r.recipe.pretrain.muon_learning_rate) for r in rungs]
        assert all(0 < float(r.recipe.pretrain.learning_rate) <= 0.006 for r in rungs)
    assert by_rule["olmo-ladder"] != by_rule["deepseek"]
    assert {rate for _, rate in by_rule["olmo-ladder"]} == {0.02}
    assert all(float(rate) < 0.02 for _, rate in by_rule["nanochat"])


BAD = {
    "one rung": (("--sizes", "1x32x2"), "0 rungs to fit beside the one held out: a law needs at least 3"),
    "three rungs": (("--sizes", "1x16x2,1x32x2,2x32x2"), "2 rungs to fit"),
    "a word": (("--sizes", "1x32x2,big,3x"), '"big" is no size: write parameters (200K, 1.5M) or layers'),
    "a size twice": (("--sizes", "20K,20000,1x32x2,2x32x2,3x32x2"), "the size 20K is named twice"),
    "too small": (("--sizes", "1K,1x32x2,2x32x2,3x32x2"), "size 1K: "),
    "heads": (("--sizes", "1x32x2,2x32x5,2x32x2,3x32x2"), "size 2x32x5: "),
    "hold-out": (("--sizes", SIZES, "--hold-out", "3x48x3"), "--hold-out 3x48x3 is not among the sizes: 1x16x2"),
    "no steps": (("--sizes", SIZES, "--tokens-per-parameter", "0.1"), "steps: give it more tokens"),
    "ratio": (("--sizes", SIZES, "--tokens-per-parameter", "20,-1,x"), '"-1" is not a number above 0'),
    "budget": (("--sizes", SIZES, "--isoflop", "lots"), '"lots" is not a number above 0, up to 1e+32: write 1e13'),
    "rule": (
        ("--sizes", SIZES, "--rule", "olmo-lader"),
        'no rule "olmo-lader" for a ladder (did you mean "olmo-ladder"?)',
    ),
    "mup": (("--sizes", SIZES, "--rule", "mup"), 'no rule "mup" for a ladder'),
    "key": (("--sizes", SIZES, "--set", "pretrain.step=1"), 'unknown key (did you mean "steps"?)'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    """Bugs: a traceback; a message without a remedy; an hour of training before the typo is told."""
    arguments, message = BAD[case]
    result = groundup("ladder", MICRO, *arguments, *SETTINGS, "--runs", tmp_path / "runs")
    assert result.code == 2
    assert message in re.sub(r"\s+", " ", result.err)
    assert not (tmp_path / "runs").exists()


def test_experts_are_refused(tmp_path: Path) -> None:
    """Bug: experts keep their width while the model around them grows, and the ladder's sizes are wrong."""
    moe = ("--set", "model.moe={n_experts: 4, top_k: 2, d_expert: 32}")
    result = groundup("ladder", MICRO, "--sizes", SIZES, *moe, "--runs", tmp_path)
    assert result.code == 2 and "model.moe has widths of its own" in result.err


def test_every_wrong_option_is_said_at_once() -> None:
    """Bugs: the first wrong option hides the others; a budget of 1e300 FLOPs is taken."""
    arguments = ["--sizes", "banana", "--tokens-per-parameter", "nan", "--isoflop", "1e300", "--tokens", "0"]
    result = groundup("ladder", "town", *arguments, "--predict", "foo", "--hold-out", "bar")
    assert result.code == 2 and "6 problems" in result.err
    for word in ("banana", "nan", "1e300", '"0"', "foo", "bar"):
        assert word in result.err
    huge = groundup("ladder", "town", "--sizes", "1e15,2e15,3e15,4e15")
    assert huge.code == 2 and "lower tokenizer.vocab_size" not in huge.err
