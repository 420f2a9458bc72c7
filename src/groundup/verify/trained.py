"""Short real training runs whose vital signs are taken: what the live checks are proven on, healthy and with a bug."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from groundup.data.load import PackedBatches, validation_batches
from groundup.model.batch import Batch
from groundup.model.transformer import Transformer
from groundup.train import loop
from groundup.train.objective import Objective
from groundup.train.vitals import Vitals
from groundup.tune import dpo
from groundup.tune.pack import PackedChats
from groundup.verify import healthy, rig
from groundup.verify.checks import tune
from groundup.verify.corpus import CONVERSATIONS
from groundup.verify.subject import Subject
from groundup.verify.watch import Running

CONTEXT = 32


def looked_at(
    subject: Subject,
    model: Transformer,
    source: Any,
    objective: Objective | None = None,
    name: str = "pretrain",
    validate: Callable[[], dict[str, float]] | None = None,
    facts: dict[str, Any] | None = None,
    **section: Any,
) -> list[Vitals]:
    """Train through the loop; the vital signs of the first step, each validation and the last."""
    found: list[Vitals] = []

    def keep(vitals: Vitals) -> None:
        found.append(replace(vitals, history=list(vitals.history)))

    with subject.scratch() as folder:
        chosen = subject.section(**section)
        known = {"config": model.config, "precision": chosen.precision, "context": CONTEXT, **(facts or {})}
        job = rig.make_job(
            subject, model, source, chosen, folder, objective, watch=keep, facts=known, validate=validate
        )  # fmt: skip
        job.name = name
        loop.train(job)
    return found


def pretraining(steps: int = 6, look: int = -1, batch: int = 4, precision: str = "fp32", **sections: Any) -> Running:
    """A micro model of the healthy base on micro shards; the vital signs of one of its looks."""
    subject = healthy.subject(sections)
    model = subject.build_model(awake=False, vocab_size=subject.micro_tokenizer.vocab_size)
    shards = subject.micro_shards
    source = PackedBatches(shards.train, CONTEXT, batch, batch, seed=1)

    def validate() -> dict[str, float]:
        total, weight = 0.0, 0
        for part in validation_batches(shards.validation, CONTEXT, 32):
            loss = subject.objective(model, part)
            total, weight = total + float(loss.total), weight + loss.weight
        return {"validation_loss": total / weight}

    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": steps * batch * CONTEXT,
        "unigram_loss": shards.train.unigram_loss(shards.validation),
    }
    looks = looked_at(
        subject, model, source, validate=validate, facts=facts,
        steps=steps, batch_size=batch, validate_every=max(1, steps // 2), warmup=0.0, precision=precision,
    )  # fmt: skip
    return Running(looks[look])


def tuning(**sections: Any) -> Running:
    """SFT's first step, on packed conversations."""
    subject = healthy.subject(sections)
    model = subject.chat_model()
    chats = [subject.render(messages) for messages in CONVERSATIONS] * 3
    source = PackedChats(chats, model.config.context, 4, 2, subject.tokenizer.eos, 1)
    return Running(looked_at(subject, model, source, name="sft", steps=1)[0])


def preferring(**sections: Any) -> Running:
    """DPO's first step."""
    subject = healthy.subject(sections)
    model = subject.chat_model(dropout=0.3)
    source = rig.Fixed([tune.pair_batch(subject)])
    looks = looked_at(subject, model, source, dpo.DpoObjective(model, 0.1), "dpo", steps=1)
    return Running(looks[0])


def sampling(**sections: Any) -> Running:
    """GRPO's first step."""
    subject = healthy.subject(sections)
    model, objective, batches, _ = tune.rollout(subject)
    looks = looked_at(subject, model, rig.Fixed(batches), objective, "grpo", steps=1)
    return Running(looks[0])


def reciting(**sections: Any) -> Running:
    """Eight rows read over and over, and validation on others."""
    subject = healthy.subject(sections)
    model = subject.build_model(awake=False)
    seen, new = (rig.random_batch(subject, 8, 24, seed) for seed in (91, 92))

    def validate() -> dict[str, float]:
        loss = subject.objective(model, new)
        return {"validation_loss": float(loss.total) / loss.weight}

    looks = looked_at(
        subject, model, _Repeated(seen), validate=validate,
        steps=60, validate_every=60, learning_rate=1e-2, warmup=0.0, schedule="constant",
    )  # fmt: skip
    return Running(looks[-1])


class _Repeated:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def micro_batches(self, step: int) -> list[Batch]:
        return [self.batch]


def told(stage: str, history: list[dict[str, Any]], **facts: Any) -> Running:
    """A sheet made up of numbers, where the run behind it would take days."""
    config = healthy.subject().micro
    row = {"scored": 1, "learning_rate": 1e-3, "skipped": 0, **history[-1]}
    steps = int(history[-1]["step"])
    return Running(Vitals(stage, steps, steps, row, {"config": config, **facts}, history, scored_share=torch.nan))
