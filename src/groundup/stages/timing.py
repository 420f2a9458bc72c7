"""How long pretraining will take on this machine: from parts of a real step, timed for a few seconds, or from real steps.

FLOPs alone do not say it: on a small model norms, rotations, the loss and the optimizer take more than half of a step.
So one block of each kind, the ends of the model (embedding, last norm, head, loss) and the optimizer's update are timed
by themselves, at the recipe's own shapes, and added up; validations, samples and checkpoints come on top.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from groundup.console import Reporter
from groundup.model.batch import Batch
from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.plan.host import Host, copy_rate
from groundup.plan.memory import layer_parameters
from groundup.plan.resolve import model_config
from groundup.recipe.schema import PretrainSection, Recipe
from groundup.stages.training import VALIDATION_BYTES
from groundup.train import loop
from groundup.train.objective import language_modelling
from groundup.train.optim import Optimizers
from groundup.train.precision import autocast, compile_blocks

MOST_PARAMETERS = 300_000_000  # of what is built to be timed
WHOLE = 50_000_000  # models up to this size are built whole, so that the optimizer is timed as it is
PATIENCE = 0.7  # seconds for one part, its warm-up besides
# What is left of a block's eager time once it is compiled: medians over the blocks of town and wikipedia, on two cores
# with AVX512-BF16 (bench/plan_time.py --calibrate). Matmuls and attention stay, what lies between them is fused.
COMPILED = {"bf16": 0.80, "fp32": 0.90}
COMPILE_SECONDS = 25.0  # the first kind of block on a CPU, nothing cached; each other kind about half of it
SEAMS = 1.05  # a real step beside its parts: memory that the parts find warm is cold in between. Same bench
SAMPLED = 64  # tokens of a sample (stages/training.py)
DISK = 200e6  # bytes/s of a checkpoint: written, synced and hashed


@dataclass
class Timing:
    """Predicted seconds of the pretraining stage, by part."""

    step: float  # one optimizer step
    parts: dict[str, float] = field(default_factory=dict)
    method: str = ""

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def pretraining(recipe: Recipe, host: Host, measure: bool = False) -> Timing | None:
    """Time on this machine, from some seconds of measuring; None where one block alone is too large to be built here.

    measure: run real steps, compiled if the recipe says so (up to about a minute), instead of adding up parts.
    """
    config, section = model_config(recipe), recipe.pretrain
    block = max(layer_parameters(config, layer)[0] for layer in range(config.n_layers))
    ends = count(config)["embedding"] + count(config)["head"]
    if block + ends > MOST_PARAMETERS or 16 * (block + ends) > host.memory / 4:
        return None
    before = torch.get_rng_state()
    try:
        if measure and count(config)["total"] <= MOST_PARAMETERS:
            step, method = _real_step(config, section, host.device), "real steps"
        else:
            step, method = Parts(config, section, host.device).step(), "parts of a step, added up"
        other = _besides(config, recipe, host)
    finally:
        torch.set_rng_state(before)
    parts = {"steps": step * int(section.steps), **other}
    return Timing(step, parts, method)


# ---- a step from its parts ----


class Parts:
    """The parts of one step at a recipe's shapes, each timed alone."""

    def __init__(self, config: ModelConfig, section: PretrainSection, device: str) -> None:
        self.config, self.section, self.device = config, section, device
        self.kinds = Counter(kind(config, layer) for layer in range(config.n_layers))
        self.whole = count(config)["total"] <= WHOLE
        first = {kind(config, layer): layer for layer in reversed(range(config.n_layers))}
        self.layers = list(range(config.n_layers)) if self.whole else sorted(first.values())
        self.place = {name: self.layers.index(layer) for name, layer in first.items()}  # of a kind's block below
        self.model = _model(config, self.layers, device)
        self.blocks = self.model.blocks

    def step(self) -> float:
        """Seconds of one optimizer step, as compiled as the recipe asks."""
        section = self.section
        rows = min(int(section.micro_batch_size), int(section.batch_size))
        factor = COMPILED.get(str(section.precision), 1.0) if section.compile else 1.0
        inside = sum(times * self.block(name, rows) for name, times in self.kinds.items())
        return SEAMS * (int(section.batch_size) / rows * (factor * inside + self.ends(rows)) + self.update())

    def block(self, name: tuple[bool, bool, bool], rows: int) -> float:
        """Forward and backward of one block of a kind, eager, for `rows` sequences."""
        block = self.blocks[self.place[name]]

        def once(n: int) -> Callable[[], None]:
            x, call = self._call(block, self.layers[self.place[name]], n)
            grad = torch.randn_like(x)

            def run() -> None:
                with autocast(self.device, str(self.section.precision)):
                    y = call(x)
                y.backward(grad)
                x.grad = None
                block.zero_grad(set_to_none=True)

            return run

        return _per_row(once, rows, self.device) * rows

    def _call(self, block: nn.Module, layer: int, rows: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        c, batch = self.config, example(self.config, rows, self.device)
        local = c.is_local(layer)
        angles = self.model.angles_of_layers(batch.documents, batch.positions)[layer]
        mask = self.model.mask(batch.documents, batch.positions, None, local)
        mask = mask.detach() if mask is not None else None  # a trained bias keeps one graph for all repetitions
        x = torch.randn(rows, c.context, c.d_model, device=self.device, requires_grad=True)
        return x, lambda x: block(x, angles, mask, batch.positions, None)

    def ends(self, rows: int) -> float:
        """Embedding, last norm, head and loss, forward and backward: the model without its blocks."""

        def once(n: int) -> Callable[[], None]:
            batch = example(self.config, n, self.device)

            def run() -> None:
                with autocast(self.device, str(self.section.precision)):
                    loss = language_modelling(self.model, batch)
                loss.total.backward()
                self.model.zero_grad(set_to_none=True)

            return run

        self.model.blocks = nn.ModuleList()
        try:
            return _per_row(once, rows, self.device) * rows
        finally:
            self.model.blocks = self.blocks

    def update(self) -> float:
        """Clipping and the optimizers; where only some blocks are built, the rest is taken to cost the same."""
        with_blocks = self._update()
        if self.whole:
            return with_blocks
        self.model.blocks = nn.ModuleList()
        try:
            without = self._update()
        finally:
            self.model.blocks = self.blocks
        return without + max(0.0, with_blocks - without) * self.config.n_layers / len(self.layers)

    def _update(self) -> float:
        optimizers = Optimizers(self.model, self.section)
        parameters = list(optimizers.parameters())

        def run() -> None:
            for p in parameters:
                p.grad = torch.full_like(p, 1e-3)
            loop.clip_gradients(parameters, 1, self.section.grad_clip)
            optimizers.step(1e-6)  # a rate at which nothing changes
            optimizers.zero_grad()

        return _time(run, self.device)


def kind(config: ModelConfig, layer: int) -> tuple[bool, bool, bool]:
    """What makes blocks cost differently, and what a compiler makes a graph of its own for."""
    return config.is_local(layer), config.is_rotated(layer), config.has_experts(layer)


def _model(config: ModelConfig, layers: list[int], device: str) -> Transformer:
    """The model with some of its blocks: the others are never given memory."""
    with torch.device("meta"):
        model = Transformer(config)
    model.blocks = nn.ModuleList(model.blocks[layer] for layer in layers)
    return init_weights(model.to_empty(device=device), 0)


def example(config: ModelConfig, rows: int, device: str) -> Batch:
    """Rows of random tokens, three documents in each."""
    t = config.context
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (rows, t + 1), generator=generator)
    documents = (torch.arange(t) * 3 // t).int().expand(rows, t).contiguous()
    positions = torch.arange(t).expand(rows, t).contiguous()
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), documents, positions).to(device)


def _per_row(make: Callable[[int], Callable[[], None]], rows: int, device: str) -> float:
    """Seconds a row at `rows` rows; fewer are timed where so many would outlast the patience."""
    one = _once(make(1), device)
    fits = max(1, min(rows, int(PATIENCE / 3 / one)))
    return _time(make(fits), device) / fits


def _once(run: Callable[[], None], device: str) -> float:
    run()
    return _clock(run, device)


def _clock(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _time(run: Callable[[], None], device: str) -> float:
    """Median seconds over the patience (at least three runs), after one to warm up."""
    run()
    times: list[float] = []
    end = time.monotonic() + PATIENCE
    while len(times) < 3 or (time.monotonic() < end and len(times) < 50):
        times.append(_clock(run, device))
    return median(times)


# ---- real steps ----


@dataclass
class _Same:
    """A batch source that gives the same micro-batches at each step."""

    parts: list[Batch]

    def micro_batches(self, step: int) -> list[Batch]:
        return self.parts


def _real_step(config: ModelConfig, section: PretrainSection, device: str, seconds: float = 20.0) -> float:
    """Median seconds of the loop's own steps, after two that warm up (and compile)."""
    model = _model(config, list(range(config.n_layers)), device)
    total, micro = int(section.batch_size), min(int(section.micro_batch_size), int(section.batch_size))
    sizes = [min(micro, total - start) for start in range(0, total, micro)]
    job = loop.Job(
        name="plan",
        key="",
        model=model,
        objective=language_modelling,
        source=_Same([example(config, rows, "cpu") for rows in sizes]),
        section=section,
        folder=Path("."),  # nothing is written: the loop's files come with `train`, not with a step
        seed=0,
        reporter=Reporter(quiet=True),
        device=device,
    )
    optimizers, meter = Optimizers(model, section), loop.Meter(job, {})
    if section.compile:
        compile_blocks(model)

    def run() -> None:
        loop._one_step(job, optimizers, 0, int(section.steps), meter)

    run(), run()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 3 or (time.monotonic() < end and len(times) < 20):
        times.append(_clock(run, device))
    return median(times)


# ---- what comes besides the steps ----


def _besides(config: ModelConfig, recipe: Recipe, host: Host) -> dict[str, float]:
    """Seconds of compiling, validations, samples, checkpoints and the start, over the whole stage."""
    section, steps, n = recipe.pretrain, int(recipe.pretrain.steps), count(config)["total"]
    kinds = len({kind(config, layer) for layer in range(config.n_layers)})
    uneven = int(section.batch_size) % min(int(section.micro_batch_size), int(section.batch_size)) != 0
    graphs = kinds * (2 if uneven else 1)
    times = {"validate": section.validate_every, "sample": section.sample_every, "save": section.save_every}
    often = {name: math.ceil(steps / every) for name, every in times.items()}
    bytes_a_token = 1.0 if recipe.tokenizer.kind == "char" else 0.3 * math.log2(config.vocab_size)
    reads = 4 * n / copy_rate(host.device)  # a decoding step reads every weight
    sample = SAMPLED * (reads + 0.0005 * config.n_layers + 0.002)
    state = 4 * n * (2 if section.optimizer == "muon" else 3)
    return {
        "compile": COMPILE_SECONDS * (1 + 0.5 * (graphs - 1)) if section.compile else 0.0,
        "validations": often["validate"] * VALIDATION_BYTES / bytes_a_token * _forward(config, host.device),
        "samples": often["sample"] * sample if section.sample_prompts else 0.0,
        "checkpoints": often["save"] * (state / DISK + 0.1),
        "start": 2.0,
    }


def _forward(config: ModelConfig, device: str) -> float:
    """Seconds a token of scoring text: fp32, eager, without gradients. From one block of each kind and the ends."""
    parts = Parts(config, PretrainSection(steps=1, optimizer="adamw", learning_rate=1e-3), device)
    rows = max(1, 2048 // config.context)

    @torch.no_grad()
    def ends() -> None:
        language_modelling(parts.model, example(config, rows, device))

    blocks = 0.0
    for name, often in parts.kinds.items():
        x, call = parts._call(parts.blocks[parts.place[name]], parts.layers[parts.place[name]], rows)

        def block(x: Tensor = x, call: Callable[[Tensor], Tensor] = call) -> None:
            with torch.no_grad():
                call(x)

        blocks += often * _time(block, device)
    parts.model.blocks = nn.ModuleList()
    return (blocks + _time(ends, device)) / (rows * config.context)
