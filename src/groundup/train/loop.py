"""THE loop. Pretraining, SFT, DPO and GRPO all run here; they differ in objective and batches alone."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from groundup.data.prefetch import prefetching
from groundup.errors import Interrupted, UserError
from groundup.model.attention import KERNELS
from groundup.model.storage import load_tensors
from groundup.model.transformer import Transformer
from groundup.record.metrics import MetricsLog
from groundup.train.allocator import kept_memory
from groundup.train.bad_batches import keep_batches
from groundup.train.checkpoint import Checkpoint, checkpoints, newest, unsound, weights
from groundup.train.ema import Average
from groundup.train.guard import Spike, newest_before, told
from groundup.train.job import Job as Job
from groundup.train.meter import Meter as Meter
from groundup.train.objective import with_router_loss
from groundup.train.optim import Optimizers
from groundup.train.precision import autocast, compile_blocks, use_float8
from groundup.train.recompute import recompute_blocks
from groundup.train.rng import device_states, set_device_states
from groundup.train.saver import Saver
from groundup.train.schedule import rate_at
from groundup.train.signals import interruptible
from groundup.train.vitals import Probe, Vitals


def train(job: Job) -> dict[str, Any]:
    """Run `job` to its last step, from its newest good checkpoint if there is one; returns the stage's metrics.

    Exact on a CPU: killed at any moment and started again, it ends with the same bytes as a run never stopped.
    Raises Interrupted (state saved) on SIGINT or SIGTERM, UserError when the loss stays non-finite, or a weight is.
    """
    section, model = job.section, job.model.to(job.device)
    steps = int(section.steps)
    torch.manual_seed(job.seed)
    optimizers = Optimizers(model, section)
    start, state = _resume(job, optimizers)
    if section.precision == "float8":
        use_float8(model, job.device)
    recompute_blocks(model, section.recompute)
    if section.compile:
        compile_blocks(model)
        if isinstance(reference := getattr(job.objective, "reference", None), Transformer):
            compile_blocks(reference)  # other kernels round otherwise: in bf16 the margin would not start at 0
    KERNELS.clear()
    log = MetricsLog(job.folder, trackers=job.trackers)
    log.truncate_after(start)
    meter = Meter(job, state)
    guard = meter.guard
    for event in guard.course.events:
        job.warn(f"before this start: {told(event)}")
    guard.write(job.folder)
    with (
        kept_memory(job.device),
        prefetching(job.source, section.prefetch, steps) as meter.loader,
        interruptible(job.reporter.say) as requests,
        Saver(job.folder / "checkpoints", section, job.warn) as saver,
        job.reporter.bar(job.name, steps, start, "steps") as bar,
        log,
    ):
        done = start
        while done < steps:
            step, row, vitals = done, None, None
            if not guard.passes_over(step):
                vitals = _vitals(job, step, steps, meter)
                try:
                    row = _one_step(job, optimizers, step, steps, meter, vitals)
                except Exception:
                    if not requests.stop():
                        raise
                    # A terminal's Ctrl-C reaches the whole group: the compiler's children die, and the step with them.
                    raise Interrupted(
                        f"{job.name}: stopped in step {step + 1}, while it was compiled; the same command goes on from "
                        "the last checkpoint"
                    ) from None
                if row["skipped"]:
                    _quietly(job, lambda step=step, row=row: keep_batches(job, step, meter.batches, row))  # type: ignore[misc]
                if (spike := guard.look(step, row)) is not None:
                    done, optimizers = _roll_back(job, spike, meter, log, saver)
                    continue
            done = step + 1
            if row is not None and (done % section.log_every == 0 or done == steps or row["skipped"]):
                log.append({"step": done, **row, **guard.row(step), **meter.speed()})
            score: float | None = None  # of a validation at this very step
            if job.validate and (done % section.validate_every == 0 or done == steps):
                with meter.clock("validation"):
                    meter.validation = _quietly(job, job.validate, optimizers.average)
                score = job.score(meter.validation) if job.score else None
                log.append({"step": done, **meter.validation})
            # While the loss is too high the guard has the word: what it undoes must not stop the run.
            if row and vitals is not None and job.watch is not None and not guard.high and not row.get("overflow"):
                log.append({"step": done, **vitals.numbers(), **vitals.layers()})
                meter.looks.append({"step": done, **_finite({**row, **meter.validation})})
                try:
                    job.watch(vitals)
                except Exception:
                    with suppress(NotFinite):  # the reason that the watch gives is the better one
                        _save(job, optimizers, done, meter, saver, score, wait=True)  # whoever watches remembers why
                    raise
            sample_every = getattr(section, "sample_every", None)
            if job.sample and sample_every and (done % sample_every == 0 or done == steps):
                with meter.clock("sampling"):
                    _quietly(job, lambda done=done: job.sample(done), optimizers.average)  # type: ignore[misc]
            bar.update(done, meter.note(row) if row is not None else "passed over")
            asked = requests.stop()  # once: a signal between two looks would claim a save that was not made
            save_now = requests.take_save() or (row is not None and guard.wants_checkpoint)
            if saver.due(done, steps, time.monotonic(), score) or asked or save_now:
                with meter.clock("saving"):
                    _save(job, optimizers, done, meter, saver, score, wait=asked or done == steps)
            if asked:
                raise Interrupted(_saved_at(job, done))
        try:
            guard.close(steps)
        except UserError as error:
            raise UserError(f"{job.name}: {error}") from None
        if requests.stop():  # asked for during the last save: the stages after this one must not begin
            raise Interrupted(_saved_at(job, done))
    if optimizers.average is not None:
        optimizers.average.settle()  # checkpoints have the weights of the last step, the stage's model the average
    kernels = {"attention": ", ".join(sorted(KERNELS))} if KERNELS else {}  # none where no step was left to take
    return {**meter.summary(steps), "checkpoint_stall": saver.share(), **kernels}


def _saved_at(job: Job, done: int) -> str:
    return f"{job.name}: saved at step {done} of {int(job.section.steps)}; run the same command again to go on"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """What can stand in a checkpoint's JSON."""
    return {name: value for name, value in row.items() if math.isfinite(value)}


def _vitals(job: Job, step: int, steps: int, meter: Meter) -> Vitals | None:
    """An empty sheet for a step whose vital signs are taken: the first, the last, and where validation is run."""
    done = step + 1
    if job.watch is None or not (done in (1, steps) or done % job.section.validate_every == 0):
        return None
    return Vitals(job.name, done, steps, {}, job.facts, meter.looks)


def _one_step(
    job: Job, optimizers: Optimizers, step: int, steps: int, meter: Meter, vitals: Vitals | None = None
) -> dict[str, Any]:
    """Forward and backward over all micro-batches, one division, one clip, one update: all or nothing."""
    section, model = job.section, job.model
    model.train()
    total, weight, tokens, real, scored = 0.0, 0, 0, 0, 0
    probe, batch = Probe(model) if vitals is not None else None, None
    scaler = getattr(optimizers, "scaler", None)
    sums: dict[str, float] = {}
    # GRPO samples here: compiled for every cache length otherwise
    with torch.compiler.set_stance("force_eager"), meter.clock("batches"):
        meter.batches = meter.loader.micro_batches(step)
    for batch in meter.batches:
        with meter.clock("forward"), autocast(job.device, section.precision):
            batch = batch.to(job.device)
            loss = with_router_loss(model, job.objective(model, batch))
        if loss.weight == 0:
            continue  # nothing scored here: no gradient, and no weight in the mean
        with meter.clock("backward"):
            (loss.total if scaler is None else loss.total * scaler.scale).backward()
            total += loss.total.item()
        weight += loss.weight
        tokens += batch.tokens.numel()
        if probe:
            real, scored = real + int((batch.documents >= 0).sum()), scored + batch.scored
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    if weight == 0 and not getattr(job.source, "may_be_empty", False):
        raise UserError(
            f"{job.name}: step {step + 1} has no scored token: a mean over none would print 0.0 and hide it; "
            "is every answer longer than the context, or every mask empty?"
        )
    divisor = max(weight, 1) * (1.0 if scaler is None else scaler.scale)
    if probe:
        probe.before(divisor)
    shape = (section.schedule, section.warmup, section.decay, section.min_rate, section.decay_shape)
    share = rate_at(step, steps, *shape) * meter.guard.factor(step)
    with meter.clock("optimizer"):
        norm, finite = clip_gradients(list(optimizers.parameters()), divisor, section.grad_clip)
        scored_and_finite = math.isfinite(total) and weight > 0
        stepped = finite and scored_and_finite
        # fp16 alone: the scale was too large for this step's gradients. It is halved, and the run is well.
        overflow = scaler is not None and scored_and_finite and scaler.update(finite)
        if stepped:
            optimizers.step(share)
        optimizers.zero_grad()
        overload = model.end_step(stepped)
    meter.count(tokens, weight, stepped or weight == 0 or overflow, step)
    mean = total / weight if weight else math.nan  # a GRPO step without signal has no loss; 0.0 would look like one
    row = {
        "loss": mean,
        "grad_norm": norm,
        "learning_rate": share * float(section.learning_rate),
        "scored": weight,
        "skipped": int(not stepped and weight > 0 and not overflow),
        **({} if scaler is None else {"loss_scale": scaler.scale, "overflow": int(overflow)}),
        **{k: v / max(weight, 1) for k, v in sums.items()},
        **({} if overload is None else {"expert_load": overload}),
        **getattr(job.source, "statistics", {}),
    }
    if probe and vitals is not None:
        vitals.row = row
        vitals.scored_share = scored / real if real else math.nan
        with autocast(job.device, section.precision):
            probe.after(vitals, batch)
    return row


def clip_gradients(parameters: list[torch.nn.Parameter], weight: float, limit: float) -> tuple[float, bool]:
    """Divide the summed gradients by `weight` (times fp16's scale) and clip their global norm to `limit`, in place.

    Returns the norm before clipping, and whether it is finite. Division and clip are one multiplication, after
    the last micro-batch: clipping each of them would change the direction of the sum.
    """
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0, True
    norm = float(torch.nn.utils.get_total_norm(gradients)) / weight
    if math.isfinite(norm):
        torch._foreach_mul_(gradients, min(1.0, limit / (norm + 1e-6)) / weight)
    return norm, math.isfinite(norm)


def _quietly(job: Job, call: Callable[[], Any], average: Average | None = None) -> Any:
    """Run a validation or sampling callback: eval mode, no compilation, and no trace in the RNG.

    average: of the weights, which the callback then sees.
    """
    rng, devices = torch.get_rng_state(), device_states()
    job.model.eval()
    try:
        averaged = nullcontext() if average is None else average.in_place()
        with torch.compiler.set_stance("force_eager"), torch.no_grad(), averaged:
            return call()
    finally:
        torch.set_rng_state(rng)
        set_device_states(devices)
        job.model.train()


def _resume(job: Job, optimizers: Optimizers) -> tuple[int, dict[str, Any]]:
    folder = job.folder / "checkpoints"
    checkpoint, passed = newest(folder)
    for line in passed:
        job.warn(line)
    if checkpoint is None:
        return _begin(job, optimizers)
    if checkpoint.state["key"] != job.key:
        job.reporter.say(
            f"{job.name}: the recipe or an earlier stage changed since the checkpoints were made; starting over"
        )
        shutil.rmtree(folder)
        return _begin(job, optimizers)
    _restore(job, optimizers, checkpoint)
    job.reporter.say(f"{job.name}: resuming from step {checkpoint.step}")
    return checkpoint.step, checkpoint.state


def _begin(job: Job, optimizers: Optimizers) -> tuple[int, dict[str, Any]]:
    """At step 0, or after another run's last stable step where this one only cools down. Errors: UserError."""
    if job.start is None:
        return 0, {}
    kinds, found = optimizers.kinds(), {name.partition("/")[0] for name in job.start.optimizer}
    if kinds != found:
        raise UserError(
            f"{job.name}: cooldown_from has the state of {', '.join(sorted(found))}, the recipe asks for "
            f"{', '.join(sorted(kinds))}: give the optimizer, precision and ema of the run that it comes from"
        )
    _restore(job, optimizers, job.start)
    job.reporter.say(f"{job.name}: cooling down from step {job.start.step}")
    return job.start.step, job.start.state


def _restore(job: Job, optimizers: Optimizers, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors back: at a resume, and when the guard rolls back in the middle of a run."""
    load_tensors(job.model, checkpoint.model, str(job.folder / "checkpoints"))
    optimizers.load_tensors(checkpoint.optimizer)
    torch.set_rng_state(checkpoint.rng)
    set_device_states(checkpoint.device_rng)
    if checkpoint.source:
        job.source.load_state(checkpoint.source)  # type: ignore[attr-defined]


def _roll_back(job: Job, spike: Spike, meter: Meter, log: MetricsLog, saver: Saver) -> tuple[int, Optimizers]:
    """Go back to the newest checkpoint from before the spike, as a resume would; (its step, new optimizers).

    It is saved again with what the guard decided, which drops the later ones: a run killed before that is done
    resumes from what is there, meets the spike again and decides the same. Errors: UserError when the guard gives up,
    or no such checkpoint is left.
    """
    saver.wait()
    guard, what = meter.guard, job.describe(spike.onset) if job.describe else ""
    try:
        guard.refuse_endless_tries(spike, what)
    except UserError as error:
        raise UserError(f"{job.name}: {error}") from None
    checkpoint = newest_before(job.folder / "checkpoints", spike.begin)
    if checkpoint is None and job.start is not None and job.start.step <= spike.begin:
        checkpoint = job.start
    if checkpoint is None:
        raise UserError(
            f"{job.name}: {spike.said()}, and no sound checkpoint of at most {spike.begin} steps is left to go back "
            "to. Lower the learning rate or raise warmup; if that loss is as it should be, set guard.enabled: false"
        )
    job.warn(told(guard.decide(spike, checkpoint.step, what)))
    optimizers = Optimizers(job.model, job.section)
    _restore(job, optimizers, checkpoint)
    meter.undo(checkpoint.state)
    log.truncate_after(checkpoint.step)
    guard.write(job.folder)
    _save(job, optimizers, checkpoint.step, meter, saver, checkpoint.score, wait=True)
    return checkpoint.step, optimizers


class NotFinite(UserError):
    """Weights or optimizer state hold NaN or infinity."""


def _save(
    job: Job,
    optimizers: Optimizers,
    done: int,
    meter: Meter,
    saver: Saver,
    score: float | None = None,
    wait: bool = False,
) -> None:
    """wait: until it is on the disk; otherwise it is written while training goes on.

    Errors: NotFinite. Nothing is written then: the rotation would delete the last checkpoint that is any good.
    """
    state, folder = getattr(job.source, "state", None), job.folder / "checkpoints"
    checkpoint = Checkpoint(
        step=done,
        model=weights(job.model),
        optimizer=optimizers.tensors(),
        source=state() if state else {},
        rng=torch.get_rng_state(),
        device_rng=device_states(),
        state={"key": job.key, **job.hashes, **meter.state()},
    )
    if name := unsound(checkpoint):
        with suppress(UserError):  # of a save under way; this error is the one to tell
            saver.wait()
        kept = checkpoints(folder)
        raise NotFinite(
            f"{job.name}: after step {done} {name} holds numbers that are not finite, so nothing was saved"
            + (f"; the newest checkpoint, {kept[-1].name}, is kept" if kept else "")
            + ". Lower the learning rate or use precision: fp32; if the same command does not come to it again, "
            "this machine's memory is at fault"
        )
    saver.save(checkpoint, score, wait)
