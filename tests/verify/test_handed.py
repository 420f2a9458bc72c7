"""What `groundup export` wrote, looked at before anybody else opens it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import groundup
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("gguf")

HF = {"exported-logits-equal-ours", "exported-tokenizer-is-ours", "exported-model-stops", "safetensors-are-as-asked"}


def export(run: Path, out: Path, *more: str) -> tuple[int, dict[str, bool], str]:
    """(exit code, id -> passed of what was looked at, what was said)."""
    result = groundup("export", run, "--out", out, "--json", *more)
    found = result.json() if result.out else {}
    return result.code, {c["id"]: c["passed"] for c in found.get("verify", {}).get("checks", [])}, result.err


def test_a_sound_export_is_looked_at_and_passes(micro_run: Path, tmp_path: Path) -> None:
    """Bugs: nothing is opened after an export; a sound one is refused; --no-check looks all the same."""
    assert export(micro_run, tmp_path / "hf") == (0, dict.fromkeys(HF, True), "")
    code, checks, _ = export(micro_run, tmp_path / "m.gguf", "--to", "gguf", "--quant", "q8_0")
    assert (code, checks) == (0, {"gguf-holds-the-weights": True})
    assert export(micro_run, tmp_path / "unseen", "--no-check")[:2] == (0, {})


def test_a_spoilt_weight_is_seen(micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: one matrix of the folder is another (q and k changed over), and the export says it is done."""
    from groundup.release import export as release

    written = release.export_hf

    def wrong(model: object, tokenizer: Path, out: Path, **told: object) -> object:
        found = written(model, tokenizer, out, **told)  # type: ignore[arg-type]
        [path] = out.glob("*.safetensors")
        tensors = load_file(path)
        names = [
            name for name in tensors if "layers.1" in name and ("q_proj.weight" in name or "k_proj.weight" in name)
        ]
        assert len(names) == 2
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
        return found

    monkeypatch.setattr(release, "export_hf", wrong)
    code, checks, said = export(micro_run, tmp_path / "hf")
    assert code == 1 and "do not use it" in said and "exported-logits-equal-ours" in said
    assert {id for id, passed in checks.items() if not passed} == {
        "exported-logits-equal-ours",
        "safetensors-are-as-asked",
    }


def test_a_spoilt_tokenizer_or_stop_is_seen(micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: the folder's template has lost a line end; generation goes on after the end of a turn."""
    from groundup.release import export as release

    written = release.export_hf

    def wrong(model: object, tokenizer: Path, out: Path, **told: object) -> object:
        found = written(model, tokenizer, out, **told)  # type: ignore[arg-type]
        generation = json.loads((out / "generation_config.json").read_text())
        (out / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 0}))
        for path in (out / "tokenizer_config.json", out / "chat_template.jinja"):
            if path.exists():
                path.write_text(path.read_text().replace("<|assistant|>", "<|user|>"))
        return found

    monkeypatch.setattr(release, "export_hf", wrong)
    code, checks, _ = export(micro_run, tmp_path / "hf")
    assert code == 1
    failed = {id for id, passed in checks.items() if not passed}
    assert failed == {"exported-tokenizer-is-ours", "exported-model-stops"}


def test_a_spoilt_gguf_is_seen(micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a tensor of the file is off by more than its type must be."""
    from groundup.model.interchange import gguf

    written = gguf.gguf_tensors

    def wrong(model: object) -> object:
        for name, tensor in written(model):  # type: ignore[arg-type]
            yield name, tensor + 0.01 * torch.eye(*tensor.shape) if name == "blk.1.attn_v.weight" else tensor

    monkeypatch.setattr(gguf, "gguf_tensors", wrong)
    code, checks, _ = export(micro_run, tmp_path / "m.gguf", "--to", "gguf")
    assert (code, checks) == (1, {"gguf-holds-the-weights": False})


def test_what_does_not_fit_is_told(micro_run: Path, tmp_path: Path) -> None:
    """Bug: a 70B model is opened three times in fp32, and the machine goes down after an export of an hour."""
    from groundup.tokenizer.tokenizer import Tokenizer
    from groundup.verify.handed import look_at

    found = look_at(micro_run / "sft" / "model", Tokenizer.load(micro_run / "tokenizer"), tmp_path, "hf", 2**16)
    assert found["checks"] == [] and "do not fit" in found["skipped"][0]["reason"]


def test_a_broken_transformers_does_not_condemn_an_export(
    micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: transformers cannot be imported (another torch beneath it), and a sound folder "is not the model"."""
    import importlib

    right = importlib.import_module

    def broken(name: str, *more: object) -> object:
        if name == "transformers":
            raise RuntimeError("operator torchvision::nms does not exist")
        return right(name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib, "import_module", broken)
    code, checks, _ = export(micro_run, tmp_path / "hf")
    assert code == 0 and checks == {"exported-model-stops": True, "safetensors-are-as-asked": True}
