"""plan, tokenizer, data, verify: what happens before the first training step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from groundup.data.load import check_enough
from groundup.data.prepare import prepare_data
from groundup.data.read import read_sources
from groundup.data.shard import Shard
from groundup.errors import CheckFailed
from groundup.plan.budget import budget
from groundup.record.files import write_json
from groundup.stages.base import Context
from groundup.tokenizer.audit import audit
from groundup.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from groundup.verify.subject import Subject

AUDIT_TEXTS = 2000


def plan(ctx: Context, key: str) -> dict[str, Any]:
    """Count, measure, estimate; plan.json. The resolved recipe was written when the run began."""
    found = budget(ctx.recipe, ctx.host, ctx.notes)
    write_json(ctx.folder("plan") / "plan.json", found)
    if not found["memory_fits"]:
        ctx.warn(
            f"training needs about {found['memory']['total'] / 2**30:.1f} GiB, this machine has "
            f"{ctx.host.memory / 2**30:.1f}: lower micro_batch_size"
        )
    return {
        "parameters": found["parameters"]["total"],
        "tokens": found["tokens"],
        "flops": found["flops"],
        "tokens_per_parameter": found["tokens_per_parameter"],
        "estimated_seconds": found["seconds"],
        "peak_flops": found["peak_flops"],
        "estimated_memory": found["memory"]["total"],
    }


def _texts(ctx: Context, stage: str) -> Iterator[str]:
    with ctx.reporter.bar(stage, None, unit="documents") as bar:
        documents = read_sources(ctx.recipe.data.sources, ctx.recipe.seed, ctx.base, lambda _: None)
        for n, document in enumerate(documents):
            if n % 1000 == 0:
                bar.update(n)
            yield document.text


def tokenizer(ctx: Context, key: str) -> dict[str, Any]:
    """Train on the corpus, save in Hugging Face's format, audit on its first documents."""
    made = train_tokenizer(ctx.recipe.tokenizer, _texts(ctx, "tokenizer"))
    made.save(ctx.folder("tokenizer"))
    sample = [text for text, _ in zip(_texts(ctx, "tokenizer"), range(AUDIT_TEXTS), strict=False)]
    found = audit(made, sample)
    if found["round_trip_failures"] or found["special_injection"]:
        raise CheckFailed(
            f"tokenizer audit: {found['round_trip_failures']} texts do not round trip, {found['special_injection']} "
            "special tokens came out of plain text"
        )
    return {**found, "hash": made.hash, "template_hash": made.template_hash}


def data(ctx: Context, key: str) -> dict[str, Any]:
    """Read, deduplicate, split, encode and write the shards; refuse what cannot fill a batch."""
    recipe = ctx.recipe
    made = ctx.tokenizer()
    with ctx.reporter.bar("data", None, unit="documents") as bar:
        metrics = prepare_data(
            recipe.data,
            made,
            ctx.folder("data"),
            recipe.seed,
            ctx.base,
            on_progress=lambda documents, tokens: bar.update(documents, f"{tokens:,} tokens"),
            on_warning=ctx.warn,
        )
    shard = Shard(ctx.folder("data") / "train.bin", made.hash)
    check_enough(shard, recipe.model.context, int(recipe.pretrain.batch_size))
    return metrics


def subject_of(ctx: Context) -> Subject:
    """What the checks look at: the recipe, and the run's own tokenizer and shards where it has made them."""
    from groundup.verify.subject import Subject

    return Subject.of_run(ctx.recipe, ctx.run)


def verify(ctx: Context, key: str) -> dict[str, Any]:
    """Run the silent-bug checks on micro-models of this very recipe; a failing one stops the run."""
    from groundup.verify.run import report, run_checks, select

    section = ctx.recipe.verify
    with ctx.reporter.bar("verify", len(select(section.only)), unit="checks") as bar:
        results = run_checks(
            subject_of(ctx), section.only, on_check=lambda done, total, result: bar.update(done, result.id)
        )
    found = report(results)
    write_json(ctx.folder("verify") / "report.json", found)
    if found["failed"]:
        lines = [
            f"  - {c['id']}: {c['bug']} Measured {c['measured']}, bound {c['bound']} ({c['note']}). {c['remedy']}"
            for c in found["checks"]
            if not c["passed"]
        ]
        raise CheckFailed(f"verify: {found['failed']} checks failed\n" + "\n".join(lines))
    return {"checks": len(found["checks"]), "failed": 0, "skipped": len(found["skipped"])}
