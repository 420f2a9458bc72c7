"""The plan's pretraining time beside what a run took.

    python bench/plan_time.py runs/town              # what `plan` predicts now, beside that run's recorded seconds
    python bench/plan_time.py runs/town --measure    # by real steps (compiled, where the recipe says so) too
    python bench/plan_time.py town --calibrate       # stages/timing.py's SEAMS: a step beside its parts

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
from groundup.stages.steps import Steps


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
    """SEAMS: a real step beside the sum of its parts, taking turns, so that a neighbour hits both."""
    config, section, device = model_config(recipe), recipe.pretrain, this_host(recipe.device).device
    parts, steps = timing.Parts(config, section, device), Steps(config, section, device)
    if section.compile:
        parts.compile()
    ratios = []
    for _ in range(rounds):
        real = min(timed_steps(steps, 6))
        added = parts.step() / timing.SEAMS
        ratios.append(real / added)
        print(f"{1000 * real:.1f} ms a step, its parts {1000 * added:.1f} ms, ratio {ratios[-1]:.3f}", flush=True)
    print(f"{recipe.name}: median ratio {statistics.median(ratios):.3f} of {rounds} (SEAMS is {timing.SEAMS})")


def timed_steps(steps: Steps, often: int) -> list[float]:
    steps()
    times = []
    for _ in range(often):
        began = time.perf_counter()
        steps()
        times.append(time.perf_counter() - began)
    return times


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
