"""Faults of the compiler, and of what a device is measured by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from groundup.plan import devices
from groundup.train import precision
from groundup.train.loop import Meter
from groundup.verify.fault import fault, swapped


@fault("kernel-off-in-one-layer", "compiled-equals-eager", pretrain={"compile": True})
def kernel_off_in_one_layer() -> Iterator[None]:
    """The code that the compiler makes of one layer is off in the third digit."""

    def backend(graph: Any, _: Any) -> Any:
        return lambda *given: tuple(1.002 * x if x.is_floating_point() else x for x in graph(*given))

    def wrong(model: nn.Module) -> None:
        model.blocks[0].compile(backend=backend)  # type: ignore[union-attr, index]

    with swapped(precision, compile_blocks=wrong):
        yield


@fault("compiled-beside-what-was-before", "earlier-shapes-are-forgotten", pretrain={"compile": True})
def compiled_beside_what_was_before() -> Iterator[None]:
    """Blocks are compiled, and what was compiled before in the process is kept."""

    def wrong(model: nn.Module) -> None:
        for block in model.blocks:  # type: ignore[union-attr]
            block.compile()

    with swapped(precision, compile_blocks=wrong):
        yield


@fault("unknown-device-is-an-a100", "unknown-device-has-no-mfu")
def unknown_device_is_an_a100() -> Iterator[None]:
    """A device that is not in the table is taken for an A100."""
    right = devices.find

    def wrong(name: str) -> devices.Device:
        return devices.DEVICES.get(name) or right("a100")

    with swapped(devices, find=wrong):
        yield


@fault("mfu-without-the-backward-pass", "unknown-device-has-no-mfu")
def mfu_without_the_backward_pass() -> Iterator[None]:
    """MFU counts two FLOPs a parameter and token instead of six."""
    right = Meter.speed

    def wrong(self: Meter) -> dict[str, float]:
        found = right(self)
        return {**found, "mfu": found["mfu"] / 3} if "mfu" in found else found

    with swapped(Meter, speed=wrong):
        yield
