"""plan, tokenizer, data, verify: what happens before the first training step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from groundup.data.load import check_enough
from groundup.data.prepare import prepare_data
from groundup.data.read import read_sources
from groundup.data.shard import Shard
from groundup.errors import CheckFailed, UserError
from groundup.plan.budget import budget
from groundup.plan.host import Host
from groundup.plan.resolve import Resolved
from groundup.recipe.schema import DataSection, Recipe, Source
from groundup.record.files import write_json
from groundup.stages.base import Context
from groundup.stages.checkpoint import Checkpoint
from groundup.tokenizer.audit import ADVERSARIAL, audit
from groundup.tokenizer.foreign import ForeignTokenizer, from_checkpoint, measure
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from groundup.verify.subject import Subject

AUDIT_TEXTS = 2000
ROW_TOKENS = 2048  # a row of an imported model's chats, where no chat is longer: its context may be a hundred thousand


def planned(recipe: Recipe, host: Host, notes: list[Resolved]) -> dict[str, Any]:
    """What `plan` says of a recipe. With a base nothing is pretrained; the memory is the first training stage's."""
    from groundup.stages.timing import timed_budget  # times real steps, so it stands on the training stages

    if recipe.base is None:
        return timed_budget(recipe, host, notes)
    first = recipe.sft or recipe.dpo or recipe.grpo
    keys = ("batch_size", "micro_batch_size", "optimizer", "precision")
    stage = recipe.pretrain.model_copy(update={key: getattr(first, key) for key in keys} if first else {})
    model = recipe.model.model_copy(update={"context": min(recipe.model.context, ROW_TOKENS)})
    found = budget(recipe.model_copy(update={"pretrain": stage, "model": model}), host, notes)
    return {
        **found,
        "tokens": 0,
        "tokens_per_parameter": 0.0,
        "tokens_note": f"imported from {recipe.base}: nothing is pretrained here",
        "flops": 0.0,
        "seconds": 0.0,
        "memory_fits": found["memory_fits"] or first is None,
        "config": {**found["config"], "context": recipe.model.context},
    }


def plan(ctx: Context, key: str) -> dict[str, Any]:
    """Count, measure, estimate; plan.json. The resolved recipe was written when the run began."""
    found = planned(ctx.recipe, ctx.host, ctx.notes)
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
    assert ctx.recipe.data is not None
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


def imported_tokenizer(ctx: Context, key: str) -> dict[str, Any]:
    """The checkpoint's tokenizer, its tokenizer.json byte for byte, with its names and its template spelled out."""
    assert ctx.checkpoint is not None
    made, brought = open_tokenizer(ctx.checkpoint)
    if not brought:
        ctx.warn(
            f"{ctx.checkpoint.folder} has no chat template: it is a base model, or the template lies elsewhere. Chats "
            "get a plain one of groundup's own (User:, Assistant:, and the end of text after each answer)"
        )
    elif isinstance(made, ForeignTokenizer) and not made.closes_turns:
        ctx.warn("the chat template writes no special token after an answer: fine-tuning cannot teach where to stop")
    found = measure(made, ADVERSARIAL)
    if found["special_injection"]:
        raise CheckFailed(f"tokenizer: {found['special_injection']} special tokens came out of plain text")
    made.save(ctx.folder("tokenizer"))
    names = {name: made.decode([i], skip_specials=False) for name, i in (("eos", made.eos), ("end", made.end))}
    names |= {"bos": made.decode([made.bos], skip_specials=False)} if made.bos is not None else {}
    template = "the checkpoint's" if brought else "groundup's plain one"
    return {**found, **names, "template": template, "hash": made.hash, "template_hash": made.template_hash}


def open_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, bool]:
    """(the checkpoint's tokenizer, whether its template came with it). Errors: UserError when it is not the model's."""
    folder, rows = checkpoint.there(), checkpoint.config.vocab_size
    made, brought = from_checkpoint(folder)
    special = set(made.all_special_ids)
    beyond = [i for i in range(rows, made.vocab_size) if i not in special or i in (made.bos, made.eos, made.end)]
    if beyond:
        raise UserError(
            f"{folder}: the tokenizer's ids reach {max(beyond)}, the model has {rows} embeddings: is it this model's "
            "tokenizer?"
        )
    return made, brought


def data(ctx: Context, key: str) -> dict[str, Any]:
    """Read, deduplicate, split, encode and write the shards; refuse what cannot fill a batch."""
    recipe = ctx.recipe
    assert recipe.data is not None
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
    if recipe.base is not None:  # the text only measures
        return metrics
    shard = Shard(ctx.folder("data") / "train.bin", made.hash)
    check_enough(shard, recipe.model.context, int(recipe.pretrain.batch_size))
    return metrics


def subject_of(ctx: Context) -> Subject:
    """What the checks look at: the recipe, and the run's own tokenizer and shards where it has made them.

    With a base they look at groundup's own: the checks are about the code that trains this arrangement, and know its
    specials. What was imported is measured when it is.
    """
    from groundup.verify.subject import Subject

    if ctx.recipe.base is not None:
        corpus = DataSection(sources=[Source(builtin="town")])
        return Subject(ctx.recipe.model_copy(update={"data": corpus}))
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
