"""bench/gpu.py's plan: what fails or hangs is a line of the table, and nothing that it starts outlives its time."""

import importlib.util
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def child(gpu, folder, code):
    return gpu.Child("one", ["-c", code], folder / "one.log")


def test_a_contestant_that_hangs_is_ended(gpu, tmp_path):
    """Bug: one contestant that hangs in its compiler takes the rest of the call with it."""
    one = child(gpu, tmp_path, "import time; time.sleep(60)")
    begun = time.monotonic()
    assert one.hear(0.2) == {} and "out of time" in one.error
    assert one.process.poll() is not None and time.monotonic() - begun < 30
    assert one.say("go", 60) == {} and "out of time" in one.error


def test_a_contestant_that_dies_says_why(gpu, tmp_path):
    """Bug: an import that fails on the GPU machine is a row without a reason."""
    one = child(gpu, tmp_path, "print('not JSON', file=__import__('sys').stderr); import no_such_package")
    assert one.hear(60) == {} and "No module named 'no_such_package'" in one.error


def test_a_contestant_is_heard_line_by_line(gpu, tmp_path):
    """Bug: two lines that come at once are read as one, or the second is lost."""
    one = child(gpu, tmp_path, 'print(\'{"a": 1}\\n{"b": 2}\'); input(); print(\'{"error": "no memory"}\')')
    assert [one.hear(60), one.hear(60)] == [{"a": 1}, {"b": 2}]
    assert one.say("go", 60)["error"] == one.error == "no memory" and one.process.poll() is not None


def test_the_table_shows_rates_ratios_and_failures(gpu, tmp_path, capsys):
    """Bug: a ratio to the wrong contestant; MFU of the wrong peak; a failed part that is simply absent."""
    from train import Size, config_of

    from groundup.model.flops import train_flops_per_token

    plan = gpu.Plan("cpu", gpu.DRY, 1, 2, False, 0.0)
    shape = Size(*gpu.DRY["124M"])
    tokens, flops = 2 * shape.batch * shape.context, train_flops_per_token(config_of(shape))
    found = []
    for name, seconds in (("groundup", [0.5, 1.0, 0.25]), ("transformers", [1.0]), ("groundup float8", [])):
        one = child(gpu, tmp_path, "")
        one.process.wait()
        one.name, one.windows, one.told = name, [{"seconds": s} for s in seconds], {"parameters": 124e6}
        one.error = "" if seconds else "it has no float8"
        found.append(one)
    peak = 4 * tokens / 0.5 * flops
    gpu.table(plan, "124M", found, Namespace(), (peak, 2 * peak))
    first, second, third = capsys.readouterr().out.splitlines()
    assert f"| {2 * tokens:,.0f} | {tokens:,.0f} to {4 * tokens:,.0f} (3) | 25.0% | 12.5% |" in first
    assert "| 2.00 | 1.00 |" in first and "| 1.00 | 0.50 |" in second and "did not run: it has no float8" in third


def test_limits_leave_time_for_the_table(gpu):
    """Bug: a change of one limit takes the whole call past nine minutes."""
    over = [limit for limits in gpu.LIMITS.values() for limit in limits]
    script = (BENCH / "gpu.sh").read_text()
    assert over == sorted(over) and gpu.LIMITS["124M"][1] > gpu.CHECK_UNTIL
    assert over[-1] + 3 * len(gpu.OURS["1B"] + gpu.PEERS) + 20 < 535 and "timeout -k 3 535" in script


@pytest.mark.full
def test_the_whole_plan_runs_on_a_cpu(tmp_path):
    """Bug: the one call on a GPU that can be had ends in a slip of the script."""
    done = subprocess.run(
        ["bash", str(BENCH / "gpu.sh"), "--dry"], capture_output=True, text=True, timeout=400,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHON": sys.executable, "OUT": str(tmp_path / "logs")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in ("| 124M groundup |", "| 1B groundup packed |", "| check: exact resume, bf16 | passed |"):
        assert line in done.stdout, done.stdout
    assert "float8 is for CUDA" in done.stdout  # what cannot run says so, and stops nothing
