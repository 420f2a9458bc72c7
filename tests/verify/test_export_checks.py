"""What the checks of export stand on; that they catch their bugs is said by test_faults."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from groundup.verify.checks import gguf_export
from groundup.verify.checks.exported import misplaced, other, stamped_memory
from groundup.verify.healthy import GPT2
from groundup.verify.run import run_checks
from groundup.verify.subject import Subject

Made = Callable[..., Subject]


def test_what_no_class_computes_is_skipped_with_the_fields(subject: Made) -> None:
    """Bug: an architecture of one's own fails for being one's own."""
    for name in ("exported-logits-equal-ours", "exported-model-stops", "gguf-holds-the-weights"):
        found = run_checks(subject(model={"position": "sinusoidal"}), only=[name])[0]
        assert found.skipped is not None and "position is sinusoidal" in found.skipped


def test_a_missing_extra_is_named(subject: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a check that breaks off where transformers or gguf is not installed."""
    for package, name in (("transformers", "exported-logits-equal-ours"), ("gguf", "gguf-holds-the-weights")):
        monkeypatch.setitem(sys.modules, package, None)
        found = run_checks(subject(), only=[name])[0]
        assert found.skipped is not None and package in found.skipped
    found = run_checks(subject(), only=["export-import-is-exact", "exported-model-stops", "safetensors-are-as-asked"])
    assert all(one.passed for one in found)  # these need neither


def test_nothing_is_said_while_transformers_opens(subject: Made, capfd: pytest.CaptureFixture[str]) -> None:
    """Bug: bars and warnings of another library in the middle of the table."""
    pytest.importorskip("transformers")
    names = ["exported-logits-equal-ours", "exported-tokenizer-is-ours", "gguf-logits-equal-ours"]
    assert all(r.passed for r in run_checks(subject(model=GPT2), only=names))
    assert capfd.readouterr().err == ""


def test_an_error_where_none_may_be_is_infinite() -> None:
    """Bug: 0 / 0 is no number, and anything over 0 is one that a mean would hide."""
    weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    assert gguf_export._steps_off(weights, weights, "F32") == 0
    assert gguf_export._steps_off(weights, np.nextafter(weights, 2, dtype=np.float32), "F32") == np.inf
    assert gguf_export._steps_off(weights, weights.astype(np.float16).astype(np.float32), "F16") <= 1
    assert gguf_export._steps_off(weights, weights * (1 + 2.0**-9), "F16") > 1


def test_memory_is_stamped_and_put_back() -> None:
    """Whoever verifies in the middle of a run must not find torch slower or stricter afterwards."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    with stamped_memory():
        assert torch.empty(3, 2).isnan().all()
    after = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    assert before == after


def test_what_is_misplaced() -> None:
    """Left as constructed, written twice, lost; a tensor may be cut, joined and turned as one likes."""
    whole = {"a": torch.arange(1.0, 7).view(2, 3), "b": torch.arange(7.0, 9)}
    assert misplaced(whole, {"c": whole["a"].T, "d": whole["b"][:1], "e": whole["b"][1:]}) == []
    empty = {"a": whole["a"].clone(), "b": whole["b"]}
    empty["a"][0, 0] = torch.nan
    assert misplaced(whole, empty) == ["a: 1 weights were never written", "1 weights are lost"]
    twice = {"a": whole["a"], "b": whole["a"][0, :2]}
    assert misplaced(whole, twice) == [
        "a: 2 weights stand elsewhere too",
        "b: 2 weights stand elsewhere too",
        "2 weights are lost",
    ]


def test_values_are_compared_by_kind_and_names_by_source() -> None:
    """1 is no true, and a key that nobody wrote is told."""
    assert other({"a": 1, "b": 2.0}, {"a": 1, "b": (3.0, 2.0)}, "f") == []
    assert other({"a": True, "x": 5}, {"a": 1}, "f") == ["f: x 5 comes from nowhere", "f: a is True, the model's is 1"]


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_small_weights_are_quantised_as_well_as_they_can_be(kind: str, size: float) -> None:
    """Bug: a small block's scale, next to 0 in F16, is rounded by more than 2^-11 of it: a sound file is condemned."""
    gguf = pytest.importorskip("gguf")
    weights = size * np.random.default_rng(5).standard_normal((64, 32)).astype(np.float32)
    type_ = gguf.GGMLQuantizationType[kind]
    values = gguf.quants.dequantize(gguf.quants.quantize(weights, type_), type_)
    assert gguf_export._steps_off(weights, values, kind) <= 1 + 2.0**-10
    if size >= 1e-3:
        assert gguf_export._steps_off(weights, values + 0.02 * size, kind) > (1 if kind == "Q8_0" else 0.05)
