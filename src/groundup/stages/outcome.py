"""evaluate-*, report, card: what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from groundup.data.shard import Shard
from groundup.evaluate.bpb import compressors
from groundup.evaluate.run import evaluate_model
from groundup.stages.base import Context, evaluation, held_out_text


def evaluate(stage: str) -> Callable[[Context, str], dict[str, Any]]:
    """The evaluate stage of one model stage: its tasks with intervals, and bits per byte."""
    name = "base" if stage == "pretrain" else stage

    def run(ctx: Context, key: str) -> dict[str, Any]:
        tokenizer = ctx.tokenizer()
        model = ctx.load(stage, tokenizer)
        out, text = ctx.folder(f"evaluate-{name}"), held_out_text(ctx)
        with ctx.reporter.bar(f"evaluate-{name}", None) as bar:
            results = evaluate_model(
                model,
                tokenizer,
                evaluation(ctx.recipe.evaluate, ctx.base),
                text,
                ctx.recipe.seed,
                out,
                name,
                on_progress=lambda what, done, total: bar.update(done, f"{what} ({done}/{total})"),
            )
        metrics: dict[str, Any] = {task: score["value"] for task, score in results["tasks"].items()}
        if text is None:
            return metrics
        if name == "base":  # beside it, what general compressors make of the same text
            shard = Shard(text, tokenizer.hash)
            size = ctx.recipe.evaluate.bits_per_byte_bytes
            metrics["baseline"] = compressors(tokenizer, shard, size, ctx.recipe.seed)
        return {**metrics, "bits_per_byte": results["bits_per_byte"]["value"]}

    return run


def card(ctx: Context, key: str) -> dict[str, Any]:
    """The model card, from the records."""
    from groundup.release.card import write_card

    path = write_card(ctx.run.path, ctx.folder("card"))
    return {"path": str(path.relative_to(ctx.run.path))}


def report(ctx: Context, key: str) -> dict[str, Any]:
    """One self-contained page."""
    from groundup.report.page import write_report

    path = write_report(ctx.run.path, ctx.folder("report") / "index.html")
    return {"path": str(path.relative_to(ctx.run.path))}
