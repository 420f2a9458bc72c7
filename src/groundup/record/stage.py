"""The record a stage leaves: what went in, what came out, on which machine, with which versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from groundup.record.files import plain

PACKAGES = ("groundup", "torch", "numpy", "tokenizers")


class Output(BaseModel):
    """One file a stage made."""

    sha256: str
    bytes: int


class StageRecord(BaseModel):
    """`stage.json`. Times are ISO 8601 in UTC, `seconds` wall clock (set it to keep resumed parts summed)."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    key: str
    status: Literal["done", "failed"] = "done"
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    host: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    git_commit: str | None = None
    seed: int = 0
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, Output] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


def begin(stage: str, key: str, *, seed: int = 0, inputs: Mapping[str, str] | None = None) -> StageRecord:
    """A record for a stage that starts now, on this machine; `RunDir.write_stage` finishes it."""
    return StageRecord(
        stage=stage,
        key=key,
        started=now(),
        host=host(),
        versions=versions(),
        git_commit=git_commit(),
        seed=seed,
        inputs=dict(inputs or {}),
    )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def stage_key(sections: Mapping[str, Any], inputs: Mapping[str, str], version: int) -> str:
    """Name of a stage's result: SHA-256 of the recipe sections it reads, its inputs' keys, its own version.

    `sections` holds pydantic models or plain values. The order of keys does not matter; every value does.
    """
    dumped = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in sections.items()}
    content = {"sections": plain(dumped), "inputs": dict(inputs), "version": version}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def host() -> dict[str, Any]:
    """platform, cpu (model name), cores (that this process may use), memory (bytes)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    return {"platform": platform.platform(), "cpu": _cpu_name(), "cores": cores, "memory": memory}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers (read without importing them)."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Commit of the repository the command was run in, or None."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None
