"""One contestant of bench/gpu.py: trains, and runs a window of steps each time it is told to."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import train as bench  # bench/train.py: the shapes, the data's seed and the peers' models and optimizers

WARM = 3  # steps before the first window: compilation, first allocations
TRIES = (
    60  # of a step (who is late is ended) before the first window, where the others' first steps hold the GPU's memory
)


class Turn:
    """Windows: one step to get the memory back, `steps` that are timed, then the memory is handed back."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device, self.pipe = steps, device, os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints must not reach the pipe
        self.parameters, self.count, self.start = 0, 0, 0.0
        self.profiler: torch.profiler.profile | None = None

    def tell(self, **what: Any) -> None:
        print(json.dumps(what), file=self.pipe, flush=True)

    def before_step(self) -> None:
        """To be called before each step. Ends the process, by SystemExit, when it is told to."""
        place = self.count - WARM
        self.count += 1
        if place < 0:
            return
        place %= 1 + self.steps
        if place == 0:
            self.sync()
            if self.count == WARM + 1:
                self.tell(parameters=self.parameters)
            else:
                seconds = time.perf_counter() - self.start
                self.tell(seconds=seconds, **self.profiled(seconds))
            if self.device == "cuda":
                torch.cuda.empty_cache()
            word = sys.stdin.readline().strip()
            if word not in ("go", "profile"):
                raise SystemExit
            if word == "profile":
                kinds = torch.profiler.ProfilerActivity  # one of the two: to watch the CPU too slows its launches
                only = kinds.CUDA if self.device == "cuda" else kinds.CPU
                self.profiler = torch.profiler.profile(activities=[only])
        elif place == 1:
            self.sync()
            if self.profiler:
                self.profiler.start()
            self.start = time.perf_counter()

    def sync(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def profiled(self, seconds: float) -> dict[str, Any]:
        """The fifteen kernels (on a CPU: operators) that took most of the last window, with their shares."""
        if self.profiler is None:
            return {}
        self.profiler.stop()
        cuda, events = self.device == "cuda", self.profiler.key_averages()
        if cuda:  # kernels alone: the operators that launched them are told the same time once more
            events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
        times = [(e.key, float(e.self_device_time_total if cuda else e.self_cpu_time_total)) for e in events]
        self.profiler, total = None, sum(t for _, t in times) or 1.0
        times.sort(key=lambda item: -item[1])
        return {"kernels": [(key[:110], t / total) for key, t in times[:15]], "busy": total / 1e6 / seconds}


def data(size: bench.Size, n: int, packed: bool) -> list[tuple[torch.Tensor, ...]]:
    """n batches: (tokens (B, T + 1), documents (B, T), positions (B, T)). Rows count up by 1 to 7: something to learn.

    packed: documents of about an eighth of a row, on average; else one a row.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        first = torch.randint(0, size.vocabulary, (size.batch, 1), generator=generator)
        stride = torch.randint(1, 8, (size.batch, 1), generator=generator)
        rows = (first + stride * torch.arange(size.context + 1)) % size.vocabulary
        begins = torch.rand(size.batch, size.context, generator=generator) < (8 / size.context if packed else 0)
        begins[:, 0] = True
        places = torch.arange(size.context).expand(size.batch, -1)
        positions = places - torch.where(begins, places, 0).cummax(1).values
        found.append((rows, (begins.cumsum(1) - 1).int(), positions))
    return found


def groundup(size: bench.Size, name: str, compiled: bool, turn: Turn) -> None:
    """`train`, the loop of every stage, with its defaults and AdamW."""
    from groundup.console import Reporter
    from groundup.model import attention
    from groundup.model.batch import Batch
    from groundup.model.init import init_weights
    from groundup.model.transformer import Transformer
    from groundup.recipe.schema import GuardSection, PretrainSection
    from groundup.train.loop import Job, train
    from groundup.train.objective import language_modelling

    # Without the guard: at step 25 it asks for a checkpoint, of 12 GB at 1B, in the middle of a window.
    section = PretrainSection(
        steps=1_000_000, batch_size=size.batch, micro_batch_size=size.batch, optimizer="adamw", learning_rate=3e-4,
        warmup=0, precision="float8" if name.endswith("float8") else "bf16", compile=compiled, save_every=1_000_000,
        validate_every=1_000_000, log_every=1, prefetch=0, guard=GuardSection(enabled=False),
    )  # fmt: skip
    batches = data(size, turn.steps, name.endswith("packed"))

    class Source:
        def micro_batches(self, step: int) -> list[Batch]:
            turn.before_step()
            rows, documents, positions = batches[step % turn.steps]
            return [Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), documents, positions)]

    with tempfile.TemporaryDirectory() as folder:

        def run() -> None:
            torch.manual_seed(0)
            model = init_weights(Transformer(bench.config_of(size)), 0)
            turn.count, turn.parameters = 0, sum(p.numel() for p in model.parameters())
            job = Job("bench", "", model, language_modelling, Source(), section, Path(folder), 0, Reporter(quiet=True))
            job.device = turn.device
            train(job)

        with suppress(SystemExit):
            patiently(run, turn)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    last, kernels = losses[-turn.steps :], ", ".join(sorted(attention.KERNELS))
    turn.tell(peak=peak(turn.device), loss=sum(last) / len(last), trained=len(losses), attention=kernels)


def peer(size: bench.Size, name: str, compiled: bool, turn: Turn, path: str) -> None:
    """The loop that people write: forward, backward, clip, step; AdamW fused, bf16 by autocast, TF32 as nanoGPT."""
    if path:
        sys.path.insert(0, path)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    bench.stepper = stepper  # type: ignore[assignment]
    with torch.device(turn.device):
        step, turn.parameters = bench.MAKERS[name](size, "bf16", compiled)
    batches = [rows for rows, *_ in data(size, turn.steps, False)]
    try:
        while True:
            turn.before_step()
            patiently(lambda: step(batches[turn.count % turn.steps].to(turn.device)), turn)
    except SystemExit:
        turn.tell(peak=peak(turn.device))


def stepper(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[torch.Tensor], Any], autocast: bool,
    clip: bool = True,
) -> tuple[Callable[[torch.Tensor], None], int]:  # fmt: skip
    """As bench/train.py's, on the device that the rows are on."""

    def step(rows: torch.Tensor) -> None:
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=autocast):
            value = loss(rows)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()

    return step, sum(p.numel() for p in model.parameters())


def patiently(run: Callable[[], None], turn: Turn) -> None:
    """Before the first window, where another contestant holds the memory: once more a few seconds later."""
    for left in reversed(range(TRIES)):
        try:
            return run()
        except RuntimeError as error:  # libraries say in words of their own that a GPU is full
            full = any(word in str(error) for word in ("out of memory", "ALLOC_FAILED", "NOT_INITIALIZED"))
            if not left or turn.count > WARM or not full:
                raise
        gc.collect()  # the failed try's model
        torch.cuda.empty_cache()
        time.sleep(4)


def peak(device: str) -> int:
    from groundup.train.vitals import peak_memory

    return peak_memory(device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--path", default="")
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    turn, size = Turn(args.steps, args.device), bench.Size(*json.loads(args.shape))
    torch.manual_seed(0)
    try:
        if args.name.startswith("groundup"):
            groundup(size, args.name, args.compiled, turn)
        else:
            peer(size, args.name, args.compiled, turn, args.path)
    except Exception as error:
        traceback.print_exc()
        turn.tell(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


if __name__ == "__main__":
    main()
