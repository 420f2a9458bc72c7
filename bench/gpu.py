"""Training on one GPU, in one call: is it right, and how fast beside nanoGPT, litgpt, transformers (see bench/gpu.sh).

A plan of parts with a time limit each; a part that fails or runs out of time is a line of the table and stops nothing.
Contestants are processes of their own that take turns: a window of steps each, round after round. Between windows a
contestant hands the memory it does not hold back to the GPU, so that all of them fit. --dry runs the plan on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# name -> (layers, width, heads, gated hidden width, context, rows of a batch, vocabulary), as bench/train.py's `Size`
SIZES = {"124M": (12, 768, 12, 2048, 1024, 32, 50304), "1B": (16, 2048, 16, 5504, 2048, 8, 50304)}
DRY = {"124M": (2, 64, 4, 128, 64, 2, 256), "1B": (2, 96, 4, 256, 64, 2, 256)}
OURS = {
    "124M": ["groundup", "groundup packed"],
    "1B": ["groundup", "groundup float8", "groundup packed"],
}
PEERS = ["nanogpt", "litgpt", "transformers"]
# Seconds from the beginning by which a size's contestants are ready and its windows are over. bench/gpu.sh ends all
# that is left at 535.
LIMITS = {"124M": (200, 270), "1B": (420, 485)}
CHECK_UNTIL = 210


@dataclass
class Plan:
    """What a call does, and when it must be through with each part."""

    device: str
    sizes: dict[str, tuple[int, ...]]
    windows: int
    steps: int
    compiled: bool
    begun: float

    def left(self, until: float) -> float:
        """Seconds left until so many after the beginning."""
        return self.begun + until - time.time()


class Child:
    """A contestant, or the checks: a process that says one line of JSON when it is through with what it was told."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log, self.error, self.windows = name, log, "", list[dict[str, Any]]()
        self.told: dict[str, Any] = {}
        self.buffer = b""
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next line; on an error, silence or the end of the process: {}, and `error` says why."""
        assert self.process.stdout
        if self.error:
            return {}
        file, end = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
                return self.fail(f"out of time, after {max(seconds, 0):.0f} s more")
            if not (piece := os.read(file, 1 << 16)):
                return self.fail(f"it ended without a word: {self.last_line()}")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        what: dict[str, Any] = json.loads(line)
        self.error = what.get("error", "")
        if self.error:
            self.stop()
        return what

    def say(self, word: str, seconds: float) -> dict[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return self.fail(f"it ended: {self.last_line()}") if not self.error else {}
        return self.hear(seconds)

    def fail(self, why: str) -> dict[str, Any]:
        self.error = why
        self.stop()
        return {}

    def last_line(self) -> str:
        lines = [x.strip() for x in self.log.read_text(errors="replace").splitlines() if x.strip()]
        return lines[-1][:200] if lines else "nothing in its log"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def contestants(plan: Plan, size: str, args: argparse.Namespace) -> list[Child]:
    """All that run at a size, started at once: they compile side by side, and take turns from then on."""
    names = [*OURS[size], *(n for n in PEERS if n == "transformers" or getattr(args, n))]
    found = []
    for name in names:
        command = [str(Path(__file__).with_name("gpu_contestant.py")), name, "--device", plan.device]
        command += ["--shape", json.dumps(plan.sizes[size]), "--steps", str(plan.steps)]
        command += ["--path", (getattr(args, name, None) or "").split("@")[0]]
        command += ["--compiled"] if plan.compiled else []
        found.append(Child(name, command, args.logs / f"{size}-{name.replace(' ', '-')}.log"))
    return found


def race(plan: Plan, size: str, args: argparse.Namespace, checks: Child | None = None) -> list[Child]:
    """Windows in turn, as many rounds as there is time for; then where a step's time goes, and each one's last word.

    checks: run while the contestants compile, and are over before the first window.
    """
    ready, over = LIMITS[size]
    children = contestants(plan, size, args)
    for child in children:
        child.told = child.hear(plan.left(ready))
        print(f"{time.time() - plan.begun:4.0f} s  {size} {child.name}: {child.error or 'ready'}", flush=True)
    if checks:
        found = []
        while "check" in (line := checks.hear(plan.left(CHECK_UNTIL))):
            found.append(line["check"])
        late = [["the rest", "did not run", checks.error]] if checks.error else []
        checks.told = {"checks": [*found, *late]}
        checks.stop()

    def window(child: Child) -> float:
        """Seconds that one more of its windows may take: who is in one when time is over loses its last word."""
        longest = max((w["seconds"] for w in child.windows if "seconds" in w), default=1.0)
        return 1.5 * longest * (plan.steps + 1) / plan.steps

    ours = [child for child in children if child.name.startswith("groundup")]
    for _ in range(plan.windows):
        profiles = sum(window(child) for child in ours)
        for child in children:
            if not child.error and plan.left(over) > profiles + window(child):
                child.windows.append(child.say("go", plan.left(over)))
    for child in ours:
        if not child.error and plan.left(over) > window(child):
            child.told |= child.say("profile", plan.left(over))
    for child in children:
        child.told |= child.say("end", max(3.0, plan.left(over))) if not child.error else {}
        child.windows = [w for w in child.windows if "seconds" in w]  # not the one that it failed in
        child.stop()
    # Whatever goes wrong from here on, the figures are out
    print(json.dumps({child.name: [w["seconds"] for w in child.windows] for child in children}), flush=True)
    print(f"{time.time() - plan.begun:4.0f} s  {size}: over", flush=True)
    return children


def matmul_peak(plan: Plan) -> float:
    from groundup.plan.host import peak_flops

    return peak_flops(plan.device, "bf16") if plan.device == "cuda" else 1e11


def datasheet(plan: Plan) -> tuple[str, float]:
    """What the device is called, and its dense bf16 FLOP/s by its maker; NaN where that is not known."""
    from groundup.plan import devices

    if plan.device != "cuda":
        return "cpu", float("nan")
    name = torch.cuda.get_device_name(0)
    key = devices.reported_as(name)
    return name, devices.find(key).peak["bf16"] if key else float("nan")


def version(name: str, given: str | None) -> str:
    import groundup

    if name == "groundup":
        return groundup.__version__
    from train import commit

    try:
        return commit(name, given)
    except Exception as error:  # transformers without its metadata, or not there
        return type(error).__name__


def table(plan: Plan, size: str, children: list[Child], args: argparse.Namespace, peaks: tuple[float, float]) -> None:
    from train import Size, config_of

    from groundup.model.flops import train_flops_per_token

    shape = Size(*plan.sizes[size])
    flops = train_flops_per_token(config_of(shape))
    tokens = shape.batch * shape.context * plan.steps
    rates = {c.name: [tokens / w["seconds"] for w in c.windows] for c in children if c.windows}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max((rate for name, rate in medians.items() if name in PEERS), default=float("nan"))
    ours = medians.get("groundup", float("nan"))
    for child in children:
        of = version(child.name.split()[0], getattr(args, child.name, None))
        if child.name not in medians:
            print(f"| {size} {child.name} | {of} | did not run: {child.error} |")
            continue
        rate, told = medians[child.name], child.told
        loss = f"{told['loss']:.4f} after {told['trained']}" if "loss" in told else ""
        shares = f"{rate * flops / peaks[0]:.1%} | {rate * flops / peaks[1]:.1%}"
        packed = child.name.endswith("packed")  # its attention does less, on rows that the others do not get
        print(
            f"| {size} {child.name} | {of} | {told['parameters'] / 1e6:,.0f}M | {rate:,.0f} "
            f"| {min(rates[child.name]):,.0f} to {max(rates[child.name]):,.0f} ({len(rates[child.name])}) "
            f"| {'- | -' if packed else shares} | {told.get('peak', 0) / 2**30:,.1f} "
            f"| {'-' if packed else f'{rate / best:.2f}'} | {rate / ours:.2f} | {loss} | {told.get('attention', '')}"
            f"{' cut short: ' + child.error if child.error else ''} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU, nothing compiled")
    parser.add_argument("--sizes", default="124M,1B")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of a window that are timed")
    parser.add_argument("--begun", type=float, default=time.time(), help="when the call began, in seconds since 1970")
    parser.add_argument("--logs", type=Path, required=True, help="folder for what the contestants print")
    parser.add_argument("--nanogpt", metavar="PATH[@COMMIT]", help="a checkout; left out: not run")
    parser.add_argument("--litgpt", metavar="PATH[@COMMIT]")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.dry else "cpu"
    if device == "cpu" and not args.dry:
        raise SystemExit("torch finds no GPU here (look at nvidia-smi); --dry runs the plan on a CPU")
    plan = Plan(device, DRY if args.dry else SIZES, args.windows, args.steps, not args.dry, args.begun)
    if args.dry:
        plan.windows, plan.steps = min(args.windows, 2), min(args.steps, 2)
    args.logs.mkdir(parents=True, exist_ok=True)
    try:
        smi = "nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv,noheader"
        print(subprocess.run(smi.split(), capture_output=True, text=True, timeout=30).stdout.strip())
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"nvidia-smi: {error}")
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    checks = Child("checks", [str(Path(__file__).with_name("gpu_check.py")), device], args.logs / "checks.log")
    raced: dict[str, list[Child]] = {}
    for size in args.sizes.split(","):
        raced[size] = race(plan, size, args, None if raced else checks)
    try:
        name, peak = datasheet(plan)
        measured = matmul_peak(plan)  # last: nobody else is on the GPU
    except Exception as error:
        name, peak, measured = f"{device} ({type(error).__name__}: {error})", float("nan"), float("nan")
    print(f"\n{name}: bf16 peak {peak / 1e12:,.0f} TFLOP/s by its maker, {measured / 1e12:,.1f} measured here\n")
    print("| | version | parameters | tokens/s | low to high (windows) | MFU | of the measured peak | peak GiB "
          "| to the best peer | to groundup bf16 | loss | attention |")  # fmt: skip
    print("|" + " --- |" * 12)
    for size, children in raced.items():
        table(plan, size, children, args, (peak, measured))
    for line in checks.told.get("checks", [["all of them", "did not run", checks.error]]):
        print(f"| check: {line[0]} | {line[1]} | {line[2]} |")
    for size, children in raced.items():
        for child in children:
            if "kernels" in child.told:
                print(f"\n{size} {child.name}, busy {child.told['busy']:.0%} of the time; shares of that by kernel:")
                print("\n".join(f"  {share:6.1%}  {kernel}" for kernel, share in child.told["kernels"]))
    print(f"\n{time.time() - plan.begun:.0f} s in all")


if __name__ == "__main__":
    main()
