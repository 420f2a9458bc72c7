"""The table of accelerators: dense rates, one direction, a source each; what is not in it is not guessed."""

from __future__ import annotations

import pytest

from groundup.errors import UserError
from groundup.plan import devices
from groundup.plan.devices import ALIASES, DEVICES, DTYPES, find, here, is_here, reported_as
from groundup.plan.host import Host

LAPTOP = Host("cpu", 4, 16 << 30, fast_bf16=False, compiler=False)
SERVER = Host("cuda", 32, 80 << 30, fast_bf16=True, compiler=True)


@pytest.mark.parametrize(
    ("name", "bf16", "memory", "bandwidth", "link", "watts"),
    [
        ("a100-40gb", 312, 40, 1555, 300, 400),
        ("a100-80gb", 312, 80, 2039, 300, 400),
        ("h100-sxm", 989.4, 80, 3350, 450, 700),
        ("h100-pcie", 756, 80, 2000, 64, 350),
        ("h200", 989.4, 141, 4800, 450, 700),
        ("b200", 2250, 180, 8000, 900, 1000),
        ("l4", 121, 24, 300, 32, 72),
        ("l40s", 362, 48, 864, 32, 350),
        ("rtx-3090", 71, 24, 936, 32, 350),
        ("rtx-4090", 165.2, 24, 1008, 32, 450),
        ("rtx-5090", 209.5, 32, 1792, 64, 575),
        ("mi300x", 1307.4, 192, 5300, 448, 750),
        ("tpu-v5e", 197, 16, 819, 200, None),
        ("tpu-v6e", 918, 32, 1638, 400, None),
    ],
)
def test_published_figures(
    name: str, bf16: float, memory: float, bandwidth: float, link: float, watts: float | None
) -> None:
    """Bugs: a sparse rate (twice the dense one) halves every MFU; a link counted in both directions."""
    device = DEVICES[name]
    assert device.rate("bf16") == pytest.approx(bf16 * 1e12)
    assert (device.memory, device.bandwidth, device.link) == (memory * 1e9, bandwidth * 1e9, link * 1e9)
    assert device.watts == watts


def test_rates_are_in_proportion() -> None:
    """Bug: a sparse or fp16-accumulate figure in one column: within a chip the formats are steps of two apart."""
    for device in DEVICES.values():
        assert set(device.peak) <= set(DTYPES)
        assert device.source
        assert device.peak.get("fp16", device.peak["bf16"]) == device.peak["bf16"]
        if "tf32" in device.peak:
            assert 1.9 < device.peak["bf16"] / device.peak["tf32"] < 2.1
        if "fp8" in device.peak:
            assert device.peak["fp8"] / device.peak["bf16"] == pytest.approx(2, rel=0.03)
        assert device.network is not None and device.link is not None and device.network < device.link


def test_names() -> None:
    """Bugs: an alias that leads nowhere; an unknown device is planned for as if it were some default."""
    assert all(target in DEVICES for target in ALIASES.values())
    assert find("H100").name == "h100-sxm" and find(" RTX 4090 ").name == "rtx-4090" and find("a100").memory == 80e9
    with pytest.raises(UserError, match=r'no device "h10".*did you mean "h100"'):
        find("h10")
    with pytest.raises(UserError, match="is measured"):
        find("quantum-1")
    assert is_here("cpu", LAPTOP) and is_here("auto", LAPTOP) and not is_here("h100", LAPTOP)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 NVL", None), ("NVIDIA H200", "h200"), ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("NVIDIA L40", None), ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("AMD Instinct MI300X", "mi300x"),
        ("Tesla T4", None),
    ],
)  # fmt: skip
def test_what_torch_reports(reported: str, name: str | None) -> None:
    """Bug: a card is taken for its better-known sister (a 4090 D for a 4090, an H100 NVL for an SXM)."""
    assert reported_as(reported) == name


def test_this_machine_is_measured() -> None:
    """Bugs: a CPU gets some accelerator's link or power; the measured rate is not the one used."""
    device = here(LAPTOP, "fp32", rate=1.5e11)
    assert device.measured and device.peak == {"fp32": 1.5e11}
    assert (device.link, device.network, device.watts, device.node) == (None, None, None, 1)
    assert device.memory == LAPTOP.memory and 1e8 < device.bandwidth < 1e13
    with pytest.raises(UserError, match="no peak rate is known for bf16"):
        device.rate("bf16")


def test_a_known_gpu_in_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the GPU of this machine is known, but its power and links are left out (or its peak is not measured)."""
    monkeypatch.setattr(devices, "_reported", lambda device: "NVIDIA H200")
    monkeypatch.setattr(devices, "copy_rate", lambda device: 4e12)
    device = here(SERVER, "bf16", rate=8e14)
    assert (device.watts, device.link, device.rate("bf16")) == (700, 450e9, 8e14)
    assert is_here("h200", SERVER) and not is_here("h100", SERVER)
