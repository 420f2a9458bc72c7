"""Accelerators: peak rates, memory, bandwidths and power, each with its source.

TRAPS of data sheets, all three taken out here: tensor-core rates are printed with 2:4 sparsity (twice the dense rate;
only Ampere's sheets and the architecture papers print both); consumer cards multiply half as fast when they sum in fp32
as training does; link rates count both directions (a ring uses one). GB are 10^9 bytes throughout.
An accelerator that is not here is measured, if it is in this machine, or refused: a default would be wrong in silence.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from groundup.errors import UserError, did_you_mean
from groundup.plan.host import Host, copy_rate, peak_flops

DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates in FLOP/s (dense, fp32 sums) and bytes/s, links in one direction."""

    name: str
    peak: dict[str, float]  # by dtype; what is not there, the maker does not give
    memory: float  # bytes
    bandwidth: float  # bytes/s, of its memory
    link: float | None  # bytes/s to the others of its node, one direction; None = stands alone
    node: int  # devices that the link joins
    network: float | None  # bytes/s to other nodes, a device's share in the maker's reference system
    watts: float | None  # board power limit; None = not published
    source: str
    measured: bool = False

    def rate(self, precision: str) -> float:
        """Peak FLOP/s of matmuls at a recipe's precision. Errors: UserError where the maker gives none."""
        if precision not in self.peak:
            raise UserError(
                f"{self.name}: no peak rate is known for {precision} (known: {', '.join(self.peak)}); "
                f"choose another precision"
            )
        return self.peak[precision]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _device(
    name: str,
    peak: tuple[float | None, ...],
    memory: float,
    bandwidth: float,
    link: float | None,
    network: float | None,
    watts: float | None,
    source: str,
    node: int = 8,
) -> Device:
    """peak: TFLOP/s in the order of DTYPES; memory GB, bandwidths GB/s."""
    rates = {dtype: rate * 1e12 for dtype, rate in zip(DTYPES, peak, strict=True) if rate is not None}
    scaled = [None if rate is None else rate * 1e9 for rate in (link, network)]
    return Device(name, rates, memory * 1e9, bandwidth * 1e9, scaled[0], node, scaled[1], watts, source)


_DGX_A100 = "network: DGX A100, one 200 Gb/s adapter a GPU"
_DGX_H100 = "network: DGX H100, one 400 Gb/s adapter a GPU"
_HOPPER = (66.9, 494.7, 989.4, 989.4, 1978.9, 1978.9)
_CONSUMER = "no NVLink; network: 100 Gb/s Ethernet a node of 8, assumed"

# Columns as in `_device`: fp32, tf32, bf16, fp16, fp8, int8 | GB | GB/s | link | network | W | source
_TABLE = (
    _device("a100-40gb", (19.5, 156, 312, 312, None, 624), 40, 1555, 300, 25, 400,
            f"NVIDIA A100 data sheet (SXM4); NVLink 3: 600 GB/s both ways; {_DGX_A100}"),
    _device("a100-80gb", (19.5, 156, 312, 312, None, 624), 80, 2039, 300, 25, 400,
            f"NVIDIA A100 data sheet (SXM4); NVLink 3: 600 GB/s both ways; {_DGX_A100}"),
    _device("h100-sxm", _HOPPER, 80, 3350, 450, 50, 700,
            f"NVIDIA H100 architecture paper (SXM5), dense column; NVLink 4: 900 GB/s both ways; {_DGX_H100}"),
    _device("h100-pcie", (51.2, 378, 756, 756, 1513, 1513), 80, 2000, 64, 25, 350,
            "NVIDIA H100 data sheet (PCIe), halved for sparsity, and product brief PB-11133; PCIe 5 x16: 128 GB/s both "
            "ways; network: 200 Gb/s a GPU, assumed"),
    _device("h200", _HOPPER, 141, 4800, 450, 50, 700,
            f"NVIDIA H200 data sheet (SXM5): compute as H100; NVLink 4: 900 GB/s both ways; {_DGX_H100}"),
    _device("b200", (80, 1100, 2250, 2250, 4500, 4500), 180, 8000, 900, 50, 1000,
            "NVIDIA Blackwell architecture brief, HGX B200 at 1000 W, dense; memory: DGX B200, 1,440 GB of 8; "
            "NVLink 5: 1,800 GB/s both ways; network: DGX B200, one 400 Gb/s adapter a GPU"),
    _device("l4", (30.3, 60, 121, 121, 242.5, 242.5), 24, 300, 32, 12.5, 72,
            "NVIDIA L4 data sheet, halved for sparsity; PCIe 4 x16: 64 GB/s both ways; network: 100 Gb/s a GPU, "
            "assumed"),
    _device("l40s", (91.6, 183, 362, 362, 733, 733), 48, 864, 32, 25, 350,
            "NVIDIA L40S data sheet, dense column; PCIe 4 x16: 64 GB/s both ways; network: 200 Gb/s a GPU, assumed"),
    _device("rtx-3090", (35.6, 35.6, 71, 71, None, 284), 24, 936, 32, 1.6, 350,
            f"NVIDIA GA102 architecture paper, dense, fp32 sums; PCIe 4 x16; {_CONSUMER} (NVLink: pairs alone)"),
    _device("rtx-4090", (82.6, 82.6, 165.2, 165.2, 330.3, 660.6), 24, 1008, 32, 1.6, 450,
            f"NVIDIA Ada architecture paper, dense, fp32 sums; PCIe 4 x16; {_CONSUMER}"),
    _device("rtx-5090", (104.8, 104.8, 209.5, 209.5, 419, 838), 32, 1792, 64, 1.6, 575,
            f"NVIDIA RTX Blackwell architecture paper, dense, fp32 sums; PCIe 5 x16; {_CONSUMER}"),
    _device("mi300x", (163.4, 653.7, 1307.4, 1307.4, 2614.9, 2614.9), 192, 5300, 448, 50, 750,
            "AMD Instinct MI300X data sheet, without sparsity; Infinity Fabric: 7 links of 128 GB/s both ways; "
            "network: one 400 Gb/s adapter a GPU, as in its platforms"),
    _device("tpu-v5e", (None, None, 197, None, None, 393), 16, 819, 200, 3.1, None,
            "Google Cloud documentation, TPU v5e; ICI 400 GB/s both ways; network: 2 x 100 Gb/s a host of 8; power not "
            "published", node=256),
    _device("tpu-v6e", (None, None, 918, None, None, 1836), 32, 1638, 400, 12.5, None,
            "Google Cloud documentation, TPU v6e; ICI 800 GB/s both ways; network: 100 Gb/s a chip, assumed; power not "
            "published", node=256),
)  # fmt: skip
DEVICES = {device.name: device for device in _TABLE}
ALIASES = {
    "a100": "a100-80gb", "h100": "h100-sxm", "h100-80gb": "h100-sxm", "h200-sxm": "h200", "3090": "rtx-3090",
    "4090": "rtx-4090", "5090": "rtx-5090", "v5e": "tpu-v5e", "v6e": "tpu-v6e", "trillium": "tpu-v6e",
}  # fmt: skip
# What torch calls a GPU -> its name here; the first that matches.
_REPORTED = (
    (r"A100.*80GB", "a100-80gb"), (r"A100.*40GB", "a100-40gb"), (r"H100.*PCIe", "h100-pcie"),
    (r"H100(?!.*NVL)", "h100-sxm"), (r"\bH200(?!.*NVL)", "h200"), (r"\bB200", "b200"), (r"L40S", "l40s"),
    (r"\bL4\b", "l4"), (r"RTX 3090(?! Ti)", "rtx-3090"),
    (r"RTX 4090(?! D)", "rtx-4090"), (r"RTX 5090(?! D)", "rtx-5090"), (r"MI300X", "mi300x"),
)  # fmt: skip


def find(name: str) -> Device:
    """A device of the table, by name or alias. Errors: UserError for a name that is not known, with the nearest one."""
    wanted = ALIASES.get(_plain(name), _plain(name))
    if wanted in DEVICES:
        return DEVICES[wanted]
    raise UserError(
        f'no device "{name}"{did_you_mean(wanted, [*DEVICES, *ALIASES])}; one that is not in the table can be planned '
        "for on a machine that has it: leave --device away there, and it is measured"
    )


def is_here(name: str, host: Host) -> bool:
    """Whether a name means this machine: `auto`, what its device is called, or the very GPU it has."""
    wanted = ALIASES.get(_plain(name), _plain(name))
    return wanted in ("auto", "this", "cpu", "cuda") or (
        host.device == "cuda" and reported_as(_reported("cuda")) == wanted
    )


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def here(host: Host, precision: str, rate: float | None = None) -> Device:
    """This machine's device: rate and memory bandwidth measured; links and power from the table where it is known.

    rate: FLOP/s at `precision`, if it was measured before.
    """
    rate = peak_flops(host.device, precision) if rate is None else rate
    known = DEVICES.get(reported_as(_reported(host.device)) or "")
    return Device(
        name=_reported(host.device),
        peak={precision: rate},
        memory=float(host.memory),
        bandwidth=copy_rate(host.device),
        link=known.link if known else None,
        node=known.node if known else 1,
        network=known.network if known else None,
        watts=known.watts if known else None,
        source="measured here" + (f"; links and power: {known.source}" if known else ""),
        measured=True,
    )


def _reported(device: str) -> str:
    """What the machine calls its device."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name(0)
    try:
        with open("/proc/cpuinfo") as f:
            names = re.findall(r"^model name\s*:\s*(.+)$", f.read(), flags=re.M)
    except OSError:
        names = []
    return f"cpu ({names[0].strip()})" if names else "cpu"


def reported_as(reported: str) -> str | None:
    """The table's name for what torch calls a GPU ("NVIDIA H100 80GB HBM3"), or None."""
    return next((name for pattern, name in _REPORTED if re.search(pattern, reported)), None)
