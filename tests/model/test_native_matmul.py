"""The fp32 product in C++ against fp64, and in the layers, the loss and a whole model against torch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_shapes import build, tokens

from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.linear import Linear
from groundup.model.loss import CHUNK_BYTES, cross_entropy_sum
from groundup.model.native import build as building
from groundup.model.native import matmul as native
from groundup.model.transformer import Transformer
from groundup.train.precision import autocast, compile_blocks
from groundup.train.recompute import KEPT, recompute_blocks

needs_kernel = pytest.mark.skipif(building.library("matmul") is None, reason="no AVX-512, or no compiler")
needs_amd = pytest.mark.skipif(not native.available(), reason="no AMD CPU with AVX-512, or no compiler")
# M, N, K: ends of registers (6, 16, 64) and of blocks (96 of M, 512 of K, 2048 of N), and beyond them
SHAPES = [(6, 64, 16), (97, 80, 48), (1, 16, 1), (300, 48, 513), (193, 2064, 40), (11, 112, 1100)]
LAYOUTS = ["rows", "columns", "wide", "expanded"]


def matrix(rows: int, columns: int, layout: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if layout == "columns":
        return torch.randn(columns, rows, generator=generator).t()
    if layout == "wide":  # every third column of something larger
        return torch.randn(rows, 3 * columns + 1, generator=generator)[:, 1::3][:, :columns]
    if layout == "expanded":
        return torch.randn(1, columns, generator=generator).expand(rows, columns)
    return torch.randn(rows, columns, generator=generator)


def error(found: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    """Of each element beside what a sum of so many products may be off by."""
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    return float(((found - exact).abs() / (size + 1e-30)).max())


@needs_kernel
@pytest.mark.parametrize("layouts", [(x, y) for x in LAYOUTS for y in LAYOUTS])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_fp64(shape: tuple[int, int, int], layouts: tuple[str, str]) -> None:
    """Bug: an edge of a block left out, read twice or written beyond; strides of a turned matrix taken for dense."""
    m, n, k = shape
    a, b = matrix(m, k, layouts[0], 1), matrix(k, n, layouts[1], 2)
    room = torch.full((m + 2, n + 32), 7.0)  # what lies around the result stays
    out = native.into(room[1:-1, 16:-16], a, b)
    assert error(out, a, b) < 3e-7
    before = out.clone()
    native.into(out, a, b, add=True)
    assert error(out - before, a, b) < 1e-6
    room[1:-1, 16:-16] = 7.0
    assert bool((room == 7.0).all())


@needs_kernel
def test_threads_do_not_change_a_bit() -> None:
    """Bug: sums split among threads, and a run that is resumed on another number of them goes elsewhere."""
    a, b = matrix(777, 1300, "rows", 1), matrix(1300, 208, "columns", 2)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            found += [native.matmul(a, b), native.matmul(b.t(), a.t()[:, :768])]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(found, found[2:], strict=False))


@needs_kernel
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_seen(which: int, bad: float) -> None:
    """Bug: a lane is masked to 0, and a NaN in a weight or an activation does not reach the loss."""
    given = [matrix(300, 70, "rows", 1), matrix(70, 96, "columns", 2)]
    given[which][40, 50] = bad
    if bad == math.inf:
        given[1 - which][50 if which == 0 else 0, :] = 0.0  # inf x 0
    out = native.matmul(*given)
    expected = given[0].double() @ given[1].double()
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.isinf(), expected.isinf())
    assert not out.isfinite().all()


@needs_amd
@pytest.mark.parametrize("frozen", [None, "input", "weight"])
def test_a_layer_and_its_gradients(frozen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a gradient of the wrong matrix, or computed for a frozen one; second gradients that are 0."""
    calls, through = list[bool](), native.into
    monkeypatch.setattr(native, "into", lambda *given: calls.append(True) or through(*given))
    layer = Linear(48, 80, bias=False)
    x = torch.randn(2, 150, 48, generator=torch.Generator().manual_seed(0), requires_grad=frozen != "input")
    layer.weight.requires_grad_(frozen != "weight")
    out, expected = layer(x), x.double() @ layer.weight.double().t()
    assert out.grad_fn is not None and "groundup" in str(out.grad_fn.next_functions[0][0]).lower()
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-6)
    wanted = [p for p in (x, layer.weight) if p.requires_grad]
    way = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(out, wanted, way, retain_graph=True),
        torch.autograd.grad(expected, wanted, way.double()),
        strict=True,
    ):
        assert mine.is_contiguous() and torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1 + len(wanted)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(out.square().sum(), wanted[0], create_graph=True)[0].square().sum().backward()


@needs_kernel
def test_the_compiler_is_told_the_truth() -> None:
    """Bug: a compiled block expects another shape or type than the kernel gives."""
    x, weight = (torch.randn(n, 32, requires_grad=True) for n in (300, 48))
    for op, given in ((native.linear, (x, weight)), (native.matmul, (x.detach(), weight.detach().t()))):
        torch.library.opcheck(op, given, test_utils=("test_schema", "test_faketensor"))


@needs_amd
def test_what_it_does_not_serve_is_left_to_torch() -> None:
    """Bug: a product in bf16, of few rows or of odd widths comes to a kernel that reads beyond its end."""
    served = (torch.zeros(300, 32), torch.zeros(32, 48))
    assert native.serves(*served)
    for a, b in [
        (torch.zeros(255, 32), torch.zeros(32, 48)), (torch.zeros(300, 33), torch.zeros(33, 48)),
        (torch.zeros(300, 32), torch.zeros(32, 49)), (torch.zeros(300, 32), torch.zeros(32, 0)),
        (torch.zeros(300, 0), torch.zeros(0, 48)),
        tuple(x.bfloat16() for x in served), tuple(x.double() for x in served), tuple(x.to("meta") for x in served),
    ]:  # fmt: skip
        assert not native.serves(a, b)
    with autocast("cpu", "bf16"):
        assert not native.serves(*served)
        assert Linear(32, 48, bias=False)(served[0]).dtype == torch.bfloat16
    layer = Linear(32, 48, bias=True)
    assert torch.equal(layer(served[0]), F.linear(served[0], layer.weight, layer.bias))


@pytest.mark.parametrize("vendor", ["GenuineIntel", ""])
def test_it_stands_back_where_mkl_is_at_home(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: MKL, at the peak of an Intel CPU, is replaced by something slower."""
    monkeypatch.setattr(native, "cpu_vendor", lambda: vendor)
    assert not native.available()


@needs_amd
@pytest.mark.parametrize("mode", ["eager", "compiled", "block", "selective"])
def test_a_model_trains_as_with_torchs_products(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: in a whole model, compiled or with recomputed blocks, a layer or the loss computes something else."""

    def run() -> list[torch.Tensor]:
        model: Any = build(qk_norm="none", d_ff=64, vocab_size=304, context=64)
        if mode == "compiled":
            compile_blocks(model)
        elif mode != "eager":
            recompute_blocks(model, mode)
        rows = tokens(8, 65, vocab_size=304)
        total, n = cross_entropy_sum(model, model(rows[:, :-1]), rows[:, 1:].contiguous())
        (total / n).backward()
        return [total.detach(), *(p.grad for p in model.parameters())]

    shapes: list[tuple[int, int]] = []
    through = native.into

    def counted(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool = False) -> torch.Tensor:
        shapes.append(tuple(out.shape))
        return through(out, a, b, add)

    monkeypatch.setattr(native, "into", counted)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 256 * 304 * 4)  # the loss in two chunks: the second one's share is added
    torch._dynamo.utils.counters.clear()
    mine = run()
    assert (512, 128) in shapes and (128, 32) in shapes and (304, 32) in shapes  # forward and backward, and the head
    assert not torch._dynamo.utils.counters["graph_break"]
    monkeypatch.setattr(native, "cpu_vendor", lambda: "another")
    theirs = run()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_selective_recomputation_keeps_its_products() -> None:
    """Bug: `recompute: selective` keeps torch's products and computes these a second time."""
    assert "groundup::linear" in KEPT


@needs_amd
def test_forward_mode_is_left_to_torch() -> None:
    """Bug: torch.func.jvp gets tangents of 0, without a word."""
    layer, x = Linear(64, 64, bias=False), torch.randn(300, 64)
    _, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.ones_like(x) @ layer.weight.T)


@needs_amd
def test_hidden_states_laid_out_by_columns() -> None:
    """Bug: the gradient's buffer takes over the strides of hidden states by columns, and an assertion ends the run."""
    model = init_weights(Transformer(ModelConfig(96, 32, 1, 2, 1, 16, 64, 64)), 0)
    by_columns = torch.randn(32, 512, generator=torch.Generator().manual_seed(3)).t()[None]
    targets = torch.arange(512)[None] % 96
    found = []
    for hidden in (by_columns, by_columns.contiguous()):
        leaf = hidden.detach().as_strided(hidden.shape, hidden.stride()).requires_grad_()
        cross_entropy_sum(model, leaf, targets)[0].backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)
