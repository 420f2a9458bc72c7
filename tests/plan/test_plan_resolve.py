"""`auto` becomes a number, with a reason; nothing is guessed afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import groundup

from groundup.errors import UserError
from groundup.model.count import count
from groundup.model.transformer import Transformer
from groundup.plan.host import Host, has_fast_bf16, matmul_rate, this_host
from groundup.plan.resolve import cpu_tokens_per_forward, d_ff, model_config, resolve
from groundup.recipe.load import load_recipe, parse_recipe
from groundup.recipe.schema import Recipe

LAPTOP = Host("cpu", 4, 16 << 30, fast_bf16=False, compiler=False)
SERVER = Host("cuda", 32, 80 << 30, fast_bf16=True, compiler=True)
CHATS = {"sources": [{"builtin": "town"}]}


def recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {"name": "x", "model": {"params": "3M"}, "data": {"sources": [{"builtin": "town"}]}}
    return parse_recipe({**tree, "sft": CHATS, "dpo": CHATS, "grpo": CHATS, **changes}, "test")


@pytest.mark.parametrize("host", [LAPTOP, SERVER, replace(SERVER, fast_bf16=False), replace(LAPTOP, compiler=True)])
def test_resolve_is_pure_and_complete(host: Host) -> None:
    """Bugs: an `auto` is left; a note without a reason; the result depends on this machine or on the last call."""
    given = recipe()
    before = given.model_dump()
    resolved, notes = resolve(given, host)
    assert given.model_dump() == before
    assert resolved.unresolved() == []
    assert {note.key for note in notes} == set(given.unresolved())
    assert all(note.reason and note.source for note in notes)
    assert resolve(given, host) == (resolved, notes)
    again, none = resolve(resolved, LAPTOP)
    assert (again, none) == (resolved, [])  # what is explicit stays, on any machine


def test_resolve_follows_the_machine() -> None:
    """Bugs: bf16 where the hardware emulates it; compile without a compiler; CPU micro-batches on a GPU."""
    big = recipe(model={"params": "100M"}, pretrain={"batch_size": 256})
    laptop, server = (resolve(big, host)[0] for host in (LAPTOP, SERVER))
    assert (laptop.device, laptop.threads) == ("cpu", 4)
    assert (server.device, server.threads) == ("cuda", 32)
    assert (laptop.pretrain.precision, laptop.pretrain.compile) == ("fp32", False)
    assert (server.pretrain.precision, server.pretrain.compile) == ("bf16", True)
    assert server.pretrain.micro_batch_size > laptop.pretrain.micro_batch_size  # type: ignore[operator]
    assert laptop.model == server.model
    assert resolve(recipe(), replace(SERVER, fast_bf16=False))[0].pretrain.precision == "fp32"


def test_tokens_follow_chinchilla() -> None:
    """Bug: 20 tokens a parameter counted without the context, or without the batch."""
    resolved, _ = resolve(recipe(pretrain={"batch_size": 16}), LAPTOP)
    total = count(model_config(resolved))["total"]
    tokens = resolved.pretrain.steps * 16 * resolved.model.context  # type: ignore[operator]
    assert tokens / total == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("target", [100_000, 1_000_000, 10_000_000, 124_000_000, 1_000_000_000, 7_000_000_000])
@pytest.mark.parametrize(
    "arrangement", [{}, {"tied": False}, {"mlp": "gelu_tanh", "position": "learned", "norm": "layernorm"}]
)
def test_params_is_kept(target: int, arrangement: dict[str, Any]) -> None:
    """Bugs: the search counts another model than the one that is built; a width its heads do not divide."""
    gpt2 = {"qk_norm": "none", "bias": ["qkv", "out", "up", "down", "norm"]}
    extra = gpt2 if arrangement.get("norm") == "layernorm" else {}
    resolved, _ = resolve(recipe(model={"params": target, **arrangement, **extra}), LAPTOP)
    config = model_config(resolved)
    assert config.problems() == []
    assert config.n_heads * config.head_dim == config.d_model
    assert count(config)["total"] == pytest.approx(target, rel=0.13)
    assert 16 <= config.d_model / config.n_layers <= 200 or target < 500_000


def test_what_is_given_is_kept() -> None:
    """Bug: `params` overrides a dimension that was given."""
    resolved, notes = resolve(recipe(model={"params": "10M", "n_layers": 6, "n_heads": 5}), LAPTOP)
    assert (resolved.model.n_layers, resolved.model.n_heads) == (6, 5)
    assert resolved.model.d_model % 5 == 0  # type: ignore[operator]
    assert not {"model.n_layers", "model.n_heads"} & {note.key for note in notes}


def test_feed_forward_widths() -> None:
    """Bug: a gated layer with 4 d_model has half as many parameters again as the plain one it replaces."""
    assert (d_ff(768, "gelu"), d_ff(768, "swiglu")) == (3072, 2048)
    for width in (128, 512, 4096):
        assert 3 * width * d_ff(width, "swiglu") == pytest.approx(2 * width * d_ff(width, "gelu"), rel=0.06)
        assert d_ff(width, "swiglu") % 32 == 0


def test_bf16_that_is_emulated_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a T4 or V100, where torch says "supported" and computes bf16 in steps of fp32, is given bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_fast_bf16("cuda")


def test_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: cores that this process may not use are counted; `device: cuda` without a GPU is an AssertionError."""
    host = this_host("cpu")
    assert 1 <= host.cores <= 4096
    assert host.memory > 1 << 28
    assert host == this_host("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_host("auto").device == "cpu"
    with pytest.raises(UserError, match="device: cuda, but torch"):
        this_host("cuda")


def test_matmul_rate_is_a_rate() -> None:
    """Bug: FLOPs of the product counted once instead of twice, or seconds taken for milliseconds."""
    rate = matmul_rate("cpu", "fp32", (256, 256, 256), seconds=0.05)
    assert 1e8 < rate < 1e14


# ---- presets ----


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$GROUNDUP_DATA with a little of everything that the presets name."""
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path))
    monkeypatch.setattr("groundup.plan.budget.peak_flops", lambda device, precision: 1e11)
    monkeypatch.setattr("groundup.plan.budget.matmul_rate", lambda device, precision, shape: 1e11)
    monkeypatch.setattr("groundup.stages.timing.WORTH", 1e18)  # nothing is worth timing here
    for name in ("text/tinyshakespeare/input.txt", "text/enwiki/a.txt", "instruct/dolly_open_qa/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("To be, or not to be.\n")
    for name in ("instruct/rasbt_instruction.json", "preference/rasbt_preference.json", "bench/gsm8k/train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")


@pytest.mark.parametrize("preset", ["town", "wikipedia", "shakespeare", "gpt2"])
def test_plan_counts_what_is_built(preset: str, small_data: None) -> None:
    """Bug: the parameter count on paper drifts from the model (a bias, a tied head or a position table forgotten)."""
    found = groundup("plan", preset, "--json").json()
    resolved, _ = resolve(load_recipe(preset), this_host(), counted_vocab=found["config"]["vocab_size"])
    with torch.device("meta"):
        model = Transformer(model_config(resolved))
    built = sum(parameter.numel() for parameter in model.parameters())
    assert found["parameters"]["total"] == built
    if preset == "gpt2":
        assert built == 124_439_808
    if preset == "town":
        assert 0.9e6 < built < 1.5e6


def test_plan_names_every_missing_file_of_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a plan for data that is not there; or the advice leaves out where $GROUNDUP_DATA points."""
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path / "nowhere"))
    result = groundup("plan", "wikipedia")
    assert result.code == 2
    assert "text/enwiki: no such file or folder" in result.err
    assert f"GROUNDUP_DATA is {tmp_path / 'nowhere'}, which is no folder" in result.err


def test_wide_models_take_fewer_tokens_at_once_on_a_cpu() -> None:
    """Bug: activations of a wide model take memory its products do not need; or a narrow one pays for its calls."""
    found = [cpu_tokens_per_forward(width) for width in (64, 256, 257, 512, 513, 640, 4096, 5_000_000)]
    assert found == [16_384, 16_384, 8_192, 8_192, 4_096, 4_096, 4_096, 4_096]
