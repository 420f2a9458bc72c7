"""Where the time of a training step on the CPU goes: one step of the loop under torch's profiler, by part.

    python bench/breakdown.py                                               # compiled, bf16, 10.7M parameters
    GROUNDUP_NATIVE=0 GROUNDUP_MALLOC=0 python bench/breakdown.py --eager   # without the kernel and the allocator

The step is the loop's own (`train`), as in bench/train.py, whose sizes it has. The profiler itself costs a little: the
step's own time, without it, stands above the table.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from train import SIZES, config_of, tokens

from groundup.console import Reporter
from groundup.model.batch import Batch
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import PretrainSection
from groundup.train.loop import Job, train
from groundup.train.objective import language_modelling

WARM = 3


def part(name: str, shapes: list[list[int]], places: int) -> str:
    """The part of a step that an operator's own time belongs to; `places`: tokens of the batch."""
    low = name.lower()
    if "attention" in low:
        return "attention, backward" if low.endswith(("backward", "for_cpu_backward")) else "attention, forward"
    if low in ("aten::mm", "aten::addmm", "aten::linear", "aten::bmm", "groundup::linear", "groundup::matmul"):
        left = next((shape for shape in shapes if len(shape) > 1), [0])
        inner = left[-1] == places  # a sum over the tokens
        return "matmul, weight gradients" if inner else "matmul, forward and input gradients"
    if "compiledfxgraph" in low:
        return "fused kernels of compiled blocks (norms, rotation, activation, residual, casts)"
    if "adam" in low or "foreach" in low or "vector_norm" in low:
        return "optimizer and clipping"
    if low in ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone"):
        return "copies and casts"
    if any(word in low for word in ("softmax", "nll", "embedding")):
        return "loss and embedding"
    return "elementwise and the rest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="10.7M")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--steps", type=int, default=6, help="timed before the one that is profiled")
    parser.add_argument("--operators", type=int, default=0, help="list so many operators by shape, too")
    args = parser.parse_args()
    size, steps = SIZES[args.size], args.steps
    data = tokens(size, 4)
    documents = torch.zeros(size.batch, size.context, dtype=torch.int32)
    positions = torch.arange(size.context).expand(size.batch, size.context)
    recorded = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    begins, faults = list[float](), list[int]()

    class Source:
        def micro_batches(self, step: int) -> list[Batch]:
            if step <= WARM + steps:
                begins.append(time.perf_counter())
                faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            if step == WARM + steps:
                recorded.start()
            elif step > WARM + steps:
                recorded.stop()
                raise SystemExit
            rows = data[step % len(data)]
            return [Batch(rows[:, :-1], rows[:, 1:].contiguous(), documents, positions)]

    section = PretrainSection(
        steps=1_000_000, batch_size=size.batch, micro_batch_size=size.batch, optimizer="adamw", learning_rate=1e-3,
        precision=args.precision, compile=not args.eager, save_every=1_000_000, validate_every=1_000_000, prefetch=0,
    )  # fmt: skip
    model = init_weights(Transformer(config_of(size)), 0)
    with tempfile.TemporaryDirectory() as folder:
        job = Job("pretrain", "", model, language_modelling, Source(), section, Path(folder), 0, Reporter(quiet=True))
        with suppress(SystemExit):
            train(job)
    times = [b - a for a, b in zip(begins[WARM:], begins[WARM + 1 :], strict=False)]
    print(
        f"{args.size}, {args.precision}, {'eager' if args.eager else 'compiled'}, {torch.get_num_threads()} threads: "
        f"{1e3 * statistics.median(times):.0f} ms a step (least {1e3 * min(times):.0f}), "
        f"{(faults[-1] - faults[WARM]) / len(times):,.0f} page faults a step\n"
    )
    events = recorded.key_averages(group_by_input_shape=True)
    parts: dict[str, float] = {}
    for event in events:
        name = part(event.key, event.input_shapes, size.batch * size.context)
        parts[name] = parts.get(name, 0.0) + event.self_cpu_time_total / 1e3
    total = sum(parts.values())
    print("| part | ms | share |\n| --- | --- | --- |")
    for name, spent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {spent:.0f} | {spent / total:.0%} |")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[: args.operators]:
        spent, shapes = event.self_cpu_time_total / 1e3, str(event.input_shapes)[:90]
        print(f"{spent:9.2f} ms {event.count:4d} {event.key[:60]:60} {shapes}")


if __name__ == "__main__":
    main()
