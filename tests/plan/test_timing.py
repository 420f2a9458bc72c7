"""Time from parts: what is added up, and that measuring leaves no trace. How long anything takes is not tested here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.plan.host import Host
from groundup.plan.resolve import resolve
from groundup.recipe.load import parse_recipe
from groundup.recipe.schema import Recipe
from groundup.stages import timing
from groundup.stages.steps import Steps, part_of

HOST = Host("cpu", 1, 16 << 30, fast_bf16=False, compiler=False)


def recipe(model: dict[str, Any] | None = None, **pretrain: Any) -> Recipe:
    tree = {
        "name": "x", "threads": 1, "data": {"sources": [{"builtin": "town"}]},
        "model": {"d_model": 32, "n_layers": 3, "n_heads": 2, "d_ff": 64, "context": 32, **(model or {})},
        "tokenizer": {"vocab_size": 300},
        "pretrain": {
            "steps": 90, "batch_size": 4, "micro_batch_size": 2, "compile": False, "save_every": 40, **pretrain,
        },
    }  # fmt: skip
    return resolve(parse_recipe(tree, "test"), HOST)[0]


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part takes a second, whatever it is; the parts are really run once."""

    def run_once(run: Any, device: str) -> float:
        run()
        return 1.0

    monkeypatch.setattr(timing, "_time", run_once)
    monkeypatch.setattr(timing, "_once", run_once)
    monkeypatch.setattr(timing, "copy_rate", lambda device: 1e12)


@pytest.mark.usefixtures("clockwork")
def test_a_step_is_the_sum_of_its_parts() -> None:
    """Bugs: layers, micro-batches or the update are left out; the update is counted once a micro-batch."""
    parts = timing.Parts(model(recipe()), recipe().pretrain, "cpu")
    # a micro-batch of 2 rows is timed in a second: 3 blocks and the ends, 2 micro-batches, one update
    assert parts.step() == pytest.approx(timing.SEAMS * (2 * (3 * 1.0 + 1.0) + 1.0))


@pytest.mark.usefixtures("clockwork")
def test_slow_blocks_are_timed_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a micro-batch of minutes is timed whole, or a row's time is taken for the micro-batch's."""
    monkeypatch.setattr(timing, "LONG", 1.0)  # a row takes a second: one alone is timed
    parts = timing.Parts(model(recipe()), recipe().pretrain, "cpu")
    assert set(parts.few.values()) == {1}
    assert parts.step() == pytest.approx(timing.SEAMS * (2 * (3 * 2.0 + 2.0) + 1.0))


def test_blocks_are_timed_compiled_where_the_run_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: eager blocks are timed for a run that compiles, scoring is compiled although a run's is not, compiled
    graphs stay behind for the run, the second time (which finds the cache) is not the one that is told."""
    graphs, clock = [], iter([10.0, 2.0, 3.0, 1.5])

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: self.__setattr__(
        "_compiled_call_impl", torch.compile(self._call_impl, backend=backend)))  # fmt: skip
    given = recipe({"n_layers": 2, "window": 8, "window_pattern": "LG"}, compile=True, batch_size=3)
    parts = timing.Parts(model(given), given.pretrain, "cpu")
    assert not graphs
    # micro-batches of 2 rows and of 1, two kinds of block: each compiled to fill the cache, and once more to be clocked
    monkeypatch.setattr(timing, "_clock", lambda run, device: run() or next(clock, 0.0))
    assert parts.compile() == 8.0 + 1.5
    made = len(graphs)
    assert made >= 4
    monkeypatch.undo()
    parts.forward()
    assert len(graphs) == made  # scoring is eager
    parts.block(next(iter(parts.kinds)))
    assert len(graphs) == made  # and a block's own time is the compiled one, no further graph


@pytest.mark.usefixtures("clockwork")
def test_kinds_of_blocks_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a windowed layer or one with experts is taken for the first layer's kind; large models are built whole."""
    shape = {
        "n_layers": 4, "window": 8, "window_pattern": "LG",
        "moe": {"n_experts": 4, "top_k": 2, "d_expert": 32, "first_dense": 1},
    }  # fmt: skip
    monkeypatch.setattr(timing, "WHOLE", 0)
    given = recipe(shape)
    parts = timing.Parts(model(given), given.pretrain, "cpu")
    assert parts.layers == [0, 1, 2] and len(parts.model.blocks) == 3
    assert dict(parts.kinds) == {(True, True, False): 1, (False, True, True): 2, (True, True, True): 1}
    assert parts.step() == pytest.approx(timing.SEAMS * (2 * (4 * 1.0 + 1.0) + 1.0))


@pytest.mark.usefixtures("clockwork")
@pytest.mark.parametrize(
    "shape",
    [{"position": "t5"}, {"position": "alibi"}, {"attention_softcap": 20.0}, {"mlp": "gelu", "block": "parallel"}],
)
def test_every_kind_of_model_can_be_timed(shape: dict[str, Any]) -> None:
    """Bug: a part cannot be run twice (a graph that is freed), or is given arguments that no block takes."""
    found = timing.pretraining(recipe(shape), HOST)
    assert found is not None and found.method == "parts of a step, added up"


@pytest.mark.usefixtures("clockwork")
def test_the_stage_is_more_than_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: compiling, validations or checkpoints are forgotten, or counted where the recipe has none."""
    found = timing.pretraining(recipe(validate_every=30, sample_every=1000, sample_prompts=[]), HOST)
    assert found is not None
    assert found.parts["steps"] == pytest.approx(90 * found.step)
    assert found.parts["compile"] == found.parts["samples"] == 0
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    monkeypatch.setattr(timing.Parts, "compile", lambda self: 7.0)
    more = timing.pretraining(recipe(validate_every=10, save_every=10, compile=True), HOST)
    assert more is not None
    assert more.parts["validations"] == pytest.approx(3 * found.parts["validations"])
    assert more.parts["checkpoints"] == pytest.approx(3 * found.parts["checkpoints"])
    assert more.parts["compile"] == 7.0
    named = more.to_dict()
    assert named["step_seconds"] == more.step and named["compile_seconds"] == more.parts["compile"]


def test_measuring_leaves_no_trace() -> None:
    """Bug: timing draws random numbers, and a run that was planned first is another run."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert timing.pretraining(recipe(), HOST) is not None
    assert torch.equal(before, torch.get_rng_state())


def test_short_runs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: seconds of measuring for a run of seconds; a long run whose time is not measured."""
    rough = {"seconds": 1.0, "flops": 1e9}
    monkeypatch.setattr(timing, "budget", lambda *_: dict(rough))
    monkeypatch.setattr(timing, "pretraining", lambda *_: timing.Timing(0.5, {"steps": 45.0, "start": 2.0}, "test"))
    assert timing.timed_budget(recipe(), HOST, []) == rough
    assert timing.timed_budget(recipe(), HOST, [], measure=True)["seconds"] == 47.0
    rough["seconds"] = timing.WORTH + 1
    found = timing.timed_budget(recipe(), HOST, [])
    assert found["seconds"] == 47.0 and found["timing"]["steps_seconds"] == 45.0
    monkeypatch.setattr(timing, "pretraining", lambda *_: None)
    assert timing.timed_budget(recipe(), HOST, []) == rough


def test_what_cannot_be_built_here_is_not_timed() -> None:
    """Bug: a plan of a 70B model on a laptop takes its memory and never ends."""
    big = recipe({"d_model": 8192, "n_heads": 64, "d_ff": 28672})
    assert timing.pretraining(big, HOST) is None
    assert timing.pretraining(recipe(), replace(HOST, memory=1000)) is None


def test_a_sequence_too_long_for_here_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a context of 10^12 tokens (a slip of the keyboard) asks for 256 TB, and the plan is a traceback."""
    rough = {"seconds": timing.WORTH + 1, "flops": 1e9, "resolved": [{"key": "x"}]}
    monkeypatch.setattr(timing, "budget", lambda *_: dict(rough))
    monkeypatch.setattr(timing, "pretraining", lambda *_: pytest.fail("timed"))
    found = timing.timed_budget(recipe({"context": 10**12}), HOST, [])
    assert found["seconds"] == rough["seconds"] and "timing" not in found
    assert found["resolved"][0] == {"key": "x"} and found["resolved"][1]["value"] == "from FLOPs alone"
    assert "1,000,000,000,000 tokens takes more memory" in found["resolved"][1]["reason"]
    for shape in ({}, {"position": "alibi"}, {"moe": {"n_experts": 4, "top_k": 2, "d_expert": 16, "first_dense": 1}}):
        assert timing.one_row_fits(recipe(shape), HOST)


def test_real_steps_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: the steps that are timed change nothing (no update, no gradient); files are written by them."""
    given = recipe()
    steps = Steps(model(given), given.pretrain)
    before = {name: p.clone() for name, p in steps.model.named_parameters()}
    steps()
    assert steps.meter.tokens == 4 * 32
    assert all(not torch.equal(before[name], p) for name, p in steps.model.named_parameters())
    monkeypatch.setattr(timing, "_clock", lambda run, device: run() or 0.25)
    assert timing._real_step(model(given), given.pretrain, "cpu", seconds=0) == 0.25


def test_a_block_that_cannot_be_compiled_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: no C++ compiler, compile: true, and `plan`, which only wanted a time, ends in a traceback."""
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(self: timing.Parts) -> float:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no working C++ compiler"), None)

    monkeypatch.setattr(timing.Parts, "compile", fails)
    with pytest.raises(UserError, match=r"no working C\+\+ compiler.*pretrain.compile: false"):
        timing.pretraining(recipe(compile=True), HOST)


def test_parts_of_a_model() -> None:
    """Bug: blocks that are not asked for are given memory, or hold no numbers."""
    config = model(recipe())
    some = part_of(config, [2], "cpu")
    assert len(some.blocks) == 1 and not any(p.is_meta for p in some.parameters())
    assert all(bool(p.isfinite().all()) for p in some.parameters())


def model(given: Recipe) -> ModelConfig:
    from groundup.plan.resolve import model_config

    return model_config(given)
