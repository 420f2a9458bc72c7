"""Anybody's language model, as the checks see it: tokens in, logits out.

    # mymodel.py
    from groundup.verify import Adapter

    def target():
        model = GPT(Config(vocab_size=97, context=64))
        return Adapter(model, logits=lambda tokens: model(tokens)[0])

    groundup verify mymodel:target

What else the model can do (documents, padding, a cache, its own loss) is a function more, each with the checks that it
opens. The shapes: B rows, T tokens, V logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.verify import draw
from groundup.verify.check import Face
from groundup.verify.modes import HALF, in_dtype, is_half

Step = Callable[[Tensor], Tensor]


@dataclass
class Adapter:
    """A model under inspection. Only `module` and `logits` must be given.

    module      whose weights `logits` uses. The checks redraw them for a while and put them back
    logits      tokens (B, T) int64 -> (B, T, V); row t is what the model says of token t + 1
    tokenizer   the model's: transformers', tokenizers', tiktoken's, groundup's, or anything with encode and decode
    vocab_size  number of ids that may go in; found from the logits' width when not given
    context     longest row that may go in, at least 24; past it nothing is seen. Decoding is followed up to it, the
                other checks up to 128
    documents   (tokens, documents (B, T) int, 0 0 0 1 1 2 ...) -> logits; each document is to be read as if alone
    padded      (tokens, real (B, T) bool) -> logits; places that are not real stand at the side that `pads` names
    pads        on which side rows are padded, there and in `decoder`
    decoder     (tokens, real) -> (logits, step): begins decoding with a cache; step(tokens (B,)) -> (B, V) goes on
    loss        (tokens, targets (B, T)) -> mean over scored places; targets[:, t] follows tokens[:, t], -100 = unscored
    fresh       seed -> Adapter of the same model as its own code initialises it
    redraw      (module, seed) -> None: gives weights at which every part matters; see `redraw`
    pieces      (name, tensor of a parameter) -> [(name, tensor)] of what is packed in it (q, k, v; gate, up)
    pad         the id that stands for padding and nothing else: it is never drawn, as input or as target
    frozen      beginnings of names of parameters that the model's own code keeps from being trained, on purpose
    loss_over   (tokens, targets, n) -> sum over scored places / n: the share of a part of a batch that has n in all
    recompute   on or off -> None: whether activations are computed anew in the backward pass
    """

    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    tokenizer: Any = None
    vocab_size: int | None = None
    context: int = 32
    documents: Callable[[Tensor, Tensor], Tensor] | None = None
    padded: Callable[[Tensor, Tensor], Tensor] | None = None
    pads: Literal["left", "right"] = "left"
    decoder: Callable[[Tensor, Tensor], tuple[Tensor, Step]] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    fresh: Callable[[int], Adapter] | None = None
    redraw: Callable[[nn.Module, int], None] | None = None
    pieces: Callable[[str, Tensor], list[tuple[str, Tensor]]] | None = None
    pad: int | None = None
    frozen: tuple[str, ...] = ()
    loss_over: Callable[[Tensor, Tensor, int], Tensor] | None = None
    recompute: Callable[[bool], None] | None = None

    def __post_init__(self) -> None:
        found = []
        if not isinstance(self.module, nn.Module):
            found.append(f"module is a {type(self.module).__name__}, not a torch.nn.Module")
        elif not any(True for _ in self.module.parameters()):
            found.append("module has no parameters")
        if self.context < 24:
            found.append(f"context is {self.context}; the checks need rows of 24 tokens")
        if found:
            raise UserError("Adapter: " + "; ".join(found))

    # ---- the model, asked ----

    @property
    def ids(self) -> int:
        """Number of token ids that may go in."""
        if self.vocab_size is None:
            self.vocab_size = int(self.ask(torch.zeros(1, 4, dtype=torch.int64)).shape[-1])
        return self.vocab_size

    def ask(self, tokens: Tensor) -> Tensor:
        """(B, T, V) without a graph, in fp32. Errors: UserError for logits of another shape."""
        with torch.no_grad():
            return self.checked(self.logits(tokens.contiguous()), tokens)

    def answers(self) -> None:
        """Ask once. Errors: UserError where no logits come back: that is a wrong adapter, not a bug of the model."""
        try:
            self.ask(self.tokens(2, 24))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"Adapter: logits broke off on tokens (2, 24): {type(error).__name__}: {error}; logits takes ids "
                "(B, T) and gives (B, T, V)"
            ) from error

    def checked(self, logits: Any, tokens: Tensor) -> Tensor:
        """What the model gave for `tokens`, if it is (B, T, V)."""
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            rows, length = tokens.shape
            hint = "a model that gives the last place's logits alone must give all of them here"
            if not isinstance(logits, Tensor):
                hint = "take the logits out of it: logits=lambda tokens: model(tokens)[0], or model(tokens).logits"
            raise UserError(
                f"Adapter: for tokens ({rows}, {length}) the model gave {given}, not ({rows}, {length}, V); {hint}"
            )
        return logits.float().cpu()

    def tokens(self, rows: int, length: int, seed: int = 0) -> Tensor:
        """(rows, length) random ids; a quarter of each row at most are ids that code may treat apart (`special`)."""
        generator = draw.generator(seed)
        found = self._real(torch.randint(self.ids, (rows, length), generator=generator))
        held = torch.tensor(self.special, dtype=torch.int64)
        some = min(len(held), length // 4)
        at = torch.rand(rows, length, generator=generator).argsort(1)[:, :some]
        turned = (torch.arange(rows)[:, None] + torch.arange(some)) % max(1, len(held))
        return found.scatter(1, at, held[turned]) if some else found

    def other(self, tokens: Tensor) -> Tensor:
        """Ids that differ from `tokens` at each place."""
        return self._real((tokens + 1 + tokens.flip(1) % max(1, self.ids - 1)) % self.ids, but=tokens)

    def _real(self, tokens: Tensor, but: Tensor | None = None) -> Tensor:
        """The same with another id where padding's stands, and not those of `but`."""
        if self.padding is None or self.ids < 3:
            return tokens
        at, beside = tokens == self.padding, (self.padding + 1) % self.ids
        found = torch.where(at, beside, tokens)
        return found if but is None else torch.where(at & (but == beside), (beside + 1) % self.ids, found)

    @cached_property
    def padding(self) -> int | None:
        """The id that is padding's alone: the one given, or the tokenizer's, if that is no other special token too."""
        if self.pad is not None or self.tokenizer is None:
            return self.pad
        try:
            one = self._outside
            return one.pad if one.pad not in (one.bos, one.eos, one.unk) else None
        except Exception:  # its own checks say what is wrong with it
            return None

    @cached_property
    def special(self) -> list[int]:
        """Ids that code may treat apart, eight at most: the first, the last, those of special tokens; not padding's."""
        named: list[int] = []
        if self.tokenizer is not None:
            try:
                named = sorted({*self._outside.specials.values()} - {None})
            except Exception:  # its own checks say what is wrong with it
                named = []
        tables = [m for m in self.module.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None]
        named += [m.padding_idx for m in tables if m.padding_idx is not None and m.num_embeddings >= self.ids]
        found = dict.fromkeys([0, self.ids - 1, *named])
        return [n for n in found if 0 <= n < self.ids and n != self.padding][:8]

    def rounding(self, scale: float) -> float:
        """How far two computations of the same numbers of size `scale` may lie apart, in the weights' dtype.

        Each module with weights of its own rounds once, and what stands between two of them (softmax, activation, sum)
        once more; a sum of k terms is off by about eps sqrt(k) of its size, k being at most the widest dimension.
        """
        own = [m for m in self.module.modules() if any(True for _ in m.parameters(recurse=False))]
        widths = [n for p in self.module.parameters() for n in p.shape if n != self.ids]
        # Logits are compared in fp32 (`checked`), whatever the weights are in.
        types = {torch.float32, *(p.dtype for p in self.module.parameters() if p.is_floating_point())}
        eps = max(torch.finfo(dtype).eps for dtype in types)
        return float(eps * 2 * (len(own) + 1) * max(self.context, *widths) ** 0.5 * scale)

    def new(self, seed: int) -> Adapter:
        """`fresh`, in fp32 where it was in half precision and runs in fp32 as well."""
        assert self.fresh is not None
        found = self.fresh(seed)
        if not is_half(found.module) or not found._runs_in_fp32():
            return found
        found.module.float()
        return found

    def _runs_in_fp32(self) -> bool:
        """Whether the module does without its half precision: one that casts within breaks off."""
        with in_dtype(self.module, torch.float32, of=HALF):
            try:
                self.ask(torch.zeros(1, 4, dtype=torch.int64))
            except Exception:
                return False
        return True

    @contextmanager
    def awake(self, seed: int = 0) -> Iterator[None]:
        """Inside, every weight is one that matters, and the module in eval mode; afterwards all is as it was.

        Half precision is fp32 inside, where the module runs so: rounding to 8 bits hides what the checks look for.
        """
        before = {name: tensor.detach().clone() for name, tensor in _tensors(self.module)}
        modes = [(m, m.training) for m in self.module.modules()]
        dtypes = ExitStack()
        try:
            if is_half(self.module) and self._runs_in_fp32():
                dtypes.enter_context(in_dtype(self.module, torch.float32, of=HALF))
            (self.redraw or redraw)(self.module, seed)
            self.module.eval()
            yield
        finally:
            dtypes.close()
            with torch.no_grad():
                for name, tensor in _tensors(self.module):
                    tensor.copy_(before[name])
            for module, training in modes:
                module.training = training
            self.module.zero_grad(set_to_none=True)

    # ---- as a target ----

    kind = "model"

    def face(self, name: Face) -> Any | None:
        if name == "tokenizer" and self.tokenizer is not None:
            return self._outside
        return self if name == "model" else None

    @cached_property
    def _outside(self) -> Any:
        from groundup.verify.outside import OutsideTokenizer

        return OutsideTokenizer.of(self.tokenizer)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@torch.no_grad()
def redraw(module: nn.Module, seed: int) -> None:
    """Weights at which leaving a part out shows. First weights hide errors: attention is nearly uniform, biases are 0.

    Matrices are N(0, 1 / fan-in), biases N(0, 0.1), other vectors stay around the 0 or 1 that they stand at, by 0.5.
    """
    generator = draw.generator(seed + 1)
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        owner = module.get_submodule(name.rpartition(".")[0])
        if parameter.ndim >= 2:
            fan_in = parameter.shape[0 if type(owner).__name__ == "Conv1D" else -1]  # transformers' GPT-2: (in, out)
            parameter.copy_(noise / fan_in**0.5)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.5 * noise.clamp(-1, 1) + float(parameter.float().mean().round().clamp(0, 1)))
