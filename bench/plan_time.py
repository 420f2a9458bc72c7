"""The plan's pretraining time beside what a run took.

    python bench/plan_time.py runs/town              # what `plan` predicts now, beside that run's recorded seconds
    python bench/plan_time.py runs/town --measure    # by real steps (compiled, where the recipe says so) too
    python bench/plan_time.py town --calibrate       # stages/timing.py's constants: compiled to eager, step to parts

A run's folder, or a recipe (then there is no record to compare with). Needs a quiet machine, the one of the run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from groundup.pipeline import RESOLVED, resolve_here
from groundup.plan.host import this_host
from groundup.plan.resolve import model_config
from groundup.recipe.load import load_recipe
from groundup.recipe.schema import Recipe
from groundup.record.files import read_json
from groundup.stages import timing
from groundup.stages.base import use_threads
from groundup.train.precision import compile_blocks


def opened(what: str) -> tuple[Recipe, dict[str, Any]]:
    """(resolved recipe, the pretrain stage's record) of a run's folder, or of a recipe."""
    folder = Path(what)
    if not folder.is_dir():
        return resolve_here(load_recipe(what), Path.cwd())[0], {}
    return load_recipe(folder / RESOLVED), read_json(folder / "pretrain" / "stage.json")


def compare(recipe: Recipe, record: dict[str, Any], measure: bool) -> None:
    host = this_host(recipe.device)
    seen = record.get("seconds")
    for by_steps in (False, True) if measure else (False,):
        began = time.perf_counter()
        found = timing.pretraining(recipe, host, by_steps)
        if found is None:
            print("one block alone is too large to be timed here")
            return
        took = time.perf_counter() - began
        print(f"{found.method} ({took:.1f} s to find): {found.seconds:.0f} s, {found.step * 1000:.1f} ms a step")
        print("    " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.parts.items()))
        if seen:
            print(f"    recorded {seen:.0f} s: predicted / recorded = {found.seconds / seen:.3f}")
    if seen:
        steps = int(recipe.pretrain.steps)
        trained = record["metrics"].get("train_seconds", seen)
        print(
            f"recorded: {seen:.1f} s the stage, {trained:.1f} s the loop, {1000 * trained / steps:.1f} ms a step in all"
        )


def calibrate(recipe: Recipe, rounds: int) -> None:
    """COMPILED and SEAMS, eager and compiled taking turns, so that a neighbour hits both."""
    config, device = model_config(recipe), this_host(recipe.device).device
    for precision in ("bf16", "fp32"):
        eager = recipe.pretrain.model_copy(update={"precision": precision, "compile": False})
        plain, fused = timing.Parts(config, eager, device), timing.Parts(config, eager, device)
        began = time.perf_counter()
        compile_blocks(fused.model)
        rows, name = min(int(eager.micro_batch_size), int(eager.batch_size)), next(iter(plain.kinds))
        fused.block(name, rows)
        compiling = time.perf_counter() - began
        pairs = [(plain.block(name, rows), fused.block(name, rows)) for _ in range(rounds)]
        step = [
            (timing._real_step(config, eager, device, 3.0), plain.step() / timing.SEAMS)
            for _ in range(max(1, rounds // 2))
        ]
        print(
            f"{recipe.name}, {precision}: block eager {1e3 * statistics.median(a for a, _ in pairs):.1f} ms, compiled "
            f"/ eager {statistics.median(b / a for a, b in pairs):.3f} (COMPILED is {timing.COMPILED[precision]}); "
            f"step / its parts {statistics.median(a / b for a, b in step):.3f} (SEAMS is {timing.SEAMS}); "
            f"compiling {compiling:.1f} s (COMPILE_SECONDS is {timing.COMPILE_SECONDS}, with nothing cached)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RUN|RECIPE")
    parser.add_argument("--measure", action="store_true", help="by real steps too")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    recipe, record = opened(args.recipe)
    use_threads(recipe)
    calibrate(recipe, args.rounds) if args.calibrate else compare(recipe, record, args.measure)


if __name__ == "__main__":
    main()
