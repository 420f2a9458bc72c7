"""The checks of bench/gpu.py: does this GPU compute what the CPU does, and does a run resume exactly on it.

Prints one line of JSON: {"checks": [[name, verdict, figures], ...]}. A check that fails stops no other.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.console import Reporter
from groundup.model import attention
from groundup.model.batch import Batch
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import PretrainSection
from groundup.train.loop import Job, train
from groundup.train.objective import language_modelling
from groundup.train.precision import autocast, compile_blocks

SHAPE = ModelConfig(
    vocab_size=512, d_model=256, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=512, context=384
)
VARIANTS: dict[str, dict[str, Any]] = {
    "documents": {},
    "windows": {"window": 100, "window_pattern": "LG"},
    "capped scores": {"attention_softcap": 20.0},
}
ROWS = 4


class Source:
    """Packed documents; a pure function of the step. Dies before step `until`."""

    def __init__(self, until: int | None = None, documents: int = 4) -> None:
        self.until, self.documents = until, documents

    def micro_batches(self, step: int) -> list[Batch]:
        if step == self.until:
            raise SystemExit
        return [batch(step, self.documents)]


def batch(step: int, documents: int = 4) -> Batch:
    generator, t = torch.Generator().manual_seed(step), SHAPE.context
    first = torch.randint(0, SHAPE.vocab_size, (ROWS, 1), generator=generator)
    tokens = (first + torch.randint(1, 4, (ROWS, 1), generator=generator) * torch.arange(t + 1)) % SHAPE.vocab_size
    numbers = torch.randint(0, documents, (ROWS, t), generator=generator).sort(1).values.int()
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), numbers, torch.arange(t).expand(ROWS, t))


def run(
    folder: str, device: str, precision: str, steps: int, until: int | None = None
) -> tuple[list[float], Job, dict[str, Any]]:
    """(losses, the job, its metrics) of a small run; `until`: it dies there, and has no metrics."""
    section = PretrainSection.model_validate(
        {"steps": steps, "batch_size": ROWS, "micro_batch_size": ROWS, "optimizer": "adamw", "learning_rate": 1e-3,
         "precision": precision, "compile": device == "cuda", "save_every": 3, "validate_every": 1000, "log_every": 1,
         "prefetch": 0}
    )  # fmt: skip
    model = init_weights(Transformer(SHAPE), 0)
    job = Job(
        "check", "key", model, language_modelling, Source(until), section, Path(folder), 0, Reporter(quiet=True), device
    )
    metrics: dict[str, Any] = {}
    with suppress(SystemExit):
        metrics = train(job)
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row], job, metrics


def apart(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) and a
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def as_on_a_cpu(device: str) -> tuple[bool, str]:
    """fp32: the losses of six steps on the GPU are the CPU's."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        here, _, metrics = run(one, device, "fp32", 6)
        cpu, _, _ = run(two, "cpu", "fp32", 6)
    far = apart(here, cpu)
    return far < 1e-3, f"{far:.1e} apart at most, losses {cpu[0]:.4f} to {cpu[-1]:.4f}; by {metrics['attention']}"


def gradients(model: Transformer, device: str, precision: str, given: Batch) -> list[Tensor]:
    model.zero_grad()
    with autocast(device, precision):
        language_modelling(model, given.to(device)).total.backward()
    return [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]


def far(found: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in zip(found, right, strict=True))


def compiled_attention(device: str, name: str) -> tuple[bool, str]:
    """bf16: gradients through compiled blocks err no more than 1.5 times as much as through dense masks, eagerly."""
    model = init_weights(Transformer(replace(SHAPE, **VARIANTS[name])), 0).to(device)
    right = gradients(copy.deepcopy(model).cpu(), "cpu", "fp32", batch(0))
    dense = far(gradients(model, device, "bf16", batch(0)), right)
    if device == "cuda":
        compile_blocks(model)
    attention.KERNELS.clear()
    found = far(gradients(model, device, "bf16", batch(0)), right)
    kernels = ", ".join(sorted(attention.KERNELS))
    good = found <= 1.5 * dense and (device == "cpu" or kernels == "flex")
    return good, f"off fp32 by {found:.1e}, dense masks by {dense:.1e}; by {kernels}"


def no_mask(device: str) -> tuple[bool, str]:
    """One document a row: no mask, so that flash attention runs."""
    model = init_weights(Transformer(SHAPE), 0).to(device)
    given = batch(0, documents=1)
    attention.KERNELS.clear()
    gradients(model, device, "bf16", given)
    kernels = ", ".join(sorted(attention.KERNELS))
    return device == "cpu" or kernels == "torch sdpa, causal", f"by {kernels}"


def resume(device: str, precision: str) -> tuple[bool, str]:
    """Killed before step 5 and started again: the weights of a run never stopped, to the bit."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            _, whole, _ = run(one, device, precision, 8)
            run(two, device, precision, 8, until=4)
            _, job, _ = run(two, device, precision, 8)
        pairs = list(zip(whole.model.parameters(), job.model.parameters(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
    off = max(float((a - b).abs().max()) for a, b in pairs)
    return all(torch.equal(a, b) for a, b in pairs), f"weights {off:.1e} apart at most"


def float8(device: str) -> tuple[bool, str]:
    """float8's losses over 20 steps are bf16's to 2%."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        eighth, _, _ = run(one, device, "float8", 20)
        half, _, _ = run(two, device, "bf16", 20)
    return apart(
        eighth, half
    ) < 0.02, f"{apart(eighth, half):.2%} apart at most, ends at {eighth[-1]:.4f}, {half[-1]:.4f}"


CHECKS: dict[str, Callable[[str], tuple[bool, str]]] = {
    "fp32 losses as on a CPU": as_on_a_cpu,
    **{f"bf16 attention, {name}": lambda device, name=name: compiled_attention(device, name) for name in VARIANTS},
    "one document a row": no_mask,
    "exact resume, fp32": lambda device: resume(device, "fp32"),
    "exact resume, bf16": lambda device: resume(device, "bf16"),
    "float8 beside bf16": float8,
}


def main() -> None:
    device, pipe = sys.argv[1], os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name, check in CHECKS.items():
        try:
            good, figures = check(device)
            found = [name, "passed" if good else "FAILED", figures]
        except Exception as error:
            traceback.print_exc()
            found = [name, "did not run", " ".join(f"{type(error).__name__}: {error}".split())[:200]]
        print(json.dumps({"check": found}), file=pipe, flush=True)  # one by one: the last may be late
    print(json.dumps({"over": True}), file=pipe, flush=True)


if __name__ == "__main__":
    main()
