"""The parts of the plan that are advice: data, training configuration, evaluation schedule, export, card."""

from __future__ import annotations

import math
from typing import Any

from groundup.plan.laws import BESIROGLU, FREE_EPOCHS, HOFFMANN, STRAY, repetition
from groundup.plan.resolve import model_config
from groundup.plan.transfer import fitted_parameters, transfer
from groundup.recipe.schema import Recipe

PERPLEXITY_EVERY = 1000  # steps
BENCHMARKS_AT = (0.25, 0.5, 0.75, 1.0)  # of the steps
RAMP_EXPONENT = 0.383  # batch ~ tokens^0.383 (arXiv 2505.13738, as nanochat uses it)
RULES = ("olmo-ladder", "deepseek", "step-law", "nanochat")


def data_plan(recipe: Recipe, found: dict[str, Any], unique: float | None) -> dict[str, Any]:
    """Tokens against unique tokens, epochs, what repetition costs, and both Chinchilla fits beside the plan."""
    n, tokens, flops = found["parameters"]["active"], found["tokens"], found["flops"]
    fits = []
    for law in (HOFFMANN, BESIROGLU) if tokens else ():  # a model that was imported is not pretrained
        best_n, best_d = law.optimal(6.0 * n * tokens)
        fits.append(
            {
                "law": law.name,
                "optimal_parameters": best_n,
                "optimal_tokens": best_d,
                "tokens_per_parameter": best_d / best_n,
                "loss": law.loss(n, tokens),
                "optimal_loss": law.loss(best_n, best_d),
                "source": law.source,
            }
        )
    out: dict[str, Any] = {
        "tokens": tokens,
        "tokens_per_parameter": tokens / n,
        "note": found["tokens_note"],
        "sources": _sources(recipe),
        "unique_tokens": unique,
        "unique_for_free_epochs": tokens / FREE_EPOCHS,
        "compute_optimal": fits,
        "compute_optimal_note": "of 6 N D FLOPs, N the parameters a token uses; the laws were fitted on dense models "
        "and other data: compare choices, not losses",
        "attention_share": 1 - 6.0 * n * tokens / flops if flops > 6.0 * n * tokens else 0.0,
        "repetition": None,
    }
    if unique and tokens:
        r = repetition(n, tokens, unique)
        out["repetition"] = {
            "epochs": r.epochs,
            "effective_tokens": r.effective,
            "worth": r.worth,
            "last_epoch_worth": r.last_epoch,
            "loss_penalty": r.penalty,
            "note": _repetition_note(r.epochs, unique),
            "source": "Muennighoff et al. 2023, arXiv 2305.16264",
        }
    return out


def _sources(recipe: Recipe) -> list[str]:
    sources = recipe.data.sources if recipe.data is not None else []
    return [source.path or source.dataset or f"builtin: {source.builtin}" for source in sources]


def _repetition_note(epochs: float, unique: float) -> str:
    if epochs < 1 + STRAY:
        return "no token is seen twice"
    if epochs <= FREE_EPOCHS + STRAY:
        return f"{epochs:.1f} epochs: up to {FREE_EPOCHS} are nearly as good as new data"
    return (
        f"{epochs:.1f} epochs: past {FREE_EPOCHS} repeated data is worth less and less; use at most "
        f"{FREE_EPOCHS * unique:,.0f} tokens, or find more data"
    )


def training_config(recipe: Recipe, found: dict[str, Any]) -> dict[str, Any]:
    """Optimizer, schedule, batch and its ramp, layout; what the published rules would choose stands beside it."""
    s, config = recipe.pretrain, model_config(recipe)
    steps, batch = int(s.steps), int(s.batch_size)
    layout = found.get("layout")
    return {
        "optimizer": s.optimizer,
        "betas": list(s.betas),
        "learning_rate": s.learning_rate,
        "muon_learning_rate": s.muon_learning_rate if s.optimizer == "muon" else None,
        "weight_decay": s.weight_decay,
        "grad_clip": s.grad_clip,
        "schedule": s.schedule,
        "warmup_steps": round(s.warmup * steps),
        "decay_steps": round(s.decay * steps) if s.schedule == "wsd" else None,
        "min_rate": s.min_rate,
        "steps": steps,
        "batch_size": batch,
        "batch_tokens": batch * config.context,
        "micro_batch_size": layout["micro_batch"] if layout else s.micro_batch_size,
        "precision": s.precision,
        "compile": s.compile,
        "batch_ramp": _ramp(batch, found["tokens"]),
        "batch_ramp_note": "a batch f times as large is right for f^(1/0.383) of the tokens (arXiv 2505.13738); the "
        "recipe trains at the full batch throughout",
        "layout": layout["degrees"] if layout else {"replicas": 1, "shards": 1, "tensor": 1, "pipe": 1, "context": 1},
        "rules": [
            {
                "rule": name,
                "batch_tokens": found_.batch_tokens,
                "learning_rate": found_.learning_rate,
                "source": found_.source,
                "notes": list(found_.notes),
            }
            for name in (RULES if found["tokens"] else ())
            for found_ in [
                transfer(name, fitted_parameters(config), found["tokens"], config.context, d_model=config.d_model)
            ]
        ],
    }


def _ramp(batch: int, tokens: int) -> list[dict[str, Any]]:
    """A quarter, a half, then the whole batch; no ramp where a quarter would be no batch."""
    if batch < 8:
        return [{"until_tokens": tokens, "batch_size": batch}]
    rows = [(share, share ** (1 / RAMP_EXPONENT)) for share in (0.25, 0.5)]
    parts = [
        {"until_tokens": round(tokens * until), "batch_size": max(1, round(batch * share))} for share, until in rows
    ]
    return [*parts, {"until_tokens": tokens, "batch_size": batch}]


def evaluation_schedule(recipe: Recipe, found: dict[str, Any]) -> dict[str, Any]:
    """When to look, at what, and what counts as passed."""
    s, n = recipe.pretrain, found["parameters"]["active"]
    steps, vocab = int(s.steps), int(recipe.tokenizer.vocab_size)
    every = PERPLEXITY_EVERY if steps >= 2 * PERPLEXITY_EVERY else min(int(s.validate_every), steps)
    tasks = [task if isinstance(task, str) else task.name for task in recipe.evaluate.tasks]
    points = []
    for share in BENCHMARKS_AT if found["tokens"] else ():
        step = max(1, round(share * steps))
        tokens = found["tokens"] * step / steps
        points.append({"share": share, "step": step, "tokens": tokens, "expected_loss": BESIROGLU.loss(n, tokens)})
    return {
        "perplexity_every_steps": every,
        "recipe_validates_every_steps": s.validate_every,
        "set": None if every == s.validate_every else f"--set pretrain.validate_every={every}",
        "benchmarks": tasks,
        "benchmarks_note": "" if tasks else "the recipe names no tasks: add some to evaluate.tasks",
        "points": points,
        "expected_loss_note": f"nats a token by {BESIROGLU.name} (arXiv 2404.10102), on its data and tokenizer: the "
        "shape of the curve carries over, the height does not; `groundup ladder` fits one's own",
        "criteria": [
            f"first loss within 0.5 of ln(vocabulary) = {math.log(vocab):.2f} nats: else weights or targets are wrong",
            "each validation loss at most 1% above the one before, after warm-up: else stop and look at the data",
            "no step's loss over its running mean by more than 1 nat for 10 steps: a spike that does not heal",
            "validation loss at most 0.1 nats above the training loss: else the data is repeated too often",
            "benchmarks: at no point more than two standard errors below the point before; at 100% two above chance",
            "at 100%: bits per byte below those of xz on the same text, and the loss within 2% of what a ladder "
            "predicts, where one was made",
        ],
    }


def export_plan(recipe: Recipe) -> dict[str, Any]:
    """Which fields stand in the way of an export to Hugging Face or GGUF: known now, not after the training."""
    from groundup.model.interchange.gguf_layout import gguf_obstacles
    from groundup.model.interchange.hf import hf_obstacles

    config = model_config(recipe)
    obstacles, gguf = hf_obstacles(config), gguf_obstacles(config)
    return {"hugging_face": not obstacles, "obstacles": obstacles, "gguf": not gguf, "gguf_obstacles": gguf}


def card_skeleton(recipe: Recipe, found: dict[str, Any]) -> dict[str, Any]:
    """What a model card will say that is known before training; the rest is measured (`card` writes it then)."""
    c = recipe.card
    return {
        "name": recipe.name,
        "description": recipe.description,
        "license": c.license,
        "language": list(c.language),
        "parameters": found["parameters"]["total"],
        "active_parameters": found["parameters"]["active"],
        "context": recipe.model.context,
        "training_tokens": found["tokens"],
        "training_flops": found["flops"],
        "sources": _sources(recipe),
        "intended_use": c.intended_use,
        "limitations": c.limitations,
        "measured_later": [
            "bits per byte and benchmarks, with 95% intervals",
            "training data: documents, bytes, tokens, duplicates removed",
            "hardware, hours and energy used",
            "contamination of the benchmarks by the training data",
        ],
    }
