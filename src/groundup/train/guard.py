"""The guard: sees a spike of the loss, and decides where to go back to, how fast to go on, and what to leave out.

It decides; the loop acts (`_roll_back` in train/loop.py). Nothing here depends on a clock or a random number: the same
losses lead to the same decisions, so a run that is killed at any moment comes to them again. Steps that stay not
finite are a spike too, whose loss is infinite.

Passing over steps after a spike: Chowdhery et al. 2022, arXiv 2204.02311, section 5.1 (PaLM). The reasons for each
number are in docs/guard.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from groundup.errors import UserError
from groundup.recipe.schema import GuardSection, TrainSection
from groundup.record.files import atomic_write
from groundup.train.checkpoint import Checkpoint, checkpoints, defect, load_checkpoint, unsound

FILE = "guard.jsonl"
NORMAL = 1.4826  # the MAD of a normal distribution times this is its standard deviation
LEAST = 0.01  # nats, and share of the median: a spread below it is taken for this much
ENORMOUS = 10  # times the threshold: two such steps in a row need no more patience


@dataclass(frozen=True)
class Spike:
    """What the guard saw, and what it wants done. Steps are 0-based, ranges [begin, end)."""

    onset: int  # first step whose loss was too high
    seen: int  # step at which it was sure
    losses: tuple[float, ...]  # of the steps from onset to seen
    usual: float  # median of the window
    z: float  # robust z-score of the last loss
    begin: int  # from here on the run goes another way: a checkpoint of at most so many steps is stable
    passed_over: tuple[tuple[int, int], ...]  # steps that are not taken when they come again, if not for their data
    not_finite: str = ""  # "steps": so many in a row; "weights": they hold NaN or infinity

    def said(self, what: str = "") -> str:
        """What happened, for an error. what: names the documents."""
        if self.not_finite:
            return _not_finite(self.not_finite, self.onset + 1, self.seen + 1, len(self.losses))
        documents = f"; {what}" if what else ""
        return f"the loss spiked at step {self.onset + 1} ({self.losses[-1]:.4g}, usually {self.usual:.4g}{documents})"


@dataclass
class Course:
    """What the guard decided so far. Never rolled back: it is why the second try is not the first one again."""

    rollbacks: int = 0
    incidents: int = 0
    tries: int = 0  # rollbacks of the last incident
    onset: int = -1  # of the last incident
    end: int = -1  # the step after the last one that the last rollback passes over
    rates: list[list[float]] = field(default_factory=list)  # [from step, factor of the rate, step of its first rise]
    passed_over: list[list[int]] = field(default_factory=list)  # ranges [begin, end) of steps
    events: list[dict[str, Any]] = field(default_factory=list)
    # Ranges to pass over unless the data are at fault; then none
    planned: list[list[int]] = field(default_factory=list)

    @property
    def fault(self) -> str:
        """Of the last spike: "data" or "weights"; empty while nobody knows."""
        return str(self.events[-1].get("fault", "")) if self.events else ""


def planned_changes(source: Any) -> frozenset[int]:
    """The steps at which a mixture changes the data by plan: another level of loss begins there.

    A sample's step is the batch sizes' to say: batches may grow.
    """
    mixture = getattr(source, "mixture", None)
    return frozenset(source.sizes.first_from(sample) for sample in mixture.changes()) if mixture else frozenset()


def newest_before(folder: Path, step: int) -> Checkpoint | None:
    """The newest checkpoint of at most `step` steps that verifies and is finite."""
    for path in reversed(checkpoints(folder)):
        if path.name <= f"step-{step:07d}" and defect(path) is None:
            found = load_checkpoint(path)
            if unsound(found) is None:
                return found
    return None


def reach(section: TrainSection) -> int | None:
    """Steps back from now within which the tries at one spike begin; None where the guard never goes back."""
    guard = section.guard
    judges = guard.enabled and guard.retries and int(section.steps) > guard.window // 2
    return guard.window + guard.patience * 2**guard.retries + section.max_bad_steps if judges else None


class Guard:
    """Looks at the loss of every step. state: `state()` of the checkpoint that the run resumes from.

    changes: steps at which the data change by plan; the window starts anew there. trial: the loss of a step's data by
    the weights as they are, without an update; None where data cannot be had twice. tell: takes what was found out.
    """

    def __init__(
        self,
        section: GuardSection,
        state: dict[str, Any],
        changes: Collection[int] = (),
        trial: Callable[[int], float] | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.section, self.changes, self.trial, self.tell = section, changes, trial, tell
        self.course = Course(**state.get("course", {}))
        self.window: list[float] = []
        self.looked = -1  # the last step looked at; others may have been passed over since
        self.high: list[list[float]] = []  # [step, loss, z] of the steps in a row that were too high, up to now
        # At one step before it is armed: there must be something to go back to, however seldom the run saves.
        self.wants_checkpoint = False
        self.told = 0  # rollbacks, the last one's verdict among them
        self.lost: tuple[str, int] | None = None  # the meter's, of this step: what is not finite, for how many steps
        self.undo(state)

    def undo(self, state: dict[str, Any]) -> None:
        """Take up what was seen up to a checkpoint; what was decided since stays."""
        self.window, self.high = list(state.get("window", [])), [list(one) for one in state.get("high", [])]
        self.looked = int(state.get("looked", -1))

    def state(self) -> dict[str, Any]:
        high = [list(one) for one in self.high]
        return {"window": list(self.window), "high": high, "looked": self.looked, "course": asdict(self.course)}

    @property
    def armed(self) -> bool:
        return len(self.window) >= self.section.window // 2

    def passes_over(self, step: int) -> bool:
        """Whether `step` is left out. To be asked for one step after the other, before each: it may try the data."""
        now = self.course
        if now.planned and step >= now.rates[-1][0]:
            self._find_fault(step)
        if self._within(step):
            return True
        if now.fault != "data":
            return False
        onset = now.events[-1]["onset"] - 1
        if not self.looked < onset <= step:
            return False  # an update since then: no longer the weights that are known to be sound
        # More of them than a window has are no accident: they are taken, and the rule for spikes decides.
        if step < onset + self.section.window and self._misfit(step):
            self._leave_out(step)
            return True
        if self.told != now.rollbacks:  # once: a step that fits may not be finite, and the next is tried too
            self.told = now.rollbacks
            self.tell(verdict(now.events[-1]))
        return False

    def _within(self, step: int) -> bool:
        return any(begin <= step < end for begin, end in self.course.passed_over)

    def _find_fault(self, step: int) -> None:
        """Show the weights from before the spike its first batch again: is its loss too high by them as well?"""
        now, event = self.course, self.course.events[-1]
        onset = event["onset"] - 1
        # Weights hurt before find fault with any data: then steps that were taken once do not fit either.
        sound = not any(self._misfit(one) for one in range(step, onset) if not self._within(one))
        event["fault"] = "data" if sound and self._misfit(onset) else "weights"
        if now.fault == "data":
            event["passed_over"] = []
            self._leave_out(onset)
        else:
            now.passed_over = _joined([*now.passed_over, *now.planned])
            self.tell(verdict(event))
        now.planned = []

    def _leave_out(self, step: int) -> None:
        """For its data. The rate was not at fault then: it rises again as soon as data fit."""
        now, event = self.course, self.course.events[-1]
        now.passed_over = _joined([*now.passed_over, [step, step + 1]])
        left_out = [*([a - 1, b] for a, b in event["passed_over"]), [step, step + 1]]
        event["passed_over"] = [[a + 1, b] for a, b in _joined(left_out)]
        now.end, now.rates[-1][2] = step + 1, step + 1

    def _misfit(self, step: int) -> bool:
        """Whether the loss of a step's data is too high by the weights as they are."""
        if self.trial is None or any(self.looked < change <= step for change in self.changes):
            return False  # nothing to judge them by
        loss = self.trial(step)
        return not math.isfinite(loss) or (self.armed and self._z(loss) >= self.section.threshold)

    def _z(self, loss: float) -> float:
        usual = median(self.window)
        mad = median(abs(one - usual) for one in self.window)
        return (loss - usual) / max(NORMAL * mad, LEAST * abs(usual), LEAST)

    def factor(self, step: int) -> float:
        """Of the learning rate at `step`: halved by each rollback, and back to 1 later.

        It waits for half a window after the steps passed over, twice as long after each further incident, and not at
        all where the data were at fault; then it doubles every quarter of a window. A pure function of the step: steps
        done again before the spike get the rate that they had.
        """
        now = next((one for one in reversed(self.course.rates) if one[0] <= step), None)
        if now is None:
            return 1.0
        _, low, rise = now
        return low if step <= rise else min(1.0, low * 2.0 ** (4 * (step - rise) / self.section.window))

    def look(self, step: int, row: dict[str, Any]) -> Spike | None:
        """Take note of a step's loss. A Spike: it is too high for too long.

        A step that was not taken (not finite, or nothing scored) says nothing about the weights, which it left alone:
        until the meter says that there are too many of them, or that the weights are what is not finite.
        """
        self.wants_checkpoint, lost, self.lost = False, self.lost, None
        if lost is not None:
            return self._lost(step, *lost)
        if not self.section.enabled or row["skipped"] or not math.isfinite(row["loss"]):
            return None
        if any(self.looked < change <= step for change in self.changes):
            self.window, self.high = [], []
        self.looked = step
        loss, z = float(row["loss"]), 0.0
        if self.armed:
            z = self._z(loss)
        if z < self.section.threshold:
            self.window = [*self.window, *(one[1] for one in self.high), loss][-self.section.window :]
            self.high = []
            self.wants_checkpoint = len(self.window) == self.section.window // 4
            return None
        self.high.append([step, loss, z])
        enormous = [one[2] >= ENORMOUS * self.section.threshold for one in self.high[-2:]] == [True, True]
        return self._spike() if len(self.high) >= self.section.patience or enormous else None

    def _spike(self) -> Spike:
        losses = tuple(one[1] for one in self.high)
        return self._answer(int(self.high[0][0]), int(self.high[-1][0]), losses, self.high[-1][2])

    def _lost(self, step: int, why: str, steps: int) -> Spike | None:
        """Steps that are not finite, `steps` of them in a row. None: nowhere to go back to, and they may end yet."""
        first = next(s for s in range(self.looked + 1, step + 1) if not self._within(s) or s == step)
        onset = int(self.high[0][0]) if self.high else first  # high first, not finite then: one trouble
        found = replace(self._answer(onset, step, (math.nan,) * steps, math.inf), not_finite=why)
        return found if why == "steps" or self._can_go_back(found) else None

    def _answer(self, onset: int, seen: int, losses: tuple[float, ...], z: float) -> Spike:
        patience, again = self.section.patience, self._again(onset)
        first, tries = (self._first(onset), self.course.tries + 1) if again else (onset, 1)
        lead = patience * 2 ** (tries - 1)  # what did the damage may lie before the step where it showed
        after = patience * (2**tries - 1)  # and go on after the step where it was seen
        return Spike(
            onset=onset,
            seen=seen,
            losses=losses,
            usual=median(self.window) if self.window else math.nan,
            z=z,
            begin=max(first - lead, 0),
            passed_over=((max(first - lead, 0), first), (max(onset - lead, 0), seen + 1 + after)),
        )

    def _can_go_back(self, spike: Spike) -> bool:
        return self.section.enabled and self.armed and len(self._tried(spike)) < self.section.retries

    def _tried(self, spike: Spike) -> list[dict[str, Any]]:
        """The rollbacks for this spike's incident, up to now."""
        mine = [event for event in self.course.events if event["incident"] == self.course.incidents]
        return mine if self._again(spike.onset) else []

    def _first(self, onset: int) -> int:
        """Where the incident began. Where the data were at fault the weights were sound up to this spike."""
        return onset if self.course.fault == "data" else self.course.onset

    def _again(self, onset: int) -> bool:
        """Whether it belongs to the last incident: less than a window after it."""
        return self.course.tries > 0 and onset < self.course.end + self.section.window

    def refuse_endless_tries(self, spike: Spike, what: str) -> None:
        """Errors: UserError when this incident has had all its rollbacks. what: names the documents."""
        mine = self._tried(spike)
        if self._can_go_back(spike) if spike.not_finite else len(mine) < self.section.retries:
            return
        tried = "".join(f"\n  - {told(event)}" for event in mine)
        if spike.not_finite:
            raise UserError(
                f"{spike.said()}. Lower the learning rate or use precision: fp32, and look at the batch of that step; "
                "checkpoints are kept" + (f". Tried:{tried}" if tried else "")
            )
        raise UserError(
            f"{spike.said(what)}, and guard.retries allows {self.section.retries} rollbacks for one spike. "
            f"Tried:{tried or ' nothing'}\nLook at those documents; lower the learning rate or raise warmup; if the "
            "data change there by plan, raise guard.threshold or set guard.enabled: false. Checkpoints are kept"
        )

    def decide(self, spike: Spike, checkpoint: int, what: str) -> dict[str, Any]:
        """Enter a rollback to `checkpoint` steps into the course; returns the event. what: names the documents."""
        now, again = self.course, self._again(spike.onset)
        incidents, factor = now.incidents + (not again), 0.5 * self.factor(spike.onset)
        rise = spike.passed_over[-1][1] + self.section.window * 2 ** (incidents - 1) // 2
        event = {
            "rollback": now.rollbacks + 1,
            "incident": incidents,
            "onset": spike.onset + 1,
            "seen": spike.seen + 1,
            "losses": [round(one, 4) for one in spike.losses if math.isfinite(one)],
            "usual_loss": round(spike.usual, 4) if math.isfinite(spike.usual) else None,
            "z": round(spike.z, 1) if math.isfinite(spike.z) else None,
            "back_to": checkpoint,
            "rate_factor": round(factor, 6),
            "rate_from": spike.begin + 1,
            "passed_over": [[a + 1, b] for a, b in _joined(spike.passed_over)],  # first and last, counted from 1
            "documents": what,
            **({"not_finite": spike.not_finite, "steps_lost": len(spike.losses)} if spike.not_finite else {}),
        }
        sure = [] if self.trial else spike.passed_over  # what was planned before holds, whoever is at fault this time
        self.course = Course(
            rollbacks=now.rollbacks + 1,
            incidents=incidents,
            tries=now.tries + 1 if again else 1,
            onset=self._first(spike.onset) if again else spike.onset,
            end=spike.passed_over[-1][1],
            rates=[*(one for one in now.rates if one[0] < spike.begin), [spike.begin, factor, rise]],
            passed_over=_joined([*now.passed_over, *now.planned, *sure]),
            events=[*now.events, event],
            planned=_joined(spike.passed_over) if self.trial else [],
        )
        return event

    def close(self, steps: int) -> None:
        """After the last step. Errors: UserError where the run ended among data left out, and they are much of it."""
        now = self.course
        if now.fault != "data" or self.looked >= now.events[-1]["onset"] - 1:
            return  # a step was taken after them
        self.tell(verdict(now.events[-1]))
        left_out = self.summary(steps)["passed_over_steps"]
        if 4 * left_out > steps:
            raise UserError(
                f"{left_out} of {steps} steps were left out, the last ones among them: no data fit any more. Look at "
                f"the documents of step {now.events[-1]['onset']} and after it; checkpoints are kept"
            )

    def summary(self, steps: int) -> dict[str, Any]:
        """For the stage's record: empty for a run in which nothing happened. steps: of the run, which may end first."""
        if not self.course.rollbacks:
            return {}
        passed_over = sum(max(0, min(end, steps) - begin) for begin, end in self.course.passed_over)
        return {"rollbacks": self.course.rollbacks, "passed_over_steps": passed_over}

    def row(self, step: int) -> dict[str, Any]:
        """For the step's row in metrics.jsonl."""
        if not self.course.rollbacks:
            return {}
        return {"rollbacks": self.course.rollbacks, "rate_factor": self.factor(step)}

    def write(self, folder: Path) -> None:
        """All events as folder/guard.jsonl. Whole, not appended: a run killed in a rollback would write it twice."""
        if self.course.events or (folder / FILE).exists():
            atomic_write(folder / FILE, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in self.course.events))


def told(event: dict[str, Any]) -> str:
    """An event in a line, for the record's warnings."""
    onset, seen, kind = event["onset"], event["seen"], event.get("not_finite", "")
    if kind:
        what = _not_finite(kind, onset, seen, event["steps_lost"])
    else:
        what = f"the loss rose from {event['usual_loss']:.4g} to {event['losses'][-1]:.4g} at steps {onset} to {seen} "
        what += f"(z {event['z']:g})"
    fault = {"data": ", for their data", "weights": "; their data are not at fault"}.get(event.get("fault", ""), "")
    return (
        f"rollback {event['rollback']}: {what}; back to step {event['back_to']}, learning rate "
        f"x {event['rate_factor']:g} from step {event['rate_from']}, steps {_steps(event)} are passed over{fault}"
        + (f" ({event['documents']})" if event["documents"] else "")
    )


def verdict(event: dict[str, Any]) -> str:
    """What came of showing the weights from before a spike its first batch again."""
    begun = f"rollback {event['rollback']}: by the weights from before it the data of step {event['onset']} are"
    if event["fault"] == "data":
        return f"{begun} at fault: left out are steps {_steps(event)}"
    return f"{begun} as good as others: steps {_steps(event)} are passed over, the rate stays low for a while"


def _not_finite(kind: str, onset: int, seen: int, steps: int) -> str:
    if kind == "weights":
        return f"the weights are not finite at step {onset}"
    return f"{steps} steps in a row were not finite, up to step {seen}"


def _steps(event: dict[str, Any]) -> str:
    return " and ".join(f"{first} to {last}" for first, last in event["passed_over"])


def _joined(ranges: Sequence[Sequence[int]]) -> list[list[int]]:
    """Ranges in order, those that touch made one, empty ones gone."""
    out: list[list[int]] = []
    for begin, end in sorted((a, b) for a, b in ranges if a < b):
        if out and begin <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([begin, end])
    return out
