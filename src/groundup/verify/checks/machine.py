"""What stands between the arithmetic and the machine: the compiler, and the rate that a device is measured by."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from groundup.errors import UserError
from groundup.plan import devices
from groundup.train import loop, precision
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.train import gradient_tolerance
from groundup.verify.subject import Subject


@check(
    "compiled-equals-eager",
    "invariance",
    "train",
    bug="The compiled model computes another loss or gradient than the one that was written: a kernel is wrong.",
    remedy="Train with compile: false; update torch, and report the block that differs to it.",
    reference="pytorch/pytorch issues 113180, 132301, 172062",
)
def compiled_equals_eager(subject: Subject) -> Measurement:
    """Relative distance of the gradient of a compiled micro model from the eager one's, on packed documents.

    Fused kernels sum in another order: rounding of a pass forward and back (`gradient_tolerance`), twice, since both
    round. Only where the recipe has compile: true (or `run` has decided so); takes as long as the compiler does.
    """
    if subject.recipe.pretrain.compile is not True:
        raise NotApplicable("the recipe does not compile")
    gradients, losses = [], []
    for compiled in (False, True):
        model = subject.build_model(dropout=0.0)
        if compiled:
            precision.compile_blocks(model)
        gradient, loss = rig.recorded_gradient(subject, model, [rig.random_batch(subject, rows=4, length=24, seed=93)])
        gradients.append(gradient)
        losses.append(loss)
    note = f"loss {losses[0]:.6f} eager, {losses[1]:.6f} compiled"
    return Measurement(rig.apart(gradients[1], gradients[0]), 2 * gradient_tolerance(subject), note)


@check(
    "earlier-shapes-are-forgotten",
    "invariance",
    "train",
    bug="A run is compiled for variable sizes, as another model ran in its process: resumed, it ends with other bytes.",
    remedy="Forget what was compiled before (torch.compiler.reset) when a model is compiled: train/precision.py.",
    reference="pytorch/pytorch issues 114516, 106466",
)
def earlier_shapes_are_forgotten(subject: Subject) -> Measurement:
    """Graphs of a micro model whose sizes are variables, after another one of other sizes ran in this process.

    A size that the compiler has seen change is a variable from then on: other kernels, slower ones, and a run that
    was resumed (whose process saw one size alone) is not the run that was not. Only where the recipe compiles.
    """
    if subject.recipe.pretrain.compile is not True:
        raise NotApplicable("the recipe does not compile")
    variable: list[bool] = []

    def backend(graph: torch.fx.GraphModule, given: list[Any]) -> Any:
        variable.append(any(isinstance(x, torch.SymInt) for x in given))
        return graph.forward

    compiled = nn.Module.compile
    try:
        nn.Module.compile = lambda module: compiled(module, backend=backend)  # type: ignore[assignment, misc]
        for rows, length in ((4, 24), (3, 16)):
            model = subject.build_model(dropout=0.0)
            precision.compile_blocks(model)
            model(rig.random_batch(subject, rows=rows, length=length, seed=94).tokens)
    finally:
        nn.Module.compile = compiled  # type: ignore[method-assign]
        torch.compiler.reset()
    return violations(["a graph of variable sizes" for one in variable if one], len(variable))


@check(
    "unknown-device-has-no-mfu",
    "identity",
    "train",
    bug="MFU is a share of some other device's peak: off by 3 to 7 times, and believed.",
    remedy="Measure the peak, or refuse (plan/devices.py, plan/host.py); never fall back on a default.",
    reference="karpathy/nanoGPT pull 464; allenai/OLMo-core pull 817; AMD-AGI/Primus pull 772",
)
def unknown_device_has_no_mfu(subject: Subject) -> Measurement:
    """Of three: a device that nobody makes is refused by the planner; a step logged without a known peak has no MFU;
    with a known one it is tokens/s times FLOPs a token over that peak, to rounding."""
    found = []
    with contextlib.suppress(UserError):
        found.append(f"a device that nobody makes has {devices.find('x9000').peak}")
    model = subject.build_model()
    with subject.scratch() as folder:
        for peak in (None, 1e12):
            job = rig.make_job(subject, model, rig.Fixed([]), subject.section(), folder, peak_flops=peak)
            meter = loop.Meter(job, {})
            meter.recent = [(0.0, 0), (2.0, 3000)]
            mfu, expected = meter.speed().get("mfu"), 1500.0 * meter.flops / 1e12
            if peak is None and mfu is not None:
                found.append(f"MFU {mfu} without a peak")
            if peak is not None and (mfu is None or abs(mfu - expected) > 1e-4):  # logged with four digits
                found.append(f"MFU {mfu}, not {expected:.4f}")
    return violations(found, 3)
