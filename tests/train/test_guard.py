"""The guard in real runs: planted trouble, recovery, and a run that is killed while it recovers."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from guard_runs import STEPS, Chain, job, nan_where_told, same, timeless, weights

from groundup.errors import UserError
from groundup.model.loss import cross_entropy_sum
from groundup.recipe.ramp import BatchSizes
from groundup.record.metrics import read
from groundup.train import guard as rules
from groundup.train import loop
from groundup.train.bad_batches import read_batches
from groundup.train.checkpoint import checkpoints
from groundup.train.loop import train
from groundup.train.objective import Loss, language_modelling

GARBAGE = range(100, 110)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The run without trouble: its validation loss."""
    metrics = train(job(tmp_path_factory.mktemp("clean")))
    assert "rollbacks" not in metrics
    return metrics["validation_loss"]


def events(folder):
    return [json.loads(line) for line in (folder / rules.FILE).read_text().splitlines()]


@pytest.mark.parametrize("seed", [8, 9])  # 7 is `clean`
def test_no_false_alarm(tmp_path, seed):
    """Bug: a guard that takes the noise of small batches for a spike costs every run a rollback."""
    metrics = train(job(tmp_path, seed=seed, steps=150))
    assert "rollbacks" not in metrics and not (tmp_path / rules.FILE).exists()


def test_garbage_documents_are_left_out(tmp_path, clean):
    """Bugs: random tokens are learnt for ten steps; good data are left out with them; the run does not come back to the
    loss that it would have had."""
    one = job(tmp_path, Chain(GARBAGE, 7), log_every=1)
    metrics = train(one)
    assert (metrics["rollbacks"], metrics["passed_over_steps"]) == (1, len(GARBAGE))
    assert metrics["validation_loss"] < 1.02 * clean
    (found,) = events(tmp_path)
    assert found["onset"] == GARBAGE[0] + 1 and found["documents"] == f"document {GARBAGE[0]}"
    assert found["fault"] == "data" and found["passed_over"] == [[GARBAGE[0] + 1, GARBAGE[-1] + 1]]
    told = [w for w in one.facts["warnings"] if "rollback 1" in w]
    assert len(told) == 2 and "document 100" in told[0] and "at fault: left out are steps 101 to 110" in told[1]
    # No row of a step that was undone or passed over, every other step once, and the rate as it was.
    rows = [row for row in read(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == [s for s in range(1, STEPS + 1) if s - 1 not in GARBAGE]
    by_step = {row["step"]: row for row in rows}
    state = json.loads((checkpoints(tmp_path / "checkpoints")[-1] / "state.json").read_text())
    assert state["guard"]["window"] == [row["loss"] for row in rows[-40:]]
    first = found["rate_from"]
    assert (by_step[first - 1]["rate_factor"], by_step[first]["rate_factor"]) == (1.0, 0.5)
    assert by_step[first]["learning_rate"] == pytest.approx(0.005) and by_step[first]["rollbacks"] == 1
    # The rate was not at fault: it rises with the first good data, and is whole after a quarter of a window.
    assert [by_step[GARBAGE.stop + n]["rate_factor"] for n in (1, 6, 11)] == pytest.approx([0.5, 0.5**0.5, 1.0])


@pytest.mark.full
@pytest.mark.parametrize("seed", [8, 9])
def test_long_garbage_over_seeds(tmp_path, seed):
    """Bug: what holds for one seed alone. Thirty steps in two hundred are fifteen in a hundred of the data."""
    clean = train(job(tmp_path / "clean", seed=seed))["validation_loss"]
    for length, bound in ((12, 1.02), (30, 1.03)):
        metrics = train(job(tmp_path / str(length), Chain(range(100, 100 + length), seed), seed=seed))
        assert metrics["rollbacks"] == 1 and metrics["passed_over_steps"] == length
        assert metrics["validation_loss"] < bound * clean


def test_a_rate_explosion_is_undone(tmp_path, clean, monkeypatch):
    """Bug: a hundred times the rate for five steps, and the weights stay ruined (3.87 nats is chance)."""
    right = loop.rate_at
    monkeypatch.setattr(loop, "rate_at", lambda step, *more: right(step, *more) * (100 if 100 <= step < 105 else 1))
    off = train(job(tmp_path / "off", steps=130, guard={"enabled": False}))
    assert off["validation_loss"] > 1.2 * clean
    one = job(tmp_path / "on")
    metrics = train(one)
    assert metrics["rollbacks"] == 1
    assert metrics["validation_loss"] < 1.02 * clean
    (found,) = events(tmp_path / "on")
    # The step before the first high loss did the damage: it is left out although its own loss was as usual.
    assert found["fault"] == "weights" and found["passed_over"][0][0] <= 101 < found["onset"]
    assert any("are as good as others: steps" in warning for warning in one.facts["warnings"])


def poisoned(bad):
    """Language modelling whose loss is NaN at the given steps (counted by calls in training mode)."""

    def objective(model, batch):
        loss = language_modelling(model, batch)
        if not model.training:
            return loss
        objective.calls += 1
        return Loss(loss.total * math.nan, loss.weight) if objective.calls - 1 in bad else loss

    objective.calls = 0
    return objective


def test_planted_nans_are_skipped_and_nothing_more(tmp_path, clean):
    """Bug: NaN in the window makes every comparison false; or a run of them is a "spike" although no weight moved."""
    metrics = train(job(tmp_path, objective=poisoned({60, 100, 101, 102, 103})))
    assert metrics["skipped_steps"] == 5 and "rollbacks" not in metrics
    assert metrics["validation_loss"] < 1.02 * clean
    kept = sorted(path.name for path in (tmp_path / "bad").iterdir())
    assert kept == [f"step-{s:07d}.{end}" for s in (61, 101, 102, 103, 104) for end in ("json", "safetensors")]


NANS = range(60, 72)  # more of them than max_bad_steps


def lost(folder, nans=NANS, **changed):
    return job(folder, Chain(seed=7, nans=nans), nan_where_told, **{"max_bad_steps": 4, "steps": 100, **changed})


def test_data_that_stay_not_finite_are_left_out(tmp_path):
    """Bug: a run that has everything it needs to go on ends, since one shard has twelve steps of NaN and not three."""
    one = lost(tmp_path)
    metrics = train(one)
    assert (metrics["rollbacks"], metrics["passed_over_steps"], metrics["skipped_steps"]) == (1, len(NANS), 0)
    (found,) = events(tmp_path)
    assert (found["not_finite"], found["steps_lost"], found["fault"]) == ("steps", 4, "data")
    assert found["passed_over"] == [[61, 72]] and found["z"] is None and found["losses"] == []
    assert any("4 steps in a row were not finite, up to step 64; back to" in w for w in one.facts["warnings"])
    assert len(list((tmp_path / "bad").glob("*.json"))) == 4  # each of them kept, the last one too


def test_bad_data_to_the_end_of_the_run(tmp_path):
    """Bug: guard.jsonl and the record say that one step was left out, since the first good one never came."""
    metrics = train(job(tmp_path, Chain(range(100, 120), 7), steps=120))
    assert metrics["passed_over_steps"] == 20 and math.isfinite(metrics["validation_loss"])
    assert events(tmp_path)[0]["passed_over"] == [[101, 120]]


def hurt_at(step, monkeypatch):
    """A weight is NaN when this step begins, each time that it is taken."""
    right = loop._one_step

    def wrong(job, optimizers, now, *more):
        if now == step:
            with torch.no_grad():
                next(job.model.blocks.parameters()).view(-1)[0] = math.nan
        return right(job, optimizers, now, *more)

    monkeypatch.setattr(loop, "_one_step", wrong)


def test_weights_that_turn_nan_are_put_back_at_once(tmp_path, clean, monkeypatch):
    """Bug: every step after it is skipped until the run gives up, with a sound checkpoint beside it."""
    hurt_at(100, monkeypatch)
    one = job(tmp_path)
    metrics = train(one)
    assert metrics["rollbacks"] == 1 and metrics["validation_loss"] < 1.02 * clean
    (found,) = events(tmp_path)
    assert (found["not_finite"], found["steps_lost"], found["onset"], found["fault"]) == ("weights", 1, 101, "weights")
    assert any("the weights are not finite at step 101; back to" in warning for warning in one.facts["warnings"])


@pytest.mark.parametrize("guard", [{"enabled": False}, {"retries": 0}, {"retries": 1}])
def test_steps_that_stay_not_finite_end_the_run_at_last(tmp_path, guard):
    """Bug: a run that skips or rolls back for ever and reports success. No later step is finite."""
    with pytest.raises(UserError, match="pretrain: 4 steps in a row were not finite, up to step") as error:
        train(lost(tmp_path, nans=range(60, 200), guard=guard, steps=120))
    assert ("Tried:" in str(error.value)) == (guard == {"retries": 1})
    assert checkpoints(tmp_path / "checkpoints")


def test_a_batch_that_was_not_finite_can_be_run_again(tmp_path):
    """Bug: the log says that a step was skipped, and nobody can find out why."""

    class Poisoned(Chain):
        def micro_batches(self, step):
            (batch,) = super().micro_batches(step)
            if step == 30:
                batch.tokens[5, 3] = 47  # the token whose embedding is broken
                return [replace(batch)]
            return [replace(batch, tokens=batch.tokens % 47, targets=batch.targets % 47)]

    one = job(tmp_path, Poisoned(), steps=40, precision="fp32")
    original = language_modelling.__globals__["cross_entropy_sum"]

    def broken(*given):
        total, weight = cross_entropy_sum(*given)
        return total * (math.nan if (one.facts["now"] == 47).any() else 1.0), weight

    # The objective itself has to be language modelling: rows of others do not stand for themselves.
    forward = one.model.forward

    def remember(tokens, **more):
        one.facts["now"] = tokens
        return forward(tokens, **more)

    one.model.forward = remember
    language_modelling.__globals__["cross_entropy_sum"] = broken
    try:
        train(one)
    finally:
        language_modelling.__globals__["cross_entropy_sum"] = original
    (batch,) = read_batches(tmp_path / "bad" / "step-0000031.safetensors")
    (expected,) = one.source.micro_batches(30)
    for name in ("tokens", "targets", "documents", "positions"):
        was, now = getattr(expected, name), getattr(batch, name)
        assert torch.equal(was, now) and was.dtype == now.dtype, name
    about = json.loads((tmp_path / "bad" / "step-0000031.json").read_text())
    assert about["documents"] == "document 30" and about["loss"] == "nan"
    assert [n for n, value in enumerate(about["loss_per_row"]) if value == "nan"] == [
        n for n in range(8) if (expected.tokens[n] == 47).any()
    ]
    assert 1 <= about["loss_per_row"].count("nan") < 8


def test_few_bad_batches_are_kept(tmp_path):
    """Bug: a run that skips thousands of steps fills the disk with their batches."""
    train(job(tmp_path, objective=poisoned(range(10, 18)), steps=20))
    assert len(list((tmp_path / "bad").iterdir())) == 2 * 5
    assert (tmp_path / "bad" / "step-0000018.json").exists()


@pytest.mark.parametrize("length", [1, 2])
def test_a_jump_that_recovers_is_left_alone(tmp_path, length):
    """Bug: one bad batch, whose damage the clip bounds, costs a rollback."""
    metrics = train(job(tmp_path, Chain(range(100, 100 + length), 7), steps=130))
    assert "rollbacks" not in metrics
    assert metrics["validation_loss"] < 2.7


def test_retries_are_bounded(tmp_path):
    """Bug: a run that goes back for ever, or ends as if all were well. All data are garbage from step 100 on."""
    one = job(tmp_path, Chain(range(100, STEPS), 7), guard={"retries": 2}, keep_checkpoints=50)
    with pytest.raises(UserError) as error:  # exit 2
        train(one)
    text = str(error.value)
    assert "guard.retries allows 2" in text and "rollback 1" in text and "rollback 2" in text
    assert "learning rate x 0.25" in text and "Look at those documents" in text
    # What is left out without end is no accident: after a window's worth the next step is taken, and judged.
    assert [event["passed_over"] for event in events(tmp_path)] == [[[101, 140]], [[141, 180]]]


def test_no_checkpoint_from_before_the_spike(tmp_path, monkeypatch):
    """Bug: only polluted checkpoints are left, and the run "goes back" to one of them."""

    def late(self, done, *_):
        if done == 98:
            self.wait()
            shutil.rmtree(self.folder)
        return done >= 98

    monkeypatch.setattr(loop.Saver, "due", late)
    with pytest.raises(UserError, match="no sound checkpoint of at most 97 steps is left"):
        train(job(tmp_path, Chain(GARBAGE, 7)))
    assert checkpoints(tmp_path / "checkpoints")


def test_something_to_go_back_to_before_the_first_save(tmp_path):
    """Bug: the run saves every 200 steps, spikes at 60, and has nowhere to go."""
    metrics = train(job(tmp_path, Chain(range(60, 64), 7), save_every=200, steps=120))
    assert metrics["rollbacks"] == 1
    assert events(tmp_path)[0]["back_to"] == 10  # a quarter of the window


def test_data_that_change_by_plan_are_no_spike(tmp_path):
    """Bug: the second stage of a mixture has another loss, and the guard fights the plan until it gives up."""

    class Planned(Chain):
        sizes = BatchSizes(8)

        class mixture:
            changes = staticmethod(lambda: [100 * 8])

    assert "rollbacks" not in train(job(tmp_path, Planned(range(100, STEPS), 7), steps=150))


class Killed(BaseException):
    pass


def weights_after(one):
    train(one)
    return weights(one)


def plain(folder, **changed):
    """The run that the tests below kill: ten steps of garbage, a hundred in all."""
    return job(folder, Chain(range(60, 70), 7), **{"steps": 100, **changed})


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """Runs that recover by themselves, never killed: (weights, rows, events)."""
    made = {}
    torch.set_num_threads(1)
    for make in (plain, lost):
        folder = tmp_path_factory.mktemp("recovered")
        made[make] = weights_after(make(folder)), timeless(folder), events(folder)
    return made


# Where the process dies: (run, owner, function, which call of it, whether the rollback was on the disk by then).
# `restore` and what follows are the middle of a rollback.
DEATHS = [
    (plain, loop, "_one_step", 62, False),  # the first high loss was seen, and is in no checkpoint
    pytest.param(plain, loop, "newest_before", 1, False, marks=pytest.mark.full),
    (plain, loop, "_restore", 1, False),
    pytest.param(plain, rules.Guard, "write", 2, False, marks=pytest.mark.full),
    (plain, loop, "_save", 5, False),  # the very save that holds the decision
    (plain, loop, "_one_step", 70, True),  # the steps that are done again
    (plain, rules.Guard, "_leave_out", 5, True),  # among the garbage, whose steps are tried one by one
    (plain, loop, "_one_step", 95, True),
    (lost, loop, "_one_step", 63, False),  # two of the four that make a rollback were counted
    (lost, loop, "_restore", 1, False),
    (lost, rules.Guard, "_leave_out", 5, True),
]


@pytest.mark.parametrize(("make", "owner", "name", "call", "knew"), DEATHS)
def test_killed_while_it_recovers(tmp_path, recovered, make, owner, name, call, knew, monkeypatch):
    """Bugs: the resumed run forgets the window, the halved rate or the steps to pass over; or loads the bad weights; or
    the record, which the last process writes, knows nothing of what happened before."""
    right, calls = getattr(owner, name), [0]

    def dying(*given, **named):
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return right(*given, **named)

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(Killed):
        train(make(tmp_path))
    monkeypatch.undo()
    again = make(tmp_path)
    never_killed = recovered[make]
    assert same(weights_after(again), never_killed[0])
    assert timeless(tmp_path) == never_killed[1]
    # Once it is done it is on the disk, and need not be found out again.
    assert knew == any("before this start: rollback 1" in warning for warning in again.facts["warnings"])
    assert events(tmp_path) == never_killed[2]


def test_killed_every_few_steps_in_a_row_of_bad_ones(tmp_path, recovered, monkeypatch):
    """Bug: the count of bad steps, or what is sound, is lost at each restart. It saves after every step, and dies after
    every third."""
    right, calls = loop._one_step, [0]

    def dying(*given):
        calls[0] += 1
        if calls[0] % 4 == 0 and given[2] >= 55:
            raise Killed
        return right(*given)

    monkeypatch.setattr(loop, "_one_step", dying)
    for _ in range(40):
        try:
            made = weights_after(lost(tmp_path, save_every=1))
        except Killed:
            continue
        break
    assert same(made, recovered[lost][0])
    assert [{**e, "back_to": 0} for e in events(tmp_path)] == [{**e, "back_to": 0} for e in recovered[lost][2]]


def test_each_step_is_seen_once(tmp_path, monkeypatch):
    """Bug: the way back leaves the window as it was: it holds the undone steps, and those done again twice."""
    hurt_at(60, monkeypatch)
    train(job(tmp_path, steps=85, log_every=1, save_every=50))
    state = json.loads((checkpoints(tmp_path / "checkpoints")[-1] / "state.json").read_text())
    rows = [row for row in read(tmp_path) if "loss" in row]
    assert len(rows) < 85 and events(tmp_path)[0]["back_to"] == 50
    assert state["guard"]["window"] == [row["loss"] for row in rows[-40:]]
    assert state["tokens"] == len(rows) * 8 * 16


def test_interrupted_saves_change_nothing(tmp_path, recovered, monkeypatch):
    """Bug: a checkpoint more (SIGUSR1, a stop) is gone back to, and the run takes another way from there."""
    monkeypatch.setattr(loop.Saver, "due", lambda self, done, steps, *_: done % 13 == 0 or done == steps)
    assert same(weights_after(plain(tmp_path)), recovered[plain][0])
    assert {e["back_to"] for e in events(tmp_path)} != {e["back_to"] for e in recovered[plain][2]}


def test_few_checkpoints_are_enough(tmp_path, recovered):
    """Bug: the newest checkpoints are all from within the spike: the run stops for good, and every setting that would
    help it has it start over."""
    made = weights_after(plain(tmp_path, save_every=1, keep_checkpoints=1))
    assert same(made, recovered[plain][0])
    assert len(checkpoints(tmp_path / "checkpoints")) <= 3


def test_data_that_never_fit_again_end_the_run_with_an_error(tmp_path):
    """Bug: every step to the end is left out, and a run that learned nothing for most of its length reports success."""
    section = {"window": 100, "patience": 5}
    for _ in range(2):  # the same command again says the same
        with pytest.raises(UserError, match="steps were left out, the last ones among them"):
            train(job(tmp_path, Chain(seed=7, nans=range(60, 999)), nan_where_told, steps=160, guard=section))
