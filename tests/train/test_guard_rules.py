"""The guard's rules by themselves: what is a spike, how the rate comes back, what the recipe refuses."""

import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from groundup.errors import UserError
from groundup.recipe.ramp import BatchSizes
from groundup.recipe.schema import GrpoSection, GuardSection, PretrainSection
from groundup.train.guard import Guard, Spike, planned_changes, reach, told

SECTION = GuardSection(window=40, patience=3)


def fed(losses, guard=None, start=0, **row):
    """(guard, the first spike, if any) after one loss a step."""
    guard = guard or Guard(SECTION, {})
    for n, loss in enumerate(losses):
        spike = guard.look(start + n, {"loss": loss, "skipped": 0, **row})
        if spike is not None:
            return guard, spike
    return guard, None


def calm(n, level=3.0):
    """Losses that stray by a tenth of a nat, as small batches do."""
    return [level + 0.1 * ((7 * k) % 11 - 5) / 5 for k in range(n)]


def test_nothing_is_a_spike_before_the_window_is_half_full():
    """Bug: the second loss of a run has a spread of one loss: anything is far from it."""
    assert fed([*calm(19), 30.0, 30.0])[1] is None
    assert fed([*calm(20), 30.0, 30.0])[1] is not None


def test_it_has_to_persist():
    """Bug: two high losses and one that is not are three high ones."""
    assert fed([*calm(40), 4.0, 4.0, 3.0, 4.0, 4.0, 3.0])[1] is None
    spike = fed([*calm(40), 4.0, 4.0, 4.0])[1]
    assert spike is not None and (spike.onset, spike.seen) == (40, 42)


def test_two_enormous_ones_are_enough():
    """Bug: a run that has diverged goes on for as long as a small jump would."""
    assert fed([*calm(40), 30.0])[1] is None
    assert fed([*calm(40), 30.0, 30.0])[1] is not None


def test_a_falling_loss_is_no_spike_and_a_fall_neither():
    """Bug: the size of the deviation is taken without its sign."""
    assert fed([9 * 0.97**n + 2 for n in range(200)])[1] is None
    assert fed([*calm(40), *calm(40, 1.0)])[1] is None


def test_losses_all_alike_have_a_spread_all_the_same():
    """Bug: a MAD of 0, and the first rounding is infinitely far away."""
    assert fed([*[2.0] * 40, *[2.001] * 10])[1] is None


def test_high_losses_do_not_widen_what_is_usual():
    """Bug: the spike's own losses enter the window, and by the third step they are the usual thing."""
    guard, _ = fed([*calm(40), 4.0, 4.0])
    assert max(guard.window) < 3.2
    fed([3.0], guard, 42)
    assert guard.window[-3:] == [4.0, 4.0, 3.0]  # it was noise: then it counts as such


def test_what_was_not_taken_is_not_looked_at():
    """Bug: a skipped step's NaN, or its huge loss, makes a spike although no weight moved."""
    assert fed([30.0] * 5, fed(calm(40))[0], 40, skipped=1)[1] is None
    assert fed([float("nan")] * 5, fed(calm(40))[0], 40)[1] is None


def test_off_is_off():
    assert fed([*calm(40), *[30.0] * 9], Guard(GuardSection(enabled=False), {}))[1] is None


def again(guard, start):
    """A spike at `start`, decided on."""
    _, spike = fed([30.0, 30.0], guard, start)
    assert spike is not None
    guard.decide(spike, 0, "")
    guard.high = []
    return spike


def test_each_try_goes_further():
    """Bug: the second try is the first one over again, and so is the third."""
    guard, _ = fed(calm(100))
    one, two = again(guard, 100), again(guard, 106)
    assert (one.begin, one.passed_over) == (97, ((97, 100), (97, 105)))
    assert (two.begin, two.passed_over) == (94, ((94, 100), (100, 117)))
    assert guard.course.passed_over == [[94, 117]] and guard.course.incidents == 1
    assert [guard.passes_over(s) for s in (93, 94, 116, 117)] == [False, True, True, False]
    assert guard.factor(93) == 1.0 and guard.factor(94) == 0.25


def test_a_spike_long_after_is_an_incident_of_its_own():
    """Bug: five spikes in a million steps are five tries for one, and the run stops."""
    guard, _ = fed(calm(100))
    again(guard, 100)
    fed(calm(100), guard, 105)
    again(guard, 300)
    assert (guard.course.incidents, guard.course.tries) == (2, 1)


def test_the_rate_comes_back_and_later_after_each_incident():
    """Bug: a rate that stays halved for ever because one document was bad; or one that is back at once."""
    guard, _ = fed(calm(100))
    again(guard, 100)  # steps 97 to 104 are passed over
    assert [guard.factor(s) for s in (96, 97, 105, 125, 130, 135, 136, 1000)] == pytest.approx(
        [1.0, 0.5, 0.5, 0.5, 0.5 * 2**0.5, 1.0, 1.0, 1.0]
    )
    fed(calm(100), guard, 105)
    again(guard, 300)
    assert [guard.factor(s) for s in (96, 100, 296, 297, 345, 355)] == pytest.approx([1.0, 0.5, 1.0, 0.5, 0.5, 1.0])


def tried(bad, until=100, **more):
    """(guard that has just rolled back a spike at step 100, what it told, the steps that were tried). bad: the steps
    whose data have a loss of 30 by sound weights."""
    told, asked = [], []

    def trial(step):
        asked.append(step)
        return 30.0 if step in bad else 3.0

    guard, _ = fed(calm(until), Guard(SECTION, {}, trial=trial, tell=told.append, **more))
    spike = fed([30.0, 30.0], guard, 100)[1]
    before = Guard(SECTION, {})
    fed(calm(until)[:90], before)
    guard.decide(spike, 90, "")
    guard.undo(before.state())
    fed(calm(until)[90:97], guard, 90)
    return guard, told, asked


def test_data_at_fault_are_left_out_and_nothing_else():
    """Bug: good steps before and behind the bad ones are left out too; or the rate stays low, though not at fault."""
    guard, told, asked = tried(range(100, 107))
    assert [guard.passes_over(step) for step in range(97, 100)] == [False] * 3 and asked == [97, 98, 99, 100]
    fed(calm(3), guard, 97)
    assert [guard.passes_over(step) for step in range(100, 109)] == [True] * 7 + [False] * 2
    assert guard.course.events[-1]["passed_over"] == [[101, 107]] and guard.course.events[-1]["fault"] == "data"
    assert told[0].endswith("at fault: left out are steps 101 to 107")
    assert [guard.factor(step) for step in (96, 97, 107, 112, 117)] == pytest.approx([1, 0.5, 0.5, 0.5**0.5, 1])
    fed([3.0], guard, 107)
    count = len(asked)
    assert not guard.passes_over(108) and len(asked) == count  # the weights have moved: a loss says nothing of data


def test_data_that_fit_are_not_at_fault():
    """Bug: the data are blamed for what the rate did: the steps that did the damage are taken again."""
    guard, told, asked = tried([])
    assert [guard.passes_over(step) for step in range(97, 107)] == [True] * 8 + [False] * 2
    assert asked == [97, 98, 99, 100] and guard.course.events[-1]["fault"] == "weights"
    assert told[0].endswith("as good as others: steps 98 to 105 are passed over, the rate stays low for a while")
    assert guard.factor(125) == 0.5


def test_no_more_than_a_window_is_left_out():
    """Bug: data that changed for good are left out to the end of the run, which reports success."""
    guard, _, _ = tried(range(100, 1000))
    fed(calm(3), guard, 97)
    assert sum(guard.passes_over(step) for step in range(97, 300)) == SECTION.window


def test_data_of_another_kind_by_plan_are_not_held_against_the_old():
    """Bug: the steps after a planned change are left out, since the window is of the data before it."""
    guard, _, _ = tried(range(100, 1000), changes=[104])
    assert [guard.passes_over(step) for step in range(97, 106)] == [False] * 3 + [True] * 4 + [False] * 2


def test_a_spike_after_bad_data_begins_where_it_begins():
    """Bug: it goes back to before the data that were found at fault: the weights were sound all along."""
    guard, _, _ = tried(range(100, 107))
    for step in range(97, 107):
        if not guard.passes_over(step):
            fed([3.0], guard, step)
    fed(calm(10), guard, 107)
    spike = fed([30.0, 30.0], guard, 117)[1]
    assert spike.begin == 117 - 6 and guard.course.tries == 1
    guard.decide(spike, 100, "")
    assert (guard.course.tries, guard.course.incidents, guard.course.onset) == (2, 1, 117)


def test_a_change_of_mind_is_in_the_state():
    """Bug: killed between the way back and the bad data, the run forgets that it is to find out who is at fault."""
    guard, _, _ = tried(range(100, 107))
    copy = Guard(SECTION, guard.state(), trial=lambda step: 30.0 if 100 <= step < 107 else 3.0)
    assert [copy.passes_over(step) for step in range(97, 108)] == [guard.passes_over(step) for step in range(97, 108)]


def skipped(guard, step, lost):
    guard.lost = lost
    return guard.look(step, {"loss": float("nan"), "skipped": 1})


def test_steps_lost_are_a_spike():
    """Bug: bad steps in a row end the run though it could go back; or the first of them is taken for a later one."""
    guard, _ = fed(calm(100))
    assert skipped(guard, 100, None) is None
    spike = skipped(guard, 103, ("steps", 4))
    assert (spike.onset, spike.seen, spike.begin, len(spike.losses)) == (100, 103, 97, 4)
    guard.refuse_endless_tries(spike, "")
    event = guard.decide(spike, 90, "documents a")
    assert json.loads(json.dumps(event, allow_nan=False)) == event
    assert "4 steps in a row were not finite, up to step 104; back to step 90" in told(event)


def test_a_loss_that_rises_and_is_then_lost_began_where_it_rose():
    """Bug: the way back ends inside the damage, at the first step that is not finite."""
    guard, spike = fed([*calm(100), 8.0])
    assert spike is None and guard.high
    found = skipped(guard, 104, ("steps", 4))
    assert (found.onset, found.begin) == (100, 97)


def test_a_rollback_reaches_back_over_the_steps_that_are_lost():
    """Bug: retention deletes what a rollback after a long row of steps that are not finite would go back to."""
    few, many = (PretrainSection(steps=1000, max_bad_steps=count, guard=SECTION) for count in (10, 120))
    assert reach(many) - reach(few) == 110 and reach(few) > SECTION.window
    assert reach(PretrainSection(steps=1000, guard={"enabled": False})) is None


def test_weights_lost_are_a_spike_where_there_is_a_way_back():
    """Bug: a run that never went well (fp16 at its smallest scale) passes over its steps and reports success; or it
    ends at its first bad step."""
    guard, _ = fed(calm(2))
    assert skipped(guard, 2, ("weights", 1)) is None
    with pytest.raises(UserError, match="9 steps in a row were not finite, up to step 11"):
        guard.refuse_endless_tries(skipped(guard, 10, ("steps", 9)), "")
    guard, _ = fed(calm(18), guard, 2)
    assert skipped(guard, 20, ("weights", 1)).not_finite == "weights"
    off = Guard(GuardSection(enabled=False), {})
    assert skipped(off, 50, ("weights", 1)) is None and skipped(off, 60, ("steps", 3)) is not None


def test_state_goes_through_json():
    """Bug: a resumed guard has half its state, or the state is no JSON."""
    guard, _ = fed([*calm(100), 4.0])
    again(guard, 101)
    fed([*calm(30), 4.0, 4.0], guard, 110)
    copy = Guard(SECTION, json.loads(json.dumps(guard.state())))
    assert copy.state() == guard.state()
    (_, here), (_, there) = fed([4.0], guard, 142), fed([4.0], copy, 142)
    assert here == there and isinstance(here, Spike) and here.onset == 140


def test_planned_changes():
    """A stage that begins within a step is new data from the next step on, all of it."""

    class mixture:
        changes = staticmethod(lambda: [0, 80, 81])

    mixed = SimpleNamespace(sizes=BatchSizes(8), mixture=mixture)
    assert planned_changes(mixed) == {0, 10, 11} and planned_changes(object()) == frozenset()
    # Bug: where batches grow, samples over the largest batch is a step long before the data change.
    mixed.sizes = BatchSizes(8, ((0.0, 2), (0.5, 8)), 40)  # 40 samples in the first 20 steps
    assert planned_changes(mixed) == {0, 25, 26}


def test_a_rollback_over_the_end_of_the_run_counts_the_steps_that_there_are():
    """Bug: the record says that more steps were passed over than the run had left."""
    guard, _ = fed(calm(100))
    _, spike = fed([30.0, 30.0], guard, 100)
    guard.decide(spike, 80, "")  # steps 97 to 104, counted from 0
    assert guard.summary(200)["passed_over_steps"] == 8 and guard.summary(103)["passed_over_steps"] == 6


def test_a_change_among_steps_passed_over_is_not_missed():
    """Bug: the step at which the data change is never looked at, and the old window judges the new data."""
    guard, _ = fed(calm(100), Guard(SECTION, {}, changes=[105]))
    assert fed([30.0] * 5, guard, 110)[1] is None and len(guard.window) == 5


def test_it_is_told_in_words():
    guard, _ = fed(calm(100))
    _, spike = fed([30.0, 30.0], guard, 100)
    said = told(guard.decide(spike, 80, "documents a, b"))
    assert "at steps 101 to 102" in said and "back to step 80" in said and "x 0.5 from step 98" in said
    assert "steps 98 to 105 are passed over (documents a, b)" in said


def test_the_recipe_refuses_what_makes_no_sense():
    """Bug: a guard that watches rewards; a patience longer than what it has seen."""
    sources = [{"path": "x.jsonl"}]
    assert not GrpoSection(sources=sources).guard.enabled
    with pytest.raises(ValidationError, match="an on-policy loss is no likelihood"):
        GrpoSection(sources=sources, guard={"window": 50})
    with pytest.raises(ValidationError, match="more than a quarter of window"):
        PretrainSection(guard={"window": 20, "patience": 6})
    assert PretrainSection().guard.enabled


def test_hurt_weights_find_fault_with_any_data():
    """Bug: damage done long before the spike is put on the data, since nothing fits the hurt weights; good data go."""
    guard, _, _ = tried(range(97, 107))
    assert all(guard.passes_over(step) for step in range(97, 105))
    assert guard.course.events[-1]["fault"] == "weights"


def test_a_verdict_is_told_once():
    """Bug: each step that fits and is not finite is followed by the same warning again."""
    guard, told, _ = tried(range(100, 103))
    assert [guard.passes_over(step) for step in range(97, 105)] == [False] * 3 + [True] * 3 + [False] * 2
    assert len([one for one in told if "at fault" in one]) == 1
