"""Number formats and compilation from outside the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from groundup.train.precision import compile_blocks


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x).tanh()


def test_what_was_compiled_before_does_not_change_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a micro-model of the verifier was compiled in this process, so the run's sizes count as dynamic: it computes
    with other (slower) kernels than the same run resumed in a process of its own, and ends with other bytes."""
    dynamic: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        dynamic.append(any(isinstance(x, torch.SymInt) for x in inputs))
        return graph.forward

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend=backend))
    for width, rows in ((8, 3), (16, 5)):
        model = Model(width)
        compile_blocks(model)
        for block in model.blocks:
            block(torch.ones(rows, width))
    torch.compiler.reset()
    assert dynamic == [False, False]  # one graph a model, shared by its blocks, for the very sizes that go in
