"""plan, verify-model, tokenizer, data, verify: what happens before the first training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from groundup.console import duration
from groundup.data.load import check_enough
from groundup.data.prepare import prepare_data
from groundup.data.read import read_sources
from groundup.data.shard import Shard
from groundup.errors import CheckFailed, UserError, problems
from groundup.plan.budget import budget
from groundup.plan.host import Host
from groundup.plan.laws import FREE_EPOCHS, STRAY, repetition
from groundup.plan.resolve import Resolved
from groundup.recipe.schema import DataSection, Recipe, Source
from groundup.record.files import read_json, write_json
from groundup.record.rundir import RunDir
from groundup.stages.base import Context, evaluation
from groundup.stages.checkpoint import Checkpoint
from groundup.tokenizer.audit import ADVERSARIAL, audit
from groundup.tokenizer.chat import render
from groundup.tokenizer.foreign import ForeignTokenizer, from_checkpoint, measure
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from groundup.verify.run import Result
    from groundup.verify.subject import Subject

AUDIT_TEXTS = 2000
BROUGHT = "the checkpoint's"  # where an imported model's chat template comes from, in the tokenizer's record
LONG_SECONDS = 86_400.0  # of pretraining, from which on it is asked whether that was meant
EARLY = ("model", "train")  # stages of checks that look at no tokenizer and no shard
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
    if found["seconds"] > LONG_SECONDS:
        ctx.warn(
            f"pretraining will take about {duration(found['seconds'])} on this machine: lower pretrain.steps (now "
            f"{int(ctx.recipe.pretrain.steps):,}), model.context or the model's size (model.params, or its "
            "dimensions); `groundup plan RECIPE --device h100` counts it for a GPU"
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


def estimate(recipe: Recipe, planned: dict[str, Any]) -> str:
    """One line: what pretraining will take here, from the plan's metrics; "" where nothing is pretrained."""
    if recipe.base is not None:
        return ""
    steps, tokens = int(recipe.pretrain.steps), planned["tokens"]
    return f"pretraining: about {duration(planned['estimated_seconds'])} here, {steps:,} steps, {tokens:,} tokens"


def repeated(recipe: Recipe, parameters: int, unique: int) -> str:
    """A warning where pretraining goes over its `unique` tokens more often than pays; "" where it does not.

    Errors: none. The law is that of Muennighoff et al. 2023, arXiv 2305.16264 (plan/laws.py).
    """
    tokens = int(recipe.pretrain.steps) * int(recipe.pretrain.batch_size) * recipe.model.context
    if recipe.base is not None or tokens <= (FREE_EPOCHS + STRAY) * unique:
        return ""
    found = repetition(parameters, tokens, unique)
    enough = max(1, int(FREE_EPOCHS * unique * int(recipe.pretrain.steps) // tokens))
    return (
        f"pretraining goes over its {unique:,} tokens {found.epochs:,.1f} times; past {FREE_EPOCHS} epochs repeated "
        f"text is worth less and less (arXiv 2305.16264): these {tokens:,} tokens are worth about "
        f"{found.effective:,.0f} new ones. Add text to data.sources, or lower pretrain.steps "
        f"({FREE_EPOCHS} epochs are {enough:,} steps)"
    )


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
    template = BROUGHT if brought else "groundup's plain one"
    return {**found, **names, "template": template, "hash": made.hash, "template_hash": made.template_hash}


def brought_template(run: RunDir) -> bool:
    """Whether the run's model was imported with a chat template of its own: then its base has seen chats."""
    record = run.record("tokenizer")
    return record is not None and record.metrics.get("template") == BROUGHT


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
    if isinstance(made, ForeignTokenizer):
        problems(str(folder), [*_ordinary_ends(made), *_template_beyond(made, rows)])
    return made, brought


def _ordinary_ends(made: ForeignTokenizer) -> list[str]:
    """bos and eos that are tokens of text: every text that holds one would begin or end there."""
    added, found = made.backend.get_added_tokens_decoder(), []
    for key, i in (("bos", made.bos), ("eos", made.eos)):
        if i is None or i in added:
            continue
        name = made.decode([i], skip_specials=False)
        if made.kind == "byte-level" or i in made.encode(name):  # SentencePiece keeps </s> among its pieces
            found.append(
                f'its {key} is "{name}" (id {i}), an ordinary token of text: write the right {key}_token into '
                f"tokenizer_config.json (where that names none, {key}_token_id of config.json counts)"
            )
    return found


def _template_beyond(made: ForeignTokenizer, rows: int) -> list[str]:
    """Special tokens that the chat template writes, and that the model has no embedding for."""
    said = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    try:
        ids = render(made, said, add_generation_prompt=True).ids
    except UserError:  # a template with wishes of its own says them when a chat is made
        return []
    names = [made.decode([i], skip_specials=False) for i in sorted({i for i in ids if i >= rows})]
    if not names:
        return []
    return [
        f"the chat template writes {', '.join(names)}, which the model with {rows} embeddings has no row for: it was "
        "added to the tokenizer and not to the model; take the template of the model's own release"
    ]


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
    asked = ctx.recipe.model_copy(update={"evaluate": evaluation(ctx.recipe.evaluate, ctx.base)})
    return Subject.of_run(asked, ctx.run)


def verify_model(ctx: Context, key: str) -> dict[str, Any]:
    """Checks that need neither tokenizer nor shards: before hours of data work, not after them.

    The model and its training, on micro-models of this very recipe; the rows of the tuning sections' own files.
    """
    from groundup.verify.sources import check_sources
    from groundup.verify.subject import Subject

    subject = Subject(ctx.recipe) if ctx.recipe.base is None else subject_of(ctx)  # no earlier run's files
    results = _checked(ctx, "verify-model", subject, EARLY)
    results += check_sources(ctx.recipe, ctx.base, ctx.recipe.verify.only)
    return _judged(ctx, "verify-model", results)


def verify(ctx: Context, key: str) -> dict[str, Any]:
    """All other checks, with the run's own tokenizer and shards. report.json holds those of `verify-model` too."""
    from groundup.verify.check import STAGES

    later = [stage for stage in STAGES if stage not in EARLY]
    earlier = read_json(ctx.folder("verify-model") / "report.json")
    return _judged(ctx, "verify", _checked(ctx, "verify", subject_of(ctx), later), earlier)


def _checked(ctx: Context, name: str, subject: Subject, stages: Sequence[str]) -> list[Result]:
    from groundup.verify.run import applicable, run_checks

    only = ctx.recipe.verify.only
    with ctx.reporter.bar(name, len(applicable(subject, only, stages=stages)), unit="checks") as bar:
        return run_checks(
            subject, only, stages=stages, on_check=lambda done, total, result: bar.update(done, result.id)
        )


def _judged(ctx: Context, name: str, results: list[Result], earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the report, `earlier` before what is new; a failing check that the recipe does not allow stops the run."""
    from groundup.verify.run import report
    from groundup.verify.watch import judge

    found = report(results)
    before = earlier or {"checks": [], "failed": 0, "skipped": []}
    write_json(ctx.folder(name) / "report.json", {part: before[part] + found[part] for part in found})
    allowed = judge(found, ctx.recipe.verify.allow, name, ctx.warn)
    return {"checks": len(found["checks"]), "failed": len(allowed), "skipped": len(found["skipped"])}
