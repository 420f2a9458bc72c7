"""The live checks: quiet on sound runs, loud on planted bugs (test_faults.py), and a failing one stops the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import CheckFailed
from groundup.plan.laws import BESIROGLU
from groundup.train import loop
from groundup.train.loop import Job
from groundup.train.optim import Optimizers
from groundup.train.vitals import Vitals
from groundup.verify import rig, trained
from groundup.verify.fault import swapped
from groundup.verify.healthy import HEALTHY, subject
from groundup.verify.run import run_checks
from groundup.verify.watch import Running, Watch

SOUND: dict[str, Callable[..., Running]] = {
    "first step": partial(trained.pretraining, look=0),
    "in the middle": partial(trained.pretraining, look=1),
    "last step": trained.pretraining,
    "long enough for unigrams": partial(trained.pretraining, steps=110, batch=16),
    "dpo": trained.preferring,
    "grpo": trained.sampling,
}
HISTORY = [
    {"step": 50, "reward": 0.5, "held_out_accuracy": 0.60},
    {"step": 100, "reward": 0.7, "held_out_accuracy": 0.55},
]


def failed(target: Running) -> list[str]:
    results = run_checks(target, stages=["live"])
    assert any(r.passed for r in results)
    return [f"{r.id}: {r.measured} {r.direction} {r.bound}; {r.note}" for r in results if r.failed]


@pytest.mark.parametrize("name", SOUND)
def test_sound_runs_are_not_stopped(name: str) -> None:
    """A false alarm in the middle of a run costs more than any bug it would find."""
    assert failed(SOUND[name]()) == []


@pytest.mark.parametrize("name", HEALTHY)
def test_every_healthy_configuration_trains_in_peace(name: str) -> None:
    """Windows, sinks, ALiBi, experts, latents: each takes another way through the probe."""
    for look in (0, -1):
        assert failed(trained.pretraining(look=look, **HEALTHY[name])) == []


def test_made_up_sheets_of_sound_runs_pass() -> None:
    """The checks that are proven on numbers alone must let the numbers of sound runs through."""
    loss = BESIROGLU.loss(1e8, 2e9)
    history = [{"step": 1000, "loss": loss, "validation_loss": 1.2 * loss}]
    law = trained.told("pretrain", history, parameters=10**8, tokens=2 * 10**9)
    reward = trained.told("grpo", HISTORY, held_out=256)
    for target, id in ((law, "live-loss-follows-the-law"), (reward, "live-reward-agrees-with-held-out")):
        (result,) = run_checks(target, only=[id])
        assert result.passed, result


def test_vital_signs_are_what_they_say() -> None:
    """Numbers that are always the same, or of another step, would keep every bound."""
    first, last = (trained.pretraining(look=look).vitals for look in (0, -1))
    assert len(first.gradient_by_layer) == len(first.dead_units) == len(first.attention_entropy) > 1
    assert first.gradient_by_layer != last.gradient_by_layer and first.update_ratio != last.update_ratio
    assert 0.9 < first.scored_share < 1  # all but the documents' ends
    assert all(0.5 < e < 1 for e in first.attention_entropy)  # fresh queries look nearly everywhere alike
    assert (
        set(first.update_ratio) == {n for n in first.update_ratio if "weight" in n}
        and min(first.update_ratio.values()) > 0
    )


def sheet(scored: float, step: int = 1) -> Vitals:
    row = {"scored": 4, "skipped": 0, "learning_rate": 0.1, "loss": 1.0}
    return Vitals(
        "sft",
        step,
        9,
        row,
        {"config": subject().micro},
        [],
        scored_share=scored,
        gradient_by_layer=[1.0],
        update_ratio={"a": 0.1},
        logit_max=2.0,
    )


def test_a_failing_look_stops_the_run_and_is_kept(tmp_path: Path) -> None:
    """A check that only writes a line is read when the money is spent."""
    said: list[str] = []
    with pytest.raises(CheckFailed, match=r"live-tokens-are-scored.*Measured 0\.0001") as stopped:
        Watch(tmp_path, [], said.append)(sheet(0.0001))
    assert "--allow" in str(stopped.value) and "sft, step 1" in str(stopped.value) and said == []
    looks: dict[str, Any] = json.loads((tmp_path / "live.json").read_text())["looks"]
    assert looks["1"]["failed"] >= 1


def test_what_is_allowed_is_warned_of(tmp_path: Path) -> None:
    """--allow of one check must not let the others through."""
    said: list[str] = []
    watch = Watch(tmp_path, ["live-tokens-are-scored", "live-updates-are-felt"], said.append)
    watch(sheet(0.0001))
    watch(sheet(0.2, step=5))
    assert len([line for line in said if "live-tokens-are-scored" in line]) == 1
    assert list(json.loads((tmp_path / "live.json").read_text())["looks"]) == ["1", "5"]
    watch(sheet(0.5))  # a run that begins anew forgets the looks of the one before
    assert list(json.loads((tmp_path / "live.json").read_text())["looks"]) == ["1"]


def test_what_stopped_a_run_stops_it_again_until_it_is_allowed(tmp_path: Path) -> None:
    """The step is saved before the run stops: going on from there would pass the bug by without another look."""
    with pytest.raises(CheckFailed):
        Watch(tmp_path, [], print, "k")(sheet(0.0001, step=5))
    with pytest.raises(CheckFailed, match="sft, step 5"):
        Watch(tmp_path, [], print, "k").resume("sft")
    said: list[str] = []
    Watch(tmp_path, ["live-tokens-are-scored"], said.append, "k").resume("sft")
    assert len(said) == 1
    Watch(tmp_path, [], print, "another recipe").resume("sft")


def test_the_step_that_stops_a_run_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours since the last checkpoint, lost to a check that one then allows."""
    saved: list[int] = []
    right = loop._save

    def save(job: Job, optimizers: Optimizers, done: int, meter: loop.Meter) -> None:
        saved.append(done)
        right(job, optimizers, done, meter)

    monkeypatch.setattr(loop, "_save", save)
    one = subject()
    model = one.build_model(awake=False)
    with one.scratch() as folder:
        watch = Watch(folder, [], print)
        job = rig.make_job(one, model, rig.Varying(one), one.section(validate_every=4), folder, watch=watch)
        job.facts = {"config": model.config}
        with swapped(Optimizers, step=lambda self, share: None), pytest.raises(CheckFailed):
            loop.train(job)
    assert saved == [4]  # the second look: nothing had moved
