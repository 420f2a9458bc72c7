"""Masks in blocks: who sees whom must be what the dense mask says, and no pass may get a mask that cannot serve it.

FlexAttention has no backward pass on a CPU. Here its plain form runs (backend aot_eager), forward and back, through
the masks, the compiled blocks and the loop that CUDA would use; the Triton kernels themselves run in `bench/gpu.sh`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention

from groundup.model import attention, flex
from groundup.model.attention import attend, attention_mask
from groundup.model.config import LatentAttention, MixtureOfExperts, ModelConfig
from groundup.model.flex import BlockMasks, Facts, block_mask, mask_kind, separate
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.train.precision import autocast, compile_blocks
from groundup.train.recompute import recompute_blocks

T = 200
CONFIG = ModelConfig(64, 64, 2, 4, 2, 16, 128, T)
GPU = Facts(device="cuda", dtype=torch.bfloat16, compiled=True, separate=True, windowed=False)


@pytest.mark.parametrize(
    "changed, kind",
    [
        ({}, "blocks"),
        ({"dtype": torch.float16}, "blocks"),
        ({"separate": False}, "causal"),  # flash attention
        ({"separate": False, "windowed": True}, "blocks"),
        ({"separate": False, "softcap": True}, "blocks"),
        ({"separate": False, "softcap": True, "compiled": False}, "causal"),
        ({"compiled": False}, "dense"),
        ({"dtype": torch.float32}, "dense"),
        ({"sinks": True}, "dense"),
        ({"sinks": True, "separate": False}, "causal"),
        ({"bias": True}, "dense"),
        ({"bias": True, "separate": False}, "dense"),
        ({"cached": True}, "dense"),
        ({"narrowest": 8}, "dense"),
        ({"device": "cpu"}, "dense"),
        ({"device": "cpu", "softcap": True}, "dense"),
        ({"device": "cpu", "separate": False}, "causal"),
        ({"device": "cpu", "separate": False, "windowed": True}, "dense"),
    ],
)
def test_which_mask_a_pass_gets(changed: dict[str, Any], kind: str) -> None:
    """Bug: dense masks on a GPU that could do without; blocks for a kernel that is not there, or ignores the sinks."""
    assert mask_kind(replace(GPU, **changed)) == kind


def rows(seed: int, length: int, batch: int = 3, sort: bool = True) -> torch.Tensor:
    """Documents, some over the edges of blocks, and padding (negative) at the end of the first row."""
    generator = torch.Generator().manual_seed(seed)
    documents = torch.randint(0, 5, (batch, length), generator=generator, dtype=torch.int32)
    documents = documents.sort(1).values if sort else documents
    documents[0, length - length // 7 :] = -1
    return documents


@pytest.mark.parametrize("length", [1, 100, 128, 300, 513])
def test_a_block_mask_shows_what_the_dense_mask_shows(length: int) -> None:
    """Bug: a pair of places across a block's edge is lost or gained; a whole block hides a rule that still holds in it;
    the last, shorter block is taken for whole. Any numbering of documents counts, not rising numbers alone."""
    for window, sort in product((0, 1, 5, 127, 128, 129, 257), (True, False)):
        documents = rows(window, length, sort=sort)
        expected = attention_mask(documents, torch.arange(length)[None], None, window)
        assert expected is not None
        mask = block_mask(documents, length, window, documents.device)
        assert torch.equal(shown(mask, 3, length), expected[:, 0])
        alone = attention_mask(None, torch.arange(length)[None], None, window)
        expected = torch.ones(1, length, length, dtype=torch.bool).tril() if alone is None else alone[0]
        assert torch.equal(shown(block_mask(None, length, window, documents.device), 1, length), expected)


def shown(mask: Any, batch: int, length: int) -> torch.Tensor:
    """What a kernel makes of a block mask: whole blocks unseen, the rule in the others, nothing elsewhere."""
    size = mask.BLOCK_SIZE[0]
    rule = flex_attention.create_mask(mask.mask_mod, batch, None, length, length, device="cpu")[:, 0]
    out = torch.zeros(batch, length, length, dtype=torch.bool)
    back = torch.zeros_like(out)
    for numbers, indices, full, of_queries in (
        (mask.kv_num_blocks, mask.kv_indices, False, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True, False),
        (mask.q_num_blocks, mask.q_indices, False, True),  # what the backward pass reads
        (mask.full_q_num_blocks, mask.full_q_indices, True, True),
    ):
        for b, i in product(range(batch), range(indices.shape[2])):
            for j in indices[b, 0, i, : numbers[b, 0, i]].tolist():
                first, second = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
                here = (b, second, first) if of_queries else (b, first, second)
                (back if of_queries else out)[here] = True if full else rule[here]
    assert torch.equal(out, back)
    return out


def test_few_blocks_are_computed() -> None:
    """Bug: every block counts as in need of the rule, or none is left out: right, and as slow as a dense mask."""
    documents = (torch.arange(4096) // 1024)[None].int()
    mask = block_mask(documents, 4096, 0, documents.device)
    assert mask.full_kv_num_blocks is not None
    assert int(mask.kv_num_blocks.sum()) == 32 and int(mask.full_kv_num_blocks.sum()) == 4 * 28
    mask = block_mask(None, 4096, 512, documents.device)
    assert int(mask.kv_num_blocks[0, 0].max()) == 2 and int(mask.full_kv_num_blocks[0, 0].max()) == 3


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Facts]]:
    """The facts say CUDA and bf16, and FlexAttention's plain form may go back on a CPU; yields the facts asked for."""
    asked: list[Facts] = []
    given, compiled = flex.facts_of, nn.Module.compile

    def facts_of(model: Transformer, documents: torch.Tensor | None, *rest: Any) -> Facts:
        apart = documents is not None and separate(documents)
        asked.append(replace(given(model, documents, *rest), device="cuda", dtype=torch.bfloat16, separate=apart))
        return asked[-1]

    monkeypatch.setattr(flex, "facts_of", facts_of)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="aot_eager"))
    yield asked
    torch.compiler.reset()


def both(model: Transformer, plain: Transformer, documents: torch.Tensor) -> float:
    """Largest relative distance of outputs and gradients."""
    batch, length = documents.shape
    tokens = torch.randint(0, 64, documents.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for one in (model, plain):
        one.zero_grad()
        out = one(tokens, documents=documents, positions=torch.arange(length).expand(batch, length))
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in one.parameters() if p.grad is not None)])
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attention_softcap": 5.0},
        {"window": 40, "window_pattern": "LG"},
        {"n_kv_heads": 4, "qk_norm": "none", "latent": LatentAttention(64, 32, 16, 32)},
    ],
    ids=["documents", "capped", "windows", "latent"],
)
def test_compiled_blocks_compute_what_eager_ones_do(as_on_cuda: list[Facts], changed: dict[str, Any]) -> None:
    """Bug: documents leak, the cap is put on the unscaled scores, heads of a group get another group's keys; every
    batch is compiled anew, as its documents are others."""
    plain = init_weights(Transformer(replace(CONFIG, **changed)), 0)
    model = copy.deepcopy(plain)
    compile_blocks(model)
    attention.KERNELS.clear()
    assert both(model, plain, rows(0, T)) < 1e-4
    assert "flex" in attention.KERNELS
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for seed in (1, 2):
        assert both(model, plain, rows(seed, T)) < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_one_document_a_row_needs_no_mask(as_on_cuda: list[Facts]) -> None:
    """Bug: rows of one document each keep a mask, and with it flash attention away."""
    model = init_weights(Transformer(CONFIG), 0)
    compile_blocks(model)
    documents, positions = torch.zeros(2, T, dtype=torch.int32), torch.arange(T)[None]
    documents[1] = 7
    assert model.mask(documents, positions, None, False) is None
    documents[1, 5:] = 8
    assert model.mask(documents, positions, None, False) is not None


def test_an_uncompiled_pass_gets_a_dense_mask(as_on_cuda: list[Facts]) -> None:
    """Bug: validation, sampling and vital signs, which run eagerly, get blocks: all scores in memory, and hooks that
    cannot read the mask."""
    plain = init_weights(Transformer(CONFIG), 0)
    model = copy.deepcopy(plain)
    compile_blocks(model)
    documents, positions = rows(3, T), torch.arange(T)[None]
    assert not isinstance(model.mask(documents, positions, None, False), torch.Tensor)
    with torch.compiler.set_stance("force_eager"):
        found = model.mask(documents, positions, None, False)
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, attention_mask(documents, positions, None))
    other = copy.deepcopy(model)  # not compiled
    assert isinstance(other.mask, BlockMasks) and other.mask.model is other
    assert isinstance(other.mask(documents, positions, None, False), torch.Tensor)


def test_recomputed_experts_are_not_compiled(as_on_cuda: list[Facts]) -> None:
    """Bug: experts that are computed again run outside of the compiler, and FlexAttention keeps all scores there."""
    config = replace(CONFIG, moe=MixtureOfExperts(4, 2, 64))
    for mode, expected in (("none", True), ("block", False)):
        model = init_weights(Transformer(config), 0)
        recompute_blocks(model, mode)
        compile_blocks(model)
        model.mask(rows(0, T), torch.arange(T)[None], None, False)
        assert as_on_cuda[-1].compiled is expected


def test_a_cpu_computes_as_before() -> None:
    """Bug: compiled training on a CPU gets other masks, and a run begun before ends with other bytes."""
    model = init_weights(Transformer(CONFIG), 0)
    plain = copy.deepcopy(model)
    compile_blocks(model)
    positions = torch.arange(T)[None]
    for documents in (None, torch.zeros(2, T, dtype=torch.int32), rows(0, T)):
        found, expected = (m.mask(documents, positions, None, False) for m in (model, plain))
        assert (found is None) == (expected is None) == (documents is None)
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize(
    "case, kernel",
    [
        ("causal", "torch sdpa, causal"),
        ("masked", "torch sdpa, masked"),
        ("capped", "explicit"),
        ("native", "native"),
        ("no gradient", None),
    ],
)
def test_which_kernel_ran_is_known(case: str, kernel: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the record names a kernel that did not run, or what a validation used."""
    if case == "native" and not attention.native.available():
        pytest.skip("needs AVX512-BF16 and a C++ compiler")
    if case != "native":
        monkeypatch.setattr(attention.native, "serves", lambda *_: False)
    q = torch.randn(1, 2, 32, 16)
    mask = torch.ones(32, 32, dtype=torch.bool).tril()[None, None] if case == "masked" else None
    attention.KERNELS.clear()
    with torch.set_grad_enabled(case != "no gradient"):
        attend(q, q, q, mask, 0.25, softcap=5.0 if case == "capped" else 0.0, cached=False)
    assert ({kernel} if kernel else set()) == attention.KERNELS


def test_half_precision_by_autocast(as_on_cuda: list[Facts]) -> None:
    """Bug: queries in fp32 beside keys in bf16, which the kernel refuses."""
    plain = init_weights(Transformer(CONFIG), 0)
    model = copy.deepcopy(plain)
    compile_blocks(model)
    with autocast("cpu", "bf16"):
        assert both(model, plain, rows(0, T)) < 0.05


def test_a_model_without_blocks_has_masks() -> None:
    """Bug: the plan times the part of a model that has no block, and compiled that asks its first block."""
    model = Transformer(replace(CONFIG, n_layers=2))
    model.blocks = nn.ModuleList()
    assert BlockMasks(model)(torch.zeros(1, 8, dtype=torch.int32), torch.arange(8)[None], None, False) is not None


@pytest.mark.full
def test_many_kinds_of_batches_stay_compiled(as_on_cuda: list[Facts], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: blocks and no mask, windows or not, with gradients or not, by two models: past the compiler's limit of eight
    graphs a block runs uncompiled, and FlexAttention keeps all its scores."""
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    models = [init_weights(Transformer(replace(CONFIG, window=64, window_pattern="LG")), seed) for seed in (0, 1)]
    for model in models:
        compile_blocks(model)
    for count in (3, 2):
        for documents in (rows(0, T)[:count], torch.zeros(count, T, dtype=torch.int32)):
            for number, model in enumerate(models):
                with torch.set_grad_enabled(number == 0):
                    tokens, positions = torch.zeros(count, T, dtype=torch.long), torch.arange(T).expand(count, T)
                    assert bool(model(tokens, documents=documents, positions=positions).isfinite().all())
