"""Whole evaluations of a real, untrained model, through lm-evaluation-harness."""

from __future__ import annotations

import json
import logging
import random
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from groundup.data.shard import write_shard
from groundup.data.town.tasks import TASKS
from groundup.errors import UserError
from groundup.evaluate import run
from groundup.infer.engine import Completion, Engine
from groundup.infer.sample import SamplingParams
from groundup.model.transformer import Transformer
from groundup.recipe.schema import EvaluateSection, TaskSource
from groundup.record.files import read_json
from groundup.tokenizer.tokenizer import Tokenizer

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "groundup[eval]"')

from groundup.evaluate.run import evaluate_model


def evaluate(model: Transformer, tokenizer: Tokenizer, out: Path, tasks: list[Any], **more: Any) -> dict[str, Any]:
    section = EvaluateSection(tasks=tasks, max_new_tokens=6, batch_size=16, **more)
    return evaluate_model(model, tokenizer, section, None, 0, out, "sft")


def write_task(path: Path, rows: Sequence[dict[str, Any]], **fields: Any) -> TaskSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskSource(name=path.stem, path=str(path), **fields)


WORDS = ["cat", "dog", "baker", "tailor", "lane", "mat", "job", "seven", "church", "neighbour", "grey", "tall", "far"]


def test_a_random_model_is_at_chance(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catches gold that leaks into the question, a default choice, and an empty or NaN choice that wins."""
    rng = random.Random(5)
    rows = [
        {"prompt": f"The {rng.choice(WORDS)} sat on the", "choices": rng.sample(WORDS, 4), "answer": rng.randrange(4)}
        for _ in range(400)
    ]
    task = write_task(tmp_path / "choice.jsonl", rows, choices_field="choices")
    found = evaluate(model, tokenizer, tmp_path, [task])["tasks"]["choice"]
    assert (found["n"], found["metric"], found["chance"]) == (400, "acc", 0.25)
    assert found["low"] < 0.25 < found["high"]
    assert found["acc_norm"]["low"] < 0.25 < found["acc_norm"]["high"]
    assert found["stderr"] == pytest.approx((found["value"] * (1 - found["value"]) / 399) ** 0.5)  # lm-eval's own


def test_multiple_choice_takes_the_likelier_choice(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catches choices scored without their question, or without the space before them: gold here is what the
    model itself finds likelier, computed apart, so that the score must be 1."""
    rng = random.Random(6)
    engine, rows = Engine(model, tokenizer), []
    for _ in range(40):
        prompt, choices = f"The {rng.choice(WORDS)} and the", rng.sample(WORDS, 3)
        context = [tokenizer.bos, *tokenizer.encode(prompt)]
        sums = [one.logprob for one in engine.score([(context, tokenizer.encode(" " + c)) for c in choices])]
        rows.append({"prompt": prompt, "choices": choices, "answer": choices[sums.index(max(sums))]})
    task = write_task(tmp_path / "own.jsonl", rows, choices_field="choices")
    assert evaluate(model, tokenizer, tmp_path, [task])["tasks"]["own"]["value"] == 1.0


def test_town_answers_are_the_engines_and_scored_by_the_town(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catches prompts in another format than chat's, and an answer scored against another question."""
    found = evaluate(model, tokenizer, tmp_path, ["town-facts", "town-lookalikes"], limit=30)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    engine = Engine(model, tokenizer)
    params = SamplingParams(max_new_tokens=6, temperature=0, stop_ids=(tokenizer.end, tokenizer.eos))
    for name in ("town-facts", "town-lookalikes"):
        questions = {q.id: q for q in TASKS[name].questions(0)}
        mine = [s for s in samples if s["task"] == name]
        assert len(mine) == found["tasks"][name]["n"] == 30
        for sample in mine[:10]:
            question = questions[sample["id"]]
            prompt = engine.chat_prompt([{"role": "user", "content": question.prompt}])
            assert sample["prompt"] == question.prompt
            assert sample["answer"] == engine.generate([prompt], params)[0].text
            assert sample["score"] == TASKS[name].score(question, sample["answer"])


class Oracle(Engine):
    """Answers what `answers` says to the question in a prompt: shows which answer reaches which question."""

    answers: dict[str, str]

    def generate(self, prompts: Any, params: Any, on_token: Any = None, on_finish: Any = None) -> list[Completion]:
        found = []
        for prompt in prompts:
            question = self.tokenizer.decode(prompt)
            found.append(Completion([], self.answers[question], "stop", [], len(prompt)))
        return found


def test_right_answers_score_one_and_wrong_ones_zero(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches answers that reach the wrong question (then the even ones would not be the right ones)."""
    rows = [{"prompt": f"Number {i}?", "answer": str(i)} for i in range(60)]
    Oracle.answers = {f"Number {i}?": f" {i}.\n" if i % 2 == 0 else "no" for i in range(60)}
    monkeypatch.setattr(run, "Engine", Oracle)
    task = write_task(tmp_path / "numbers.jsonl", rows)
    found = evaluate(model, tokenizer, tmp_path, [task])["tasks"]["numbers"]
    assert (found["value"], found["n"], found["higher_is_better"]) == (0.5, 60, True)
    outcomes = read_json(tmp_path / "outcomes.json")["numbers"]
    assert outcomes["scores"] == [1, 0] * 30
    assert outcomes["ids"][:2] == ["line-1", "line-2"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["id"] for s in samples] == [f"line-{i + 1}" for i in range(60) if i < 50 or i % 2]  # first, then wrong


class Broken(Engine):
    def generate(self, *_: Any, **__: Any) -> list[Completion]:
        raise RuntimeError("out of memory")


class Short(Engine):
    def generate(self, prompts: Any, *rest: Any, **more: Any) -> list[Completion]:
        return super().generate(prompts[:-1], rest[0][:-1], **more)


@pytest.mark.parametrize(("broken", "error"), [(Broken, RuntimeError), (Short, ValueError)])
def test_a_failing_engine_raises_and_leaves_no_result(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any, error: Any
) -> None:
    """Catches a failure, or answers that never came, written down as a score of zero."""
    monkeypatch.setattr(run, "Engine", broken)
    with pytest.raises(error):
        evaluate(model, tokenizer, tmp_path, ["town-facts"], limit=5)
    assert list(tmp_path.iterdir()) == []


def test_diverged_weights_raise(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catches NaN weights scored as a model that is merely bad."""
    model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        evaluate(model, tokenizer, tmp_path, ["town-facts"], limit=5)


def test_a_scorer_that_gives_nan_raises(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches NaN averaged into a task's value."""
    monkeypatch.setattr("groundup.data.town.tasks.TownTask.score", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="expected 0 or 1"):
        evaluate(model, tokenizer, tmp_path, ["town-facts"], limit=5)


def test_one_question_has_no_stderr(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catches lm-eval's "N/A" read as a number."""
    found = evaluate(model, tokenizer, tmp_path, ["town-facts"], limit=1)["tasks"]["town-facts"]
    assert found["n"] == 1 and found["stderr"] is None
    assert found["high"] - found["low"] > 0.7  # one question says next to nothing, and the interval says so


def test_neither_network_nor_task_index_nor_noise(
    model: Transformer,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Catches a dataset looked up on the hub, the harness' index being built (20 s), its bars and warnings on the
    terminal, and its logger left silent for others."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__", refuse)
    row = {"prompt": "?", "choices": ["a", "b"], "answer": 0}
    task = write_task(tmp_path / "c.jsonl", [row], choices_field="choices")
    level, state = logging.getLogger("lm_eval").level, torch.get_rng_state()
    evaluate(model, tokenizer, tmp_path, ["town-facts", task], limit=3)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level
    assert torch.equal(torch.get_rng_state(), state)  # training that goes on afterwards is not disturbed


def test_results_with_bits_per_byte_and_progress(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catches keys that compare, the report and the card read going missing, and a shard of another tokenizer."""
    shard = tmp_path / "validation.bin"
    with write_shard(shard, vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash) as writer:
        for i in range(30):
            text = f"The cat {i} sat on the mat."
            writer.add([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos], str(i), len(text))
    section = EvaluateSection(tasks=["town-arithmetic"], limit=10, max_new_tokens=4, bits_per_byte_bytes=400)
    told: list[tuple[str, int, int]] = []
    found = evaluate_model(model, tokenizer, section, shard, 0, tmp_path, "pretrain", lambda *step: told.append(step))
    assert found == read_json(tmp_path / "results.json")
    assert found["stage"] == "pretrain"
    entry = found["tasks"]["town-arithmetic"]
    for key in ("value", "low", "high", "n", "stderr", "metric", "higher_is_better", "chance", "description"):
        assert key in entry
    bits = found["bits_per_byte"]
    assert bits["low"] < bits["value"] < bits["high"] and 370 < bits["bytes"] <= 400
    assert ("town-arithmetic", 10, 10) in told
    assert told[-1][0] == "bits per byte" and told[-1][1] == told[-1][2]
    foreign = tmp_path / "foreign.bin"
    with write_shard(foreign, vocab_size=10, tokenizer_hash="0" * 64) as writer:
        writer.add([1, 2, 3], "a", 3)
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate_model(model, tokenizer, EvaluateSection(), foreign, 0, tmp_path / "x", "sft")


def test_without_lm_eval_the_error_names_the_extra(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback in place of the line that says what to install; bits per byte alone needs no extra."""
    for name in ("groundup.evaluate.adapter", "groundup.evaluate.tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("lm_eval", "lm_eval.api.instance", "lm_eval.api.model", "lm_eval.api.task"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install .*\[eval\]"):
        evaluate(model, tokenizer, tmp_path, ["town-facts"], limit=1)
    assert evaluate(model, tokenizer, tmp_path, [])["tasks"] == {}
