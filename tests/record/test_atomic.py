"""Atomic writes. Each test names the bug it would catch."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.errors import UserError
from groundup.record.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    clean_stale,
    plain,
    read_json,
    sha256_file,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def run_python(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


KILL_AT_RENAME = """
import os, signal, sys
from groundup.record import files
os.replace = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
files.atomic_write(sys.argv[1], "new content, " * 1000)
"""


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    """Bug: writing in place (or renaming before the content is written) loses the old file at kill -9."""
    target = tmp_path / "a.json"
    target.write_text("old")
    died = run_python(KILL_AT_RENAME, target)
    assert died.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2  # the dead writer's temporary file
    clean_stale(target)
    assert names(tmp_path) == ["a.json"]


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a rename that reaches the disk before the content: an empty file after a power cut."""
    calls: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real_sync(descriptor)

    def replace(*paths: str) -> None:
        calls.append("rename")
        real_replace(*paths)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_write(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_message_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Bug: a full disk shows a traceback, leaves litter, or truncates what was saved before."""
    target = tmp_path / "a.json"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full.*a\.json.*bytes free.*same command again"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Bug: as above, but met by a real write into a real full file system, safetensors' own error included."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tiny file system needs root")
    try:
        atomic_write(small / "kept", b"k" * 1000)
        with pytest.raises(UserError, match="disk is full"):
            atomic_write(small / "big", bytes(1 << 20))
        with pytest.raises(UserError, match="disk is full"), atomic_folder(small / "model") as folder:
            from safetensors.torch import save_file

            save_file({"w": torch.zeros(1 << 18)}, folder / "model.safetensors")
        assert names(small) == ["kept"]
        assert (small / "kept").read_bytes() == b"k" * 1000
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_failure_inside_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    """Bug: half a stream takes its place when its writer raises (Ctrl-C included)."""
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_place_where_no_folder_can_be_is_one_message(tmp_path: Path) -> None:
    """Bug: `--out /proc/x/y`, or a path through a file, is a traceback of mkdir."""
    (tmp_path / "file").write_text("kept")
    for place in (Path("/proc/none/here"), tmp_path / "file" / "below", tmp_path / ("n" * 300) / "x"):
        for writer in (atomic_file, atomic_folder):
            with pytest.raises(UserError, match=r"cannot make the folder .*choose another place"), writer(place / "x"):
                raise AssertionError("there is no such place")
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Bug: a reader sees a checkpoint folder with some of its files, or old and new files mixed."""
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "old").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "half").write_text("2")
        raise RuntimeError
    assert names(target) == ["sub"]
    with atomic_folder(target) as folder:
        (folder / "new").write_text("3")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


KILL_BETWEEN_RENAMES = """
import os, signal, sys
from groundup.record import files
real, calls = os.replace, []
def replace(*a):
    if calls:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(a)
    real(*a)
os.replace = replace
with files.atomic_folder(sys.argv[1]) as folder:
    (folder / "new").write_text("2")
"""


def test_a_folder_killed_between_its_renames_is_put_back(tmp_path: Path) -> None:
    """Bug: replacing a folder takes two renames, and a death between them loses the older one."""
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1")
    assert run_python(KILL_BETWEEN_RENAMES, target).returncode == -signal.SIGKILL
    assert not target.exists()
    clean_stale(target)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_cleaning_spares_the_file_of_a_living_writer(tmp_path: Path) -> None:
    """Bug: one process deletes what another is writing at this moment."""
    living = tmp_path / f".a.tmp-{os.getppid()}"
    living.write_text("being written")
    clean_stale(tmp_path / "a")
    assert living.exists()


def test_json_has_no_nan_and_takes_scalars_of_torch_and_numpy(tmp_path: Path) -> None:
    """Bug: json.dumps writes NaN, which no other JSON reader accepts; or fails on a tensor at the run's end."""
    path = tmp_path / "a.json"
    write_json(path, {"loss": math.nan, "n": np.int64(3), "t": torch.tensor(0.5), "v": [np.float32(math.inf)]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(path.read_text(), parse_constant=refuse) == {"loss": None, "n": 3, "t": 0.5, "v": [None]}
    with pytest.raises(TypeError):
        plain({"x": object()})


def test_broken_json_is_named(tmp_path: Path) -> None:
    """Bug: a traceback from the JSON parser that does not say which file."""
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")


def test_sha256(tmp_path: Path) -> None:
    """Bug: hashing text instead of bytes, or a first block only."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
