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
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TrainSection
from groundup.train import loop
from groundup.train.loop import Job, Meter
from groundup.train.objective import BatchSource, Objective
from groundup.train.optim import Optimizers
from groundup.verify.subject import Subject

EPS = torch.finfo(torch.float32).eps  # 2^-23


def tolerance(config: ModelConfig, scale: float) -> float:
    """How far two fp32 computations of the same numbers of size `scale` may lie apart.

    Each block rounds about 7 times (2 norms, 4 matmuls, softmax), and embedding, last norm and head twice more. One
    rounding of a k-term sum is off by about eps sqrt(k) of its size, k being at most the widest dimension here.
    """
    k = max(config.d_model, config.d_ff, config.n_heads * config.head_dim, config.context)
    return EPS * (7 * config.n_layers + 2) * k**0.5 * scale


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
    return torch.randint(subject.micro.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def random_batch(subject: Subject, rows: int = 4, length: int = 24, seed: int = 0, scored: float = 1.0) -> Batch:
    """Rows of several packed documents; a target is the next token of the same document.

    scored: share of the targets kept, fewer in later rows, so that no two rows count the same.
    """
    generator = torch.Generator().manual_seed(seed + 17)
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
        key="verify",
        model=model,
        objective=objective or subject.objective,
        source=source,
        section=section,
        folder=folder,
        reporter=Reporter(quiet=True),
        on_warning=lambda text: None,  # the checks make steps go wrong on purpose
        **{"seed": 0, **more},
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
    row = one_step(subject, model, parts, recorder, **changes)
    return recorder.flat(), row["loss"]


@dataclass
class Run:
    """What a micro training run left: final tensors (weights and optimizer state), and the rows of its log."""

    tensors: dict[str, Tensor]
    rows: list[dict[str, Any]]

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
    validate: Callable[[], dict[str, float]] | None = None,
    sample: Callable[[int], None] | None = None,
    keep: Callable[[Transformer], None] | None = None,
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
    loop.train(make_job(subject, model, source, section, folder, seed=seed, validate=validate, sample=sample))
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors = {**model.state_dict(), **_optimizer_state(last)}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Run({name: t.detach().clone() for name, t in tensors.items()}, rows)


def _optimizer_state(checkpoint: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "optimizer.safetensors")


def real_optimizers(subject: Subject, model: Transformer, **changes: Any) -> Optimizers:
    """The recipe's optimizers on a micro model."""
    return Optimizers(model, subject.section(**changes))
