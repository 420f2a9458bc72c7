"""Compiling a kernel for this CPU, once: the library is kept, and found again by the hash of all it depends on."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

# contract=off: a compiler that fuses products and sums as it likes rounds otherwise than the next one
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}  # what the sources are written for
OFF = "GROUNDUP_NATIVE"  # set to 0: torch's own kernels everywhere


def _of_cpu(field: str) -> str:
    """A field of /proc/cpuinfo, of the first CPU in it; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(field)), "")


def cpu_flags() -> frozenset[str]:
    """What this CPU can do, as Linux names it; empty elsewhere."""
    return frozenset(_of_cpu("flags").split())


@cache
def cpu_vendor() -> str:
    """AuthenticAMD, GenuineIntel or another's name; empty off Linux."""
    return _of_cpu("vendor_id")


def compiler() -> str | None:
    return next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)


def kept_in() -> Path:
    """Folder of the compiled libraries, outside of any run: they belong to the machine."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "groundup" / "native"


def private(folder: Path) -> Path | None:
    """The folder, made where it is missing, without links; None where somebody else could put a library there.

    To load a library is to run it: in a cache under /tmp another user can be there first.
    """
    for part in (folder.parent, folder):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    for part in (folder.parent, folder):
        found = part.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            told = "is another user's, or others can write to it: no kernel is loaded from there, attention is slower"
            warnings.warn(f"{part} {told} (chmod go-w, or another XDG_CACHE_HOME)", stacklevel=2)
            return None
    return folder


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp, or None where it cannot be had: another CPU, no compiler, or switched off.

    What would go wrong silently is a library of another machine (a home folder that many share): the CPU's flags are
    part of the hash. Two processes that compile at once both write a file of their own, and the last rename stays.
    """
    flags, cxx = cpu_flags(), compiler()
    if os.environ.get(OFF) == "0" or not flags >= NEEDED or cxx is None:
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
        key = hashlib.sha256("\n".join([source.read_text(), *FLAGS, cxx, version, *sorted(flags)]).encode()).hexdigest()
        if (folder := private(kept_in())) is None:
            return None
        path = folder / f"{name}-{key[:20]}.so"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                made = Path(aside) / path.name
                subprocess.run([cxx, *FLAGS, str(source), "-o", str(made)], check=True, capture_output=True)
                made.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None  # a compiler too old for AVX512-BF16, a home folder that cannot be written, or none (RuntimeError)
