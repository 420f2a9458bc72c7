"""Who checks the checks: every planted bug must be caught, every healthy configuration must pass, at any seed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from groundup.errors import UserError
from groundup.verify import (
    faults,  # noqa: F401  (importing it registers every fault)
    healthy,
)
from groundup.verify.fault import FAULTS, Fault
from groundup.verify.run import run_checks

if TYPE_CHECKING:
    from rich.table import Table

OnDone = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Planted:
    """One planted bug. caught_by: checks that failed on it, as they should; missed: those that should have."""

    id: str
    bug: str
    caught_by: list[str]
    missed: list[str]
    seconds: float
    skipped: str | None = None  # why it could not be planted here (an extra that is not installed)

    @property
    def caught(self) -> bool:
        return bool(self.caught_by) and not self.missed


@dataclass(frozen=True)
class Sound:
    """One healthy configuration at one seed. alarms: what failed although nothing is wrong."""

    name: str
    seed: int
    checks: int
    alarms: list[str]
    seconds: float


def plant(fault: Fault) -> Planted:
    """Plant one bug and run the checks that must notice. A check that breaks off instead of measuring has not."""
    begun = time.perf_counter()
    try:
        with fault.plant():
            results = run_checks(fault.target(), only=fault.caught_by)
    except UserError as reason:
        return Planted(fault.id, fault.bug, [], [], 0.0, str(reason))
    caught = [r.id for r in results if r.failed and (r.measured is not None or r.bound is not None)]
    missed = [f"{r.id}: measured {r.measured}, bound {r.bound}; {r.note}" for r in results if r.id not in caught]
    return Planted(fault.id, fault.bug, caught, missed, round(time.perf_counter() - begun, 2))


def examine(name: str, seed: int = 0, only: Iterable[str] | None = None) -> Sound:
    """Run every check on one healthy configuration."""
    begun = time.perf_counter()
    results = run_checks(healthy.subject(healthy.HEALTHY[name]), only=only, seed=seed)
    alarms = [f"{r.id}: measured {r.measured} {r.direction} {r.bound}; {r.note}" for r in results if r.failed]
    looked = sum(r.skipped is None for r in results)
    return Sound(name, seed, looked, alarms, round(time.perf_counter() - begun, 2))


def self_test(sample: int = 1, seeds: int = 0, jobs: int = 1, on_done: OnDone | None = None) -> dict[str, Any]:
    """Every `sample`-th planted bug, every `sample`-th healthy configuration, and `seeds` seeds of the base.

    jobs: processes; each plants its bugs in a memory of its own.
    {"planted", "caught", "faults": [...], "healthy", "false_alarms", "configurations": [...], "seeds",
    "seed_false_alarms", "runs": [...], "skipped": [...], "seconds"}.
    """
    begun = time.perf_counter()
    work: list[tuple[str, str, int]] = [("fault", id, 0) for id in list(FAULTS)[::sample]]
    work += [("healthy", name, 0) for name in list(healthy.HEALTHY)[::sample]]
    work += [("seed", "base", seed) for seed in range(1, seeds + 1)]
    done: list[Planted | Sound] = []
    for n, one in enumerate(_all(work, jobs), 1):
        done.append(one)
        if on_done is not None:
            kind, name, seed = work[n - 1]
            on_done(n, len(work), f"seed {seed}" if kind == "seed" else name)
    planted = [one for one in done if isinstance(one, Planted)]
    sound = [one for one in done if isinstance(one, Sound)]
    looked = [one for one in planted if one.skipped is None]
    configurations, runs = [s for s in sound if not s.seed], [s for s in sound if s.seed]
    return {
        "planted": len(looked),
        "caught": sum(p.caught for p in looked),
        "healthy": len(configurations),
        "false_alarms": sum(len(s.alarms) for s in configurations),
        "seeds": len(runs),
        "seed_false_alarms": sum(len(s.alarms) for s in runs),
        "seconds": round(time.perf_counter() - begun, 1),
        "faults": [asdict(p) for p in looked],
        "configurations": [asdict(s) for s in configurations],
        "runs": [asdict(s) for s in runs],
        "skipped": [{"id": p.id, "reason": p.skipped} for p in planted if p.skipped is not None],
    }


def _all(work: list[tuple[str, str, int]], jobs: int) -> Iterator[Planted | Sound]:
    """The results in the order of the work, as they come."""
    if jobs == 1:
        yield from map(_one, work)
        return
    # Fresh interpreters: torch's threads do not outlive a fork.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_one, work, chunksize=4)


def _one(work: tuple[str, str, int]) -> Planted | Sound:
    kind, name, seed = work
    return plant(FAULTS[name]) if kind == "fault" else examine(name, seed)


def passed(found: dict[str, Any]) -> bool:
    """Whether everything was caught, and nothing was alarmed by what is sound."""
    return bool(found["planted"] == found["caught"] and not found["false_alarms"] + found["seed_false_alarms"])


def table(found: dict[str, Any]) -> Table:
    """Planted bugs, one a row: by which checks each was caught, in how many seconds; then every false alarm."""
    from rich.markup import escape
    from rich.table import Table

    out = Table("", "planted bug", "caught by", "seconds", box=None, pad_edge=False)
    out.columns[3].justify = "right"
    for one in found["faults"]:
        mark = "[green]caught[/]" if one["caught_by"] and not one["missed"] else "[bold red]MISSED[/]"
        by = escape(", ".join(one["caught_by"])) + "".join(f"\n[red]{escape(m)}[/]" for m in one["missed"])
        out.add_row(mark, one["id"], by, f"{one['seconds']:.2f}")
    for one in [*found["configurations"], *found["runs"]]:
        for alarm in one["alarms"]:
            name = escape(f"{one['name']}, seed {one['seed']}")
            out.add_row("[bold red]FALSE ALARM[/]", name, f"[red]{escape(alarm)}[/]", f"{one['seconds']:.2f}")
    for one in found["skipped"]:
        out.add_row("[dim]skip[/]", one["id"], f"[dim]{escape(one['reason'])}[/]", "")
    return out


def summary(found: dict[str, Any]) -> str:
    """One line that counts."""
    parts = [
        f"{found['caught']} of {found['planted']} planted bugs caught",
        f"{found['false_alarms']} false alarms over {found['healthy']} healthy configurations",
    ]
    if found["seeds"]:
        parts.append(f"{found['seed_false_alarms']} over {found['seeds']} seeds")
    return ", ".join(parts) + f", in {found['seconds']:.0f} s"
