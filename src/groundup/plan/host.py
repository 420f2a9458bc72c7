"""This machine: what it has, and how fast its matrix units really are."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass

import torch

from groundup.errors import UserError
from groundup.model.native.matmul import mm
from groundup.plan.available import cgroup_limit


@dataclass(frozen=True)
class Host:
    """What decides the `auto` values. Nothing measured: the same machine always gives the same answers."""

    device: str  # cpu | cuda
    cores: int  # that this process may use
    memory: int  # bytes, of the device
    fast_bf16: bool
    compiler: bool


def this_host(device: str = "auto") -> Host:
    """This machine. Errors: UserError when the recipe asks for a GPU and torch finds none."""
    if device == "cuda" and not torch.cuda.is_available():
        build = f"torch {torch.__version__}" + ("" if torch.version.cuda else ", built without CUDA,")
        raise UserError(f"device: cuda, but {build} finds no GPU here: set device: auto or cpu, or look at nvidia-smi")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Host(device, cores, _memory(device), has_fast_bf16(device), can_compile(device))


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 << 30
    return min(whole, cgroup_limit() or whole)  # in a container, what it was given


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 matmuls are faster than fp32 ones here: the CPU's AVX512-BF16 or AMX units, or the GPU's."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with open("/proc/cpuinfo") as f:
            flags = f.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def can_compile(device: str) -> bool:
    """torch.compile on a CPU needs a C++ compiler; Triton brings its own for a GPU."""
    return device == "cuda" or any(shutil.which(c) for c in ("g++", "clang++", "c++"))


def matmul_rate(device: str, precision: str, shape: tuple[int, int, int], seconds: float = 0.3) -> float:
    """FLOP/s of an (m, k) x (k, n) product at `precision`: the best of repeated runs over `seconds`.

    The best, not the median: a busy neighbour makes runs slower, nothing makes one faster than the hardware.
    """
    m, k, n = shape
    # float8 is held against bf16's peak. A CPU takes seconds for a product in fp16, and minutes for these: fp32 there
    half = torch.float16 if device == "cuda" else torch.float32
    dtype = {"bf16": torch.bfloat16, "float8": torch.bfloat16, "fp16": half}.get(precision, torch.float32)
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        start = time.perf_counter()
        mm(a, b)  # with the kernel that training uses
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2.0 * m * k * n / min(times)


def copy_rate(device: str, bytes_copied: int = 1 << 27) -> float:
    """Bytes/s that memory moves, read and written, in a copy larger than any cache: the best of a few."""
    source = torch.zeros(bytes_copied // 4, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2.0 * bytes_copied / min(times)


def peak_flops(device: str, precision: str) -> float:
    """The best rate over a few large square shapes: the peak that MFU is a share of, measured on THIS device."""
    sizes = (4096, 8192) if device == "cuda" else (1024, 2048)
    return max(matmul_rate(device, precision, (n, n, n)) for n in sizes)
