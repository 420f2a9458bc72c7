"""Ways of running somebody else's model: in another dtype, without dropout, with its calls listened to.

Nothing of the model is changed for it but what is put back at the end of each `with`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)


def is_half(module: nn.Module) -> bool:
    """Whether any weight is held in half precision."""
    return any(p.dtype in HALF for p in module.parameters())


@contextmanager
def in_dtype(module: nn.Module, dtype: torch.dtype, of: tuple[torch.dtype, ...]) -> Iterator[None]:
    """Parameters and buffers of the dtypes `of` are `dtype` inside; afterwards the storages are what they were."""
    parameters = [(p, p.data) for p in module.parameters() if p.dtype in of]
    buffers = [(m, n, b) for m in module.modules() for n, b in m._buffers.items() if b is not None and b.dtype in of]
    try:
        for p, kept in parameters:
            p.grad = None
            p.data = kept.to(dtype)
        for owner, name, kept in buffers:
            owner._buffers[name] = kept.to(dtype)
        yield
    finally:
        for p, kept in parameters:
            p.grad = None
            p.data = kept
        for owner, name, kept in buffers:
            owner._buffers[name] = kept


_DROPS = {getattr(F, n) for n in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")} | {
    F.feature_alpha_dropout,
    torch.dropout,
    torch.feature_dropout,
    torch.alpha_dropout,
}
_DROPPING = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}  # place of `dropout_p`


class _Undropped(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPS:
            return args[0] if args else kwargs["input"]
        at = _DROPPING.get(func)
        if at is not None and len(args) > at:
            args = (*args[:at], 0.0, *args[at + 1 :])
        elif at is not None and "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def without_dropout() -> TorchFunctionMode:
    """Inside, torch's dropouts give back what they are given, whatever their p and mode."""
    return _Undropped()


class Listening(TorchFunctionMode):
    """Calls of torch's functions inside are handed to `hear(function's name, args, kwargs)` before they are made."""

    def __init__(self, hear: Callable[[str, tuple[Any, ...], dict[str, Any]], None]) -> None:
        super().__init__()
        self.hear = hear

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.hear(getattr(func, "__name__", ""), args, kwargs or {})
        return func(*args, **(kwargs or {}))


class Looked(TorchFunctionMode):
    """Inside, what is looked up for `tokens` in a table of vectors begins a graph of its own, and is kept in `found`;
    with `cut` False the graph goes on to the table, which is kept in `tables` with the id that gets no gradient."""

    def __init__(self, tokens: Tensor, cut: bool = True) -> None:
        super().__init__()
        self.tokens, self.cut = tokens, cut
        self.found: list[Tensor] = []
        self.tables: list[tuple[Tensor, int | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return given
        named = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | (kwargs or {})
        asked = named["input"]
        length = self.tokens.shape[-1]  # of a model that shifts labels itself the row is one longer
        if asked.ndim != 2 or not torch.equal(asked[:, :length].cpu(), self.tokens.cpu()):
            return given
        if not self.cut:
            if named["weight"].requires_grad:
                named["weight"].retain_grad()
                self.tables.append((named["weight"], named.get("padding_idx")))
            return given
        self.found.append(given.detach().requires_grad_())
        return self.found[-1]


_CHOOSING = {"topk", "argmax", "sort", "argsort"}


def routes(ask: Callable[[], Any]) -> bool:
    """Whether what `ask` runs chooses among numbers of its own, as a router of experts does."""
    chosen = []

    def hear(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input")
        if name in _CHOOSING and isinstance(given, Tensor) and given.is_floating_point():
            chosen.append(name)

    with Listening(hear):
        ask()
    return bool(chosen)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """What a forward pass in training mode counts in its buffers is forgotten."""
    kept = [(b, b.detach().clone()) for b in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def trained(module: nn.Module, ask: Callable[[], Tensor], noise: Callable[[Tensor], float]) -> Iterator[None]:
    """Inside, training mode without dropout, if `ask` then says the same twice, up to `noise`; else eval mode."""
    with without_dropout():
        module.train()
        with buffers_kept(module), torch.no_grad():
            first = ask()
        with buffers_kept(module), torch.no_grad():
            if not float((ask() - first).abs().max()) <= noise(first):
                module.eval()
        yield
    module.eval()
