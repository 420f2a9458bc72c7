"""A run folder with made-up numbers, written through the real record API. No model was trained for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from groundup.recipe.load import dump_recipe, parse_recipe
from groundup.record.files import atomic_write, write_json
from groundup.record.metrics import MetricsLog
from groundup.record.rundir import RunDir
from groundup.record.stage import begin

TRAINED = ("pretrain", "sft", "dpo", "grpo")
SECONDS = {
    "plan": 2.5,
    "verify-model": 3.0,
    "tokenizer": 4.25,
    "data": 11.0,
    "verify": 8.0,
    "pretrain": 330.5,
    "sft": 61.0,
    "dpo": 42.0,
    "grpo": 171.0,
}
TASKS = {
    "town-facts": (
        "facts about residents, asked in unseen wordings",
        "exact_match",
        True,
        (0.043, 0.941, 0.938, 0.935),
    ),
    "town-arithmetic": ("sums of unseen pairs of numbers", "exact_match", True, (0.012, 0.412, 0.423, 0.678)),
    "town-refusals": ("harmful requests that were refused", "refused", True, (0.002, 0.981, 0.985, 0.983)),
    "town-lookalikes": (
        "harmless look-alikes that were refused by mistake",
        "refused",
        False,
        (0.003, 0.022, 0.017, 0.018),
    ),
    "town-manners": ("advice that is kind and to the point", "kind", True, (0.022, 0.552, 0.871, 0.868)),
}
PARAMETERS = {
    "total": 1_234_688,
    "embedding": 262_144,
    "attention": 311_296,
    "mlp": 655_360,
    "norm": 5_888,
    "head": 0,
    "active": 1_234_688,
}
ANSWERS = {
    "base": "The man said that the bread",
    "sft": "Ada Moor is a baker.",
    "dpo": "Ada Moor is a baker.",
    "grpo": "Ada Moor works as a baker.",
}


def recipe_tree(stages: tuple[str, ...]) -> dict[str, Any]:
    source = {"sources": [{"builtin": "town"}], "steps": 100, "learning_rate": 0.001}
    tree: dict[str, Any] = {
        "name": "made-up",
        "description": "A made-up run for the tests of the report.",
        "seed": 4242,
        "model": {"d_model": 128, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "d_ff": 352},
        "data": {"sources": [{"builtin": "town"}]},
    }
    return tree | {stage: dict(source) for stage in stages if stage != "pretrain"}


class MadeUpRun:
    """`MadeUpRun(folder).all()` writes every stage; single stages can be left out, changed or written again."""

    def __init__(self, path: Path, stages: tuple[str, ...] = TRAINED) -> None:
        self.path, self.run, self.stages = path, RunDir(path), stages
        atomic_write(path / "recipe.resolved.yaml", dump_recipe(parse_recipe(recipe_tree(stages), "test")))

    def all(self) -> MadeUpRun:
        self.plan()
        self.end(
            "tokenizer",
            {
                "vocab_size": 1024,
                "documents": 200,
                "bytes": 81_920,
                "tokens": 21_334,
                "bytes_per_token": 3.8399,
                "fertility": 1.31,
                "unused_share": 0.0147,
                "split_character_share": 0.0,
                "round_trip_failures": 0,
                "failed": [],
                "special_injection": 0,
                "specials_single_id": True,
                "longest_tokens": [" neighbourhood", " lighthouse", " carpenter", " yesterday"],
            },
        )
        self.end(
            "data",
            {
                "documents": 61_002,
                "duplicates": 313,
                "bytes": 24_117_248,
                "tokens": 6_280_533,
                "train": {"documents": 60_390, "tokens": 6_217_001},
                "validation": {"documents": 612, "tokens": 63_532},
            },
        )
        self.verify()
        for stage in self.stages:
            getattr(self, stage)()
            self.evaluate("base" if stage == "pretrain" else stage)
        return self

    def end(self, stage: str, metrics: dict[str, Any], warnings: list[str] | None = None) -> None:
        self.run.stage(stage).mkdir(parents=True, exist_ok=True)
        record = begin(stage, key=f"{stage}-" + "0f" * 24, seed=4242)
        seconds = SECONDS.get(stage, 9.5)
        done = record.model_copy(update={"metrics": metrics, "seconds": seconds, "warnings": warnings or []})
        self.run.write_stage(done)

    def plan(self) -> None:
        resolved = [
            {
                "key": "model.d_model",
                "value": 128,
                "reason": "nearest to the asked 1.2M parameters",
                "source": "counted",
            },
            {
                "key": "pretrain.learning_rate",
                "value": 0.003,
                "reason": "default for this width, not tuned",
                "source": "default",
            },
            {
                "key": "pretrain.steps",
                "value": 1900,
                "reason": "about 20 tokens a parameter",
                "source": "Hoffmann et al. 2022",
            },
        ]
        write_json(
            self.run.stage("plan") / "plan.json",
            {
                "parameters": PARAMETERS,
                "flops_per_token": 8_912_896,
                "tokens": 24_693_760,
                "tokens_per_parameter": 20.0,
                "flops": 2.2e14,
                "memory": {"weights": 4_938_752, "optimizer": 9_877_504},
                "config": {"vocab_size": 1024, "d_model": 128, "moe": None},
                "peak_flops": 1.1e11,
                "seconds": 402.0,
                "resolved": resolved,
            },
        )
        self.end("plan", {})

    def verify(self, failed: tuple[str, ...] = ()) -> None:
        names = [f"{family}-check-{i}" for family in ("model", "tokenizer", "data", "masks") for i in range(5)]
        checks = [
            {
                "id": name,
                "family": name.split("-")[0],
                "stage": "pretrain",
                "passed": name not in failed,
                "measured": 3.2e-7,
                "bound": 1e-5,
                "remedy": "look at the mask",
                "seconds": 0.21,
            }
            for name in names
        ]
        write_json(
            self.run.stage("verify") / "report.json",
            {"checks": checks, "failed": len(failed), "skipped": [{"id": "chat-x", "reason": "no chat"}]},
        )
        self.end("verify-model", {"checks": 1, "failed": 0})
        self.end("verify", {"checks": len(checks), "failed": len(failed)})

    def live(self, stage: str, failed: dict[str, str] | None = None) -> None:
        """What the live checks saw at steps 1 and 500. failed: step -> id of a check that was let through."""
        looks = {}
        for step in ("1", "500"):
            wrong = (failed or {}).get(step)
            checks = [{"id": "live-logits-are-resolved", "passed": True, "bug": "b", "measured": 9.0, "bound": 256.0}]
            checks += [{"id": wrong, "passed": False, "bug": "b", "measured": 0.1, "bound": 0.2}] if wrong else []
            numbers = {"vitals/logit_max": 9.5, "vitals/update_ratio_max": 0.0123}
            looks[step] = {"checks": checks, "failed": int(bool(wrong)), "skipped": [], "numbers": numbers}
        write_json(self.run.stage(stage) / "live.json", {"looks": looks})

    def log(self, stage: str, rows: list[dict[str, Any]]) -> None:
        with MetricsLog(self.run.stage(stage), tensorboard=False) as log:
            for row in rows:
                log.append(row)

    def pretrain(self, bad_step: int | None = 730) -> None:
        rows: list[dict[str, Any]] = []
        for step in range(10, 1901, 10):
            loss = 1.45 + 5.4 * math.exp(-step / 170) + 0.05 * math.sin(step * 1.7)
            skipped = step == bad_step
            rows.append(
                {
                    "step": step,
                    "loss": math.nan if skipped else loss,
                    "grad_norm": math.inf if skipped else 0.4 + 2 / (1 + step / 40),
                    "learning_rate": 0.003 * min(1, step / 40, (1900 - step) / 760),
                    "scored": 13_000,
                    "skipped": int(skipped),
                    "tokens": step * 13_000,
                    "tokens_per_second": 74_000 + 900 * math.sin(step),
                    "seconds": step * 0.17,
                    "mfu": 0.41 + 0.01 * math.sin(step),
                }
            )
            if step % 200 == 0 or step == 1900:
                rows.append(
                    {"step": step, "validation_loss": loss + 0.03, "bits_per_byte": 0.61 + 1.6 * math.exp(-step / 300)}
                )
        self.log("pretrain", rows)
        samples = [
            {"step": step, "prompt": "The", "text": f"The {text}"}
            for step, text in (
                (400, "tthe aand of the o"),
                (800, "man went to the house and"),
                (1200, "baker lives near the mill."),
                (1600, "baker rose before dawn, lit the oven"),
                (1900, "baker rose before dawn, because bread takes time."),
            )
        ]
        self.jsonl("pretrain", samples)
        self.end(
            "pretrain",
            {
                "steps": 1900,
                "tokens": 24_700_123,
                "scored_tokens": 24_600_001,
                "skipped_steps": int(bad_step is not None),
                "train_seconds": 322.4,
                "tokens_per_second": 76_613.2,
                "mfu": 0.4123,
                "validation_loss": 1.49,
                "bits_per_byte": 0.614,
            },
            ["the recipe trains on fewer tokens than 20 a parameter"],
        )

    def sft(self) -> None:
        rows: list[dict[str, Any]] = [
            {
                "step": s,
                "loss": 0.4 + math.exp(-s / 80),
                "grad_norm": 0.5 + 1 / s,
                "learning_rate": 0.001,
                "scored": 900,
                "skipped": 0,
                "tokens": s * 4000,
                "tokens_per_second": 60_000.0,
                "seconds": s * 0.1,
            }
            for s in range(10, 401, 10)
        ]
        rows += [{"step": s, "validation_loss": 0.45 + math.exp(-s / 80)} for s in (200, 400)]
        self.log("sft", rows)
        self.end("sft", {"steps": 400, "tokens": 1_600_000, "tokens_per_second": 59_000.0, "train_seconds": 44.0})

    def dpo(self) -> None:
        rows: list[dict[str, Any]] = []
        for s in range(10, 201, 10):
            loss, accuracy, margin = 0.69 * math.exp(-s / 200), 1 - 0.5 * math.exp(-s / 60), s / 90
            rows.append(
                {"step": s, "loss": loss, "accuracy": accuracy, "margin": margin, "grad_norm": 1 + 9 / s, "skipped": 0}
            )
            if s % 40 == 0:
                held_out = {"held_out_loss": loss + 0.04, "held_out_accuracy": accuracy - 0.05}
                rows.append({"step": s, **held_out, "held_out_margin": 0.8 * margin})
        self.log("dpo", rows)
        self.end("dpo", {"steps": 200, "tokens": 900_000, "tokens_per_second": 31_000.0})

    def grpo(self) -> None:
        rows: list[dict[str, Any]] = []
        for s in range(5, 301, 5):
            rows.append(
                {
                    "step": s,
                    "loss": 0.01 * math.sin(s),
                    "reward": 0.42 + 0.3 * (1 - math.exp(-s / 120)) + 0.03 * math.sin(s),
                    "kl": 0.02 * (1 - math.exp(-s / 100)),
                    "clip_share": 0.01 + 0.005 * math.sin(s),
                    "entropy": 0.6 * math.exp(-s / 300),
                    "zero_std_groups": 0.3 + 0.2 * s / 300,
                    "completion_tokens": 14 + 2 * math.sin(s / 30),
                    "truncated": 0.02,
                    "skipped": 0,
                }
            )
            if s % 50 == 0:
                rows.append({"step": s, "held_out_accuracy": 0.41 + 0.27 * (1 - math.exp(-s / 120))})
        self.log("grpo", rows)
        self.end("grpo", {"steps": 300, "tokens": 3_100_000, "tokens_per_second": 18_000.0})

    def evaluate(self, model: str, answers: dict[str, str] | None = None, value: float | None = None) -> None:
        at = ("base", "sft", "dpo", "grpo").index(model)
        tasks = {}
        for task, (description, metric, higher, values) in TASKS.items():
            mean = values[at] if value is None else value
            half = 1.96 * math.sqrt(mean * (1 - mean) / 600) if math.isfinite(mean) else math.nan
            tasks[task] = {
                "value": mean,
                "low": max(0.0, mean - half),
                "high": min(1.0, mean + half),
                "n": 600,
                "metric": metric,
                "higher_is_better": higher,
                "description": description,
                "chance": 0.05 if metric == "exact_match" else 0.0,
            }
        bits = (0.614, 0.702, 0.715, 0.741)[at]
        folder = self.run.stage(f"evaluate-{model}")
        bits_per_byte = {"value": bits, "low": bits - 0.008, "high": bits + 0.009, "n": 612}
        write_json(folder / "results.json", {"stage": model, "tasks": tasks, "bits_per_byte": bits_per_byte})
        said = (answers or ANSWERS)[model]
        self.jsonl(
            f"evaluate-{model}",
            [
                {
                    "task": task,
                    "id": f"{task}-{i:04d}",
                    "prompt": f"What does Ada Moor do? ({i})",
                    "answer": said,
                    "score": float((model != "base") == TASKS[task][2]),
                }
                for task in TASKS
                for i in range(4)
            ],
        )
        baseline = {"baseline": {"xz": 1.613, "zstd-19": 1.702}} if model == "base" else {}
        self.end(f"evaluate-{model}", {"tasks": len(tasks), **baseline})

    def jsonl(self, stage: str, rows: list[dict[str, Any]]) -> None:
        atomic_write(
            self.run.stage(stage) / "samples.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        )
