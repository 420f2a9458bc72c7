"""The metrics log. Each test names the bug it would catch."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groundup.errors import UserError
from groundup.record.metrics import MetricsLog, read


def write(folder: Path, steps: range, **options: Any) -> None:
    with MetricsLog(folder, tensorboard=False) as log:
        for step in steps:
            log.append({"step": step, "loss": 1 / (step + 1), **options})


def test_a_resumed_log_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Bug: after a resume the steps between checkpoint and kill stand twice in the log."""
    write(tmp_path / "unbroken", range(8))
    write(tmp_path / "broken", range(6))  # killed at step 5, checkpoint at step 3
    with MetricsLog(tmp_path / "broken", tensorboard=False) as log:
        log.truncate_after(3)
        for step in range(4, 8):
            log.append({"step": step, "loss": 1 / (step + 1)})
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (tmp_path / "unbroken/metrics.jsonl").read_bytes()


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    """Bug: kill -9 within a write leaves half a line, and reading or resuming fails, or glues two rows."""
    write(tmp_path, range(3))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2]
    write(tmp_path, range(3, 5))
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2, 3, 4]


def test_nan_is_said_and_the_line_stays_json(tmp_path: Path) -> None:
    """Bug: a NaN loss writes a line that JSON readers refuse, or vanishes without a word."""
    with MetricsLog(tmp_path, tensorboard=False) as log:
        norm, rate = torch.tensor(math.inf), np.float32(-math.inf)
        log.append({"step": 1, "loss": math.nan, "norm": norm, "rate": rate, "ok": 1})
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(line, parse_constant=refuse) == {
        "step": 1, "loss": None, "norm": None, "rate": None, "ok": 1,
        "nonfinite": {"loss": "nan", "norm": "inf", "rate": "-inf"},
    }  # fmt: skip


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    """Bug: rows kept in a buffer are lost at kill -9, and the log is behind the checkpoint."""
    code = (
        "import os, signal, sys\nfrom groundup.record.metrics import MetricsLog\n"
        "log = MetricsLog(sys.argv[1], tensorboard=False)\n"
        "for step in range(5): log.append({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert len(read(tmp_path)) == 5


def test_rows_without_a_step_stay(tmp_path: Path) -> None:
    """Bug: truncation fails on, or drops, a row that tells about the run as a whole."""
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.append({"event": "started"})
        log.append({"step": 9})
        log.truncate_after(0)
        assert read(tmp_path) == [{"event": "started"}]


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    """Bug: the log's ENOSPC ends the run with a traceback."""
    log = MetricsLog(tmp_path, tensorboard=False)
    log._file.close()
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match="disk is full"):
        log.append({"step": 1})
    log.close()


def test_tensorboard_holds_the_numbers_and_forgets_the_truncated_steps(tmp_path: Path) -> None:
    """Bug: nothing is logged, or a resumed run shows two curves over each other."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for step in range(5):
            log.append({"step": step, "loss": float(step), "note": "text", "bad": math.nan})
        log.truncate_after(2)
        log.append({"step": 3, "loss": 30.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
