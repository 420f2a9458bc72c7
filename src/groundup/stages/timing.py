"""How long pretraining will take on this machine: from parts of a step, timed for some seconds, or from real steps.

FLOPs alone do not say it: on a small model norms, rotations, the loss and the optimizer take more than half of a step.
So one block of each kind, the ends of the model (embedding, last norm, head, loss) and the optimizer's update are timed
by themselves, at the recipe's own shapes, and added up; validations, samples and checkpoints come on top. Blocks that
the run compiles are compiled here: nothing is lost, as the run finds them in the compiler's cache.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.plan.activations import Work
from groundup.plan.budget import budget, training_memory
from groundup.plan.host import Host, copy_rate
from groundup.plan.memory import Step, layer_parameters, training
from groundup.plan.optimizers import kept_by
from groundup.plan.resolve import Resolved, model_config
from groundup.recipe.schema import PretrainSection, Recipe
from groundup.stages.base import use_threads
from groundup.stages.steps import Steps, example, part_of
from groundup.stages.training import VALIDATION_BYTES
from groundup.train import loop
from groundup.train.objective import language_modelling
from groundup.train.optim import Optimizers
from groundup.train.precision import autocast, compile_blocks
from groundup.train.recompute import recompute_blocks

MOST_PARAMETERS = 300_000_000  # of what is built to be timed
WHOLE = 50_000_000  # models up to this size are built whole, so that the optimizer is timed as it is
PATIENCE = 0.5  # seconds for one part in one round, its warm-up besides
ROUNDS = 3  # over the parts: a neighbour's busy second then hits one round of a part, not the part
LONG = 4.0  # seconds: a micro-batch that keeps a block busy for longer is timed with fewer rows
SEAMS = 1.05  # a real step beside its parts: memory that the parts find warm is cold in between (bench/plan_time.py)
SAMPLED = 64  # tokens of a sample (stages/training.py)
DISK = 200e6  # bytes/s of a checkpoint: written, synced and hashed


WORTH = 30.0  # seconds of pretraining, roughly, from which on it is worth some seconds to know them better


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
        named = {f"{name}_seconds": seconds for name, seconds in self.parts.items()}
        return {"method": self.method, "step_seconds": self.step, **named}


def timed_budget(recipe: Recipe, host: Host, notes: list[Resolved], measure: bool = False) -> dict[str, Any]:
    """The plan on this machine with its time measured, where the run is long enough for that to matter.

    A sequence too long to be timed here leaves a note among what was resolved.
    """
    found = budget(recipe, host, notes)
    if not measure and found["seconds"] < WORTH:
        return found
    if not one_row_fits(recipe, host):
        reason = f"one sequence of {recipe.model.context:,} tokens takes more memory than can be timed here"
        note = Resolved("time", "from FLOPs alone", reason, "stages/timing.py")
        return {**found, "resolved": [*found["resolved"], asdict(note)]}
    timing = pretraining(recipe, host, measure)
    return found if timing is None else {**found, "seconds": timing.seconds, "timing": timing.to_dict()}


def one_row_fits(recipe: Recipe, host: Host) -> bool:
    """Whether one block takes one sequence forward and backward in half of this machine's memory."""
    block, section = replace(model_config(recipe), n_layers=1), recipe.pretrain
    work = Work(1, block.context, str(section.precision), host.device)
    found = training(block, Step(work, optimizer=kept_by(section), checkpoint=section.recompute))
    return found.activations + found.logits + found.temporary < host.memory / 2


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
    use_threads(recipe)
    try:
        made = Parts(config, section, host.device)
        compiling = _compiling(made) if section.compile else 0.0
        if measure and count(config)["total"] <= MOST_PARAMETERS:
            step, method = _real_step(config, section, host.device), "real steps"
        else:
            step, method = made.step(), "parts of a step, added up"
        other = _besides(config, recipe, host, made.forward())
    finally:
        torch.compiler.reset()  # the run compiles for itself: its graphs do not depend on having been timed
        torch.set_rng_state(before)
    parts = {"steps": step * int(section.steps), "compile": compiling, **other}
    return Timing(step, parts, method)


def _compiling(made: Parts) -> float:
    """`Parts.compile`. Errors: UserError where a block cannot be compiled here: no compiler, no space for its files."""
    from torch._dynamo.exc import TorchDynamoException  # a second to import

    try:
        return made.compile()
    except TorchDynamoException as error:
        raise UserError(
            f"pretrain.compile: true, and no block can be compiled here ({shorten(str(error), 160)}): install a C++ "
            "compiler, or set pretrain.compile: false (auto does so where there is none)"
        ) from None


# ---- a step from its parts ----


class Parts:
    """The parts of one step at a recipe's shapes, each timed alone."""

    def __init__(self, config: ModelConfig, section: PretrainSection, device: str) -> None:
        self.config, self.section, self.device = config, section, device
        self.kinds = Counter(kind(config, layer) for layer in range(config.n_layers))
        whole = count(config)["total"] <= WHOLE
        first = {kind(config, layer): layer for layer in reversed(range(config.n_layers))}
        few = sorted({*first.values(), *range(min(2, config.n_layers))})  # two at least: for the cost of one more
        self.layers = list(range(config.n_layers)) if whole else few
        self.place = {name: self.layers.index(layer) for name, layer in first.items()}  # of a kind's block below
        self.model = part_of(config, self.layers, device)
        recompute_blocks(self.model, section.recompute)
        self.blocks = self.model.blocks
        self.rows = min(int(section.micro_batch_size), int(section.batch_size))  # of a micro-batch
        self.few = {name: self.fitting(name) for name in self.kinds}  # of which so many are timed

    def step(self) -> float:
        """Seconds of one optimizer step, its blocks as they are: eager, or compiled by `compile`."""
        parts: dict[Any, list[float]] = {}
        for _ in range(ROUNDS):
            for name in self.kinds:
                parts.setdefault(name, []).append(self.block(name))
            parts.setdefault("ends", []).append(self.ends())
            parts.setdefault("update", []).append(self.update())
        best = {name: min(times) for name, times in parts.items()}
        inside = sum(times * best[name] for name, times in self.kinds.items())
        micro_batches = int(self.section.batch_size) / self.rows
        return SEAMS * (micro_batches * (inside + best["ends"]) + best["update"])

    def compile(self) -> float:
        """Compile the blocks; the seconds in which the run will have them: from the cache, which this fills."""
        compile_blocks(self.model)
        last = int(self.section.batch_size) % self.rows
        sizes = [*self.few.items(), *((name, last) for name, rows in self.few.items() if 0 < last < rows)]
        calls = [self.call(name, rows) for name, rows in sizes]
        for run in calls:
            run()
        torch.compiler.reset()
        return max(0.0, sum(_clock(run, self.device) - _clock(run, self.device) for run in calls))

    def block(self, name: Kind) -> float:
        """Seconds of one block of a kind, forward and backward, for one micro-batch."""
        return _time(self.call(name, self.few[name]), self.device) * self.rows / self.few[name]

    def fitting(self, name: Kind) -> int:
        """Rows of a micro-batch, fewer where so many would keep a block busy for long."""
        return max(1, min(self.rows, int(LONG / _once(self.call(name, 1), self.device))))

    def call(self, name: Kind, rows: int) -> Callable[[], None]:
        """Forward and backward of one block of a kind, for `rows` sequences."""
        block = self.blocks[self.place[name]]
        x, forward = self._forward(block, self.layers[self.place[name]], rows)
        grad = torch.randn_like(x)

        def run() -> None:
            with autocast(self.device, str(self.section.precision)):
                y = forward(x)
            y.backward(grad)
            x.grad = None
            block.zero_grad(set_to_none=True)
            self.model.router_loss()  # experts keep their losses, and the graph with them, until they are read

        return run

    def _forward(
        self, block: nn.Module, layer: int, rows: int, trained: bool = True
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """trained: with the mask that training gives (precision and compiler decide); else with a dense one."""
        c, batch = self.config, example(self.config, rows, self.device)
        local = c.is_local(layer)
        angles = self.model.angles_of_layers(batch.documents, batch.positions)[layer]
        as_trained = autocast(self.device, str(self.section.precision))
        with as_trained if trained else torch.compiler.set_stance("force_eager"):
            mask = self.model.mask(batch.documents, batch.positions, None, local)
        mask = mask.detach() if isinstance(mask, Tensor) else mask  # a trained bias keeps one graph for all repetitions
        x = torch.randn(rows, c.context, c.d_model, device=self.device, requires_grad=True)
        return x, lambda x: block(x, angles, mask, batch.positions, None)

    def ends(self) -> float:
        """Seconds of embedding, last norm, head and loss, forward and backward, for one micro-batch."""

        def once(n: int) -> Callable[[], None]:
            batch = example(self.config, n, self.device)

            def run() -> None:
                with autocast(self.device, str(self.section.precision)):
                    loss = language_modelling(self.model, batch)
                loss.total.backward()
                self.model.zero_grad(set_to_none=True)

            return run

        with self.blocks_left_out():
            return _per_row(once, self.rows, self.device) * self.rows

    @contextmanager
    def blocks_left_out(self, but: int = 0) -> Iterator[None]:
        """The model without its blocks, or with the first few alone."""
        self.model.blocks = self.blocks[:but]
        try:
            yield
        finally:
            self.model.blocks = self.blocks

    def forward(self) -> float:
        """Seconds a token of scoring text: fp32, eager, without gradients."""
        rows = max(1, 2048 // self.config.context)

        def no_grad(run: Callable[[], object]) -> float:
            def once() -> None:
                with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                    run()

            return _time(once, self.device)

        seconds = 0.0
        for name, often in self.kinds.items():
            x, call = self._forward(self.blocks[self.place[name]], self.layers[self.place[name]], rows, trained=False)
            seconds += often * no_grad(lambda x=x, call=call: call(x))  # type: ignore[misc]
        batch = example(self.config, rows, self.device)
        with self.blocks_left_out():
            seconds += no_grad(lambda: language_modelling(self.model, batch))
        return seconds / (rows * self.config.context)

    def update(self) -> float:
        """Clipping and the optimizers; where only some blocks are built, the others are taken to cost the same."""
        built, all_layers = len(self.layers), self.config.n_layers
        some = self._update()
        if built == all_layers:
            return some
        with self.blocks_left_out(but=1):  # never all: an optimizer of matrices needs some
            one = self._update()
        return one + max(0.0, some - one) * (all_layers - 1) / (built - 1)

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


Kind = tuple[bool, bool, bool]


def kind(config: ModelConfig, layer: int) -> Kind:
    """What makes blocks cost differently, and what a compiler makes a graph of its own for."""
    return config.is_local(layer), config.is_rotated(layer), config.has_experts(layer)


def _per_row(make: Callable[[int], Callable[[], None]], rows: int, device: str) -> float:
    """Seconds a row at `rows` rows; fewer are timed where so many would outlast the patience."""
    one = _once(make(1), device)
    fits = max(1, min(rows, int(LONG / one)))
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
    """Best seconds over the patience (at least three runs), after one to warm up; one run alone where it is slow.

    The best, not the median: a neighbour that keeps the machine busy now will not be there all the while.
    """
    if _clock(run, device) > 2 * PATIENCE:
        return _clock(run, device)
    times: list[float] = []
    end = time.monotonic() + PATIENCE
    while len(times) < 3 or (time.monotonic() < end and len(times) < 50):
        times.append(_clock(run, device))
    return min(times)


# ---- real steps ----


def _real_step(config: ModelConfig, section: PretrainSection, device: str, seconds: float = 20.0) -> float:
    """Best seconds of the loop's own steps, after two that warm up (and compile)."""
    run = Steps(config, section, device)
    for _ in range(2):
        run()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 3 or (time.monotonic() < end and len(times) < 20):
        times.append(_clock(run, device))
    return min(times)


# ---- what comes besides the steps ----


def _besides(config: ModelConfig, recipe: Recipe, host: Host, forward: float) -> dict[str, float]:
    """Seconds of validations, samples, checkpoints and the start, over the whole stage.

    forward: seconds a token of scoring.
    """
    section, steps, n = recipe.pretrain, int(recipe.pretrain.steps), count(config)["total"]
    times = {"validate": section.validate_every, "sample": section.sample_every, "save": section.save_every}
    often = {name: math.ceil(steps / every) for name, every in times.items()}
    bytes_a_token = 1.0 if recipe.tokenizer.kind in ("char", "byte") else 0.3 * math.log2(config.vocab_size)
    reads = 4 * n / copy_rate(host.device)  # a decoding step reads every weight
    sample = SAMPLED * (reads + 0.0005 * config.n_layers + 0.002)
    state = 4 * n + training_memory(config, section).optimizer
    return {
        "validations": often["validate"] * VALIDATION_BYTES / bytes_a_token * forward,
        "samples": often["sample"] * sample if section.sample_prompts else 0.0,
        "checkpoints": often["save"] * (state / DISK + 0.1),
        "start": 2.0,
    }
