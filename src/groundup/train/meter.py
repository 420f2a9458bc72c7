"""What a run has seen so far: tokens, time and where it went, speed, steps that were not finite."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from groundup.console import duration
from groundup.data.prefetch import Prefetched
from groundup.model.batch import Batch
from groundup.model.flops import train_flops_per_token
from groundup.train.advice import LOW_MFU, LOW_MFU_AFTER, low_mfu
from groundup.train.clock import Clock, shares
from groundup.train.guard import Guard, planned_changes
from groundup.train.job import Job
from groundup.train.objective import BatchSource
from groundup.train.trial import finite_weights, loss_now
from groundup.train.vitals import peak_memory


class Meter:
    """Counts tokens and time; knows when the run has gone bad. Its counts survive a resume."""

    def __init__(self, job: Job, state: dict[str, Any]) -> None:
        self.job = job
        self.before: float = state.get("seconds", 0.0)
        self.loader: BatchSource = job.source  # `train` puts threads before it
        self.batches: list[Batch] = []  # of the last step
        trial = partial(loss_now, job) if getattr(job.source, "pure", False) else None
        self.guard = Guard(
            job.section.guard, state.get("guard", {}), planned_changes(job.source), trial, self._found_out
        )
        self.clock = Clock(job.device)
        self.advised = False  # MFU was looked at
        self.spent: dict[str, float] = {}  # seconds by part, from the second row on: compiling is not what a run is
        self.spent_from: tuple[float, int] | None = None  # (when, tokens) at the first row
        self.waits: tuple[float, float] = (0.0, 0.0)  # (seconds waited for batches, seconds in all) at the last row
        self.begun = time.monotonic()
        self.done = 0  # steps, at the last `count`
        self.flops = train_flops_per_token(job.model.config)
        self.undo(state)

    def undo(self, state: dict[str, Any]) -> None:
        """Counts as they were at a checkpoint; time is not turned back."""
        self.tokens: int = state.get("tokens", 0)
        self.scored: int = state.get("scored", 0)
        self.skipped: int = state.get("skipped", 0)
        self.bad: int = state.get("bad", 0)  # non-finite steps in a row
        self.validation: dict[str, float] = state.get("validation", {})
        # Rows of the steps whose vital signs were taken. A copy: one state may be gone back to twice.
        self.looks: list[dict[str, Any]] = list(state.get("looks", []))
        self.recent: list[tuple[float, int]] = [(time.monotonic(), self.tokens)]
        self.spent, self.spent_from = {}, None
        self.guard.undo(state.get("guard", {}))

    def count(self, tokens: int, scored: int, stepped: bool, step: int) -> None:
        self.tokens += tokens
        self.scored += scored
        self.recent = [*self.recent[-20:], (time.monotonic(), self.tokens)]
        self.done = step + 1
        if stepped:
            self.bad = 0
            return
        self.skipped += 1
        self.bad += 1
        batch = f" ({self.job.describe(step)})" if self.job.describe else ""
        self.job.warn(f"step {step + 1} is not finite; skipped, weights untouched{batch}")
        # Too many are the guard's: it has somewhere to go back to, or it raises. So are weights that are not finite:
        # no later step can be.
        if self.bad >= self.job.section.max_bad_steps:
            self.guard.lost = ("steps", self.bad)
        elif not finite_weights(self.job.model):
            self.guard.lost = ("weights", self.bad)

    def _found_out(self, text: str) -> None:
        """By the guard, after the rollback that it is about was entered."""
        self.job.warn(text)
        self.guard.write(self.job.folder)

    def rate(self) -> float:
        (t0, n0), (t1, n1) = self.recent[0], self.recent[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    def speed(self) -> dict[str, float]:
        out = {"tokens": self.tokens, "tokens_per_second": round(self.rate(), 1), "seconds": round(self.seconds(), 2)}
        out["eta"] = round(self.eta(), 1)
        out["memory"] = peak_memory(self.job.device)
        if self.job.peak_flops:
            out["mfu"] = round(self.rate() * self.flops / self.job.peak_flops, 4)
        if isinstance(self.loader, Prefetched) and self.loader.pure:
            before, self.waits = self.waits, (self.loader.waited, time.monotonic() - self.begun)
            out["loader_wait"] = round((self.waits[0] - before[0]) / max(self.waits[1] - before[1], 1e-9), 6)
        spent = self.clock.take()
        self._look_at_mfu(spent)
        return {**out, **shares(spent)}

    def _look_at_mfu(self, spent: dict[str, float]) -> None:
        """One warning a run where MFU stays low, with what the time went to."""
        if self.advised or not self.job.peak_flops:
            return
        now = time.monotonic()
        if self.spent_from is None:
            self.spent_from = (now, self.tokens)
            return
        self.spent = {part: self.spent.get(part, 0.0) + seconds for part, seconds in spent.items()}
        seconds, tokens = now - self.spent_from[0], self.tokens - self.spent_from[1]
        mfu = tokens / max(seconds, 1e-9) * self.flops / self.job.peak_flops
        if seconds >= LOW_MFU_AFTER:
            self.advised = True
            if mfu < LOW_MFU:
                pure = bool(getattr(self.job.source, "pure", False))
                self.job.warn(low_mfu(mfu, seconds, self.spent, self.job.section, pure))

    def eta(self) -> float:
        """Seconds to the last step at the pace of the last twenty, validations and saves among them."""
        (t0, _), (t1, _) = self.recent[0], self.recent[-1]
        return (t1 - t0) / max(1, len(self.recent) - 1) * (int(self.job.section.steps) - self.done)

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.begun

    def note(self, row: dict[str, Any]) -> str:
        parts = [f"loss {row['loss']:.4f}"]
        parts += [f"{name} {row[name]:.3f}" for name in ("reward", "accuracy") if name in row]
        if "bits_per_byte" in self.validation:
            parts.append(f"bpb {self.validation['bits_per_byte']:.4f}")
        parts.append(f"{self.rate():,.0f} tok/s")
        if self.job.peak_flops:
            parts.append(f"MFU {100 * self.rate() * self.flops / self.job.peak_flops:.0f}%")
        return "  ".join(parts)

    def state(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "scored": self.scored,
            "skipped": self.skipped,
            "bad": self.bad,
            "seconds": self.seconds(),
            "validation": self.validation,
            "looks": self.looks,
            "guard": self.guard.state(),
        }

    def summary(self, steps: int) -> dict[str, Any]:
        seconds = self.seconds()
        out = {
            "steps": steps,
            "tokens": self.tokens,
            "scored_tokens": self.scored,
            "skipped_steps": self.skipped,
            "train_seconds": round(seconds, 1),
            **self.guard.summary(steps),
            **self.validation,
        }
        if isinstance(self.loader, Prefetched) and self.loader.pure:
            out["loader_wait"] = round(self.loader.waited / max(time.monotonic() - self.begun, 1e-9), 6)
        if seconds > 0:
            out["tokens_per_second"] = round(self.tokens / seconds, 1)
            if self.job.peak_flops:
                out["mfu"] = round(self.tokens / seconds * self.flops / self.job.peak_flops, 4)
        self.guard.write(self.job.folder)  # the run may end among steps that are left out
        self.job.reporter.say(f"{self.job.name}: {steps} steps, {self.tokens:,} tokens in {duration(seconds)}")
        return out
