"""Apparatus: random batches, sources and optimizers that only record, and training runs of a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.console import Reporter
from groundup.model.batch import IGNORE, Batch
from groundup.model.config import ModelConfig
from groundup.model.linear import PackedLinear
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TrainSection
from groundup.train import loop
from groundup.train.loop import Job, Meter
from groundup.train.objective import BatchSource, Loss, Objective
from groundup.train.optim import Optimizers
from groundup.verify import draw
from groundup.verify.subject import Subject

EPS = torch.finfo(torch.float32).eps  # 2^-23


def tolerance(config: ModelConfig, scale: float) -> float:
    """How far two fp32 computations of the same numbers of size `scale` may lie apart.

    Each block rounds about 7 times (2 norms, 4 matmuls, softmax), and embedding, last norm and head twice more. One
    rounding of a k-term sum is off by about eps sqrt(k) of its size, k being at most the widest dimension here.
    """
    k = max(config.d_model, config.d_ff, config.n_heads * config.qk_dim, config.context)
    return EPS * (7 * config.n_layers + 2) * k**0.5 * scale


def differing(config: ModelConfig, a: Tensor, b: Tensor) -> Tensor:
    """Where two results are not the same, bool: bit for bit where nothing that reaches them was computed otherwise.

    With experts that is up to rounding (`tolerance`): how many tokens of the batch an expert was sent decides how its
    matmul is cut, and so the last bits of the others.
    """
    if config.moe is None:
        return a != b
    return ~((a - b).abs() <= tolerance(config, largest(b)))


def largest(difference: Tensor) -> float:
    """Largest absolute value; infinite when anything is not finite (max() would let NaN through)."""
    if difference.numel() == 0:
        raise ValueError("nothing to compare")
    return float(difference.abs().max()) if bool(difference.isfinite().all()) else float("inf")


def apart(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, Frobenius norms, in fp64."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def random_tokens(subject: Subject, rows: int, length: int, seed: int = 0) -> Tensor:
    """(rows, length) ids of the micro vocabulary."""
    return torch.randint(subject.micro.vocab_size, (rows, length), generator=draw.generator(seed))


def random_batch(subject: Subject, rows: int = 4, length: int = 24, seed: int = 0, scored: float = 1.0) -> Batch:
    """Rows of several packed documents; a target is the next token of the same document.

    scored: share of the targets kept, fewer in later rows, so that no two rows count the same.
    """
    generator = draw.generator(seed + 17)
    tokens = random_tokens(subject, rows, length + 1, seed)
    begins = torch.rand(rows, length + 1, generator=generator) < 0.12
    begins[:, 0] = True
    documents = begins.cumsum(1) - 1
    place = torch.arange(length + 1).expand(rows, -1)
    positions = place - torch.where(begins, place, 0).cummax(1).values
    targets = torch.where(begins[:, 1:], IGNORE, tokens[:, 1:])
    if scored < 1:
        share = torch.linspace(scored, scored / 4, rows)[:, None]
        targets = torch.where(torch.rand(rows, length, generator=generator) < share, targets, IGNORE)
    return Batch(tokens[:, :-1], targets, documents[:, :-1].int(), positions[:, :-1])


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some rows of a batch, as a batch."""
    part = slice(start, stop)
    extra = {name: tensor[part] for name, tensor in batch.extra.items()}
    return Batch(batch.tokens[part], batch.targets[part], batch.documents[part], batch.positions[part], extra)


def pieces(model: Transformer, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A parameter's tensor (or its gradient) as what it is made of: q, k, v; gate, up; one expert after another."""
    owner = model.get_submodule(name.rpartition(".")[0])
    experts = list(tensor) if tensor.ndim == 3 else [tensor]
    if isinstance(owner, PackedLinear):
        sizes: tuple[int, ...] = owner.sizes
    else:
        packed = tensor.ndim == 3 and name.endswith("gate_up")
        rows = experts[0].shape[0] if experts[0].ndim else 1
        sizes = (rows // 2, rows // 2) if packed else (rows,)
    parts = [part for expert in experts for part in expert.split(sizes)]
    return [(name, parts[0])] if len(parts) == 1 else [(f"{name}[{n}]", part) for n, part in enumerate(parts)]


def matrices(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """(name, matrix) of everything that is one: embeddings and head, and each piece of what is packed or stacked."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            yield from pieces(model, name, parameter)


@dataclass
class Call:
    """One call of a module: what went in, and what came out."""

    inputs: tuple[Any, ...]
    output: Tensor


def calls(model: Transformer, part: str, tokens: Tensor, **given: Any) -> list[Call]:
    """What each layer's `part` (attention, mlp, or "" for the block) took and gave in one forward pass, in order."""
    found: list[Call] = []
    modules = [block.get_submodule(part) for block in model.blocks]
    hooks = [m.register_forward_hook(lambda _, inputs, output: found.append(Call(inputs, output))) for m in modules]
    with torch.no_grad():
        model(tokens, **given)
    for hook in hooks:
        hook.remove()
    return found


def packed_row(*lengths: int, rows: int = 2) -> dict[str, Tensor]:
    """Documents of these lengths, one after the other, in each row."""
    documents = torch.cat([torch.full((n,), d) for d, n in enumerate(lengths)]).expand(rows, -1)
    return {"documents": documents.int(), "positions": torch.cat([torch.arange(n) for n in lengths]).expand(rows, -1)}


def logits_of(model: Transformer, tokens: Tensor, **given: Any) -> Tensor:
    """(B, T, V) without a graph."""
    with torch.no_grad():
        return model.logits(model(tokens, **given))


@dataclass
class Fixed:
    """A batch source that gives the same micro-batches at each step."""

    parts: list[Batch]

    def micro_batches(self, step: int) -> list[Batch]:
        return self.parts


@dataclass
class Varying:
    """A batch source over random batches, a pure function of the step; may break off, as a killed process does."""

    subject: Subject
    seed: int = 0
    dies_at: int | None = None
    parts: int = 2

    def micro_batches(self, step: int) -> list[Batch]:
        if step == self.dies_at:
            raise Killed
        return [random_batch(self.subject, 2, 16, self.seed + 100 * step + n, scored=0.8) for n in range(self.parts)]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@dataclass
class Recorder:
    """Stands where the optimizers stand in one step of the loop, and keeps the gradients it would have used."""

    model: nn.Module
    gradients: dict[str, Tensor] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()

    def step(self, share: float) -> None:
        self.shares.append(share)
        named = self.model.named_parameters()
        self.gradients = {name: p.grad.detach().clone() for name, p in named if p.grad is not None}

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def flat(self) -> Tensor:
        return torch.cat([g.flatten() for _, g in sorted(self.gradients.items())])


def make_job(
    subject: Subject,
    model: Transformer,
    source: BatchSource,
    section: TrainSection,
    folder: Path,
    objective: Objective | None = None,
    **more: Any,
) -> Job:
    return Job(
        name="verify",
        model=model,
        objective=objective or subject.objective,
        source=source,
        section=section,
        folder=folder,
        reporter=Reporter(quiet=True),
        on_warning=lambda text: None,  # the checks make steps go wrong on purpose
        **{"seed": 0, "key": "verify", **more},
    )


def one_step(
    subject: Subject,
    model: Transformer,
    parts: list[Batch],
    optimizers: Any,
    objective: Objective | None = None,
    step: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """One optimizer step over `parts` through the loop's own code; `changes` are to the section."""
    section = subject.section(**{"warmup": 0.0, "schedule": "constant", "grad_clip": 1e30, **changes})
    with subject.scratch() as folder:
        job = make_job(subject, model, Fixed(parts), section, folder, objective)
        return loop._one_step(job, optimizers, step, int(section.steps), Meter(job, {}))


def recorded_gradient(subject: Subject, model: Transformer, parts: list[Batch], **changes: Any) -> tuple[Tensor, float]:
    """(gradient the optimizer would have been given, loss that would have been logged) of one step over `parts`."""
    recorder = Recorder(model)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    row = one_step(subject, model, parts, recorder, **changes)
    for name, buffer in model.named_buffers():  # experts' biases move at the end of a step
        buffer.copy_(kept[name])
    return recorder.flat(), row["loss"]


@dataclass
class Run:
    """What a micro training run left: final tensors (weights and optimizer state), the rows of its log, its metrics."""

    tensors: dict[str, Tensor]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]  # what the stage would record

    def differing(self, other: Run) -> list[str]:
        """Names whose tensors are not bit-equal."""
        names = self.tensors.keys() | other.tensors.keys()
        return sorted(
            n
            for n in names
            if n not in self.tensors or n not in other.tensors or not torch.equal(self.tensors[n], other.tensors[n])
        )


def run(
    subject: Subject,
    folder: Path,
    source: BatchSource,
    *,
    model_seed: int = 0,
    seed: int = 0,
    key: str = "verify",
    validate: Callable[[], dict[str, float]] | None = None,
    sample: Callable[[int], None] | None = None,
    keep: Callable[[Transformer], None] | None = None,
    objective: Objective | None = None,
    dropout: float = 0.1,
    **changes: Any,
) -> Run:
    """Train a micro model through `loop.train`, with dropout so that the random state matters.

    keep: called with the model before it is trained, for callbacks that need it.
    """
    model = subject.build_model(model_seed, awake=False, dropout=dropout)
    if keep is not None:
        keep(model)
    section = subject.section(**changes)
    given: dict[str, Any] = {"seed": seed, "key": key, "validate": validate, "sample": sample}
    summary = loop.train(make_job(subject, model, source, section, folder, objective, **given))
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors = {**model.state_dict(), **_optimizer_state(last)}
    return Run({name: t.detach().clone() for name, t in tensors.items()}, logged(folder), summary)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _optimizer_state(checkpoint: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "optimizer.safetensors")


def real_optimizers(subject: Subject, model: Transformer, **changes: Any) -> Optimizers:
    """The recipe's optimizers on a micro model."""
    return Optimizers(model, subject.section(**changes))


def poisoned(subject: Subject, kind: str) -> Objective:
    """The subject's objective, its `loss` NaN, or its `gradient` NaN with a finite loss, or in `overflow`."""

    def objective(model: Transformer, batch: Batch) -> Loss:
        loss = subject.objective(model, batch)
        first = next(model.parameters()).flatten()[0]
        if kind == "loss":
            return Loss(loss.total * float("nan"), loss.weight)
        if kind == "overflow":
            return Loss(loss.total + first * 1e30 * 1e30, loss.weight)
        # The loss stays finite, the gradient does not: d sqrt(x) / dx at 0, times 0.
        return Loss(loss.total + 0 * torch.sqrt(first - first.detach()), loss.weight)

    return objective
