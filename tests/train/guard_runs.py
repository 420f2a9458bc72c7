"""Small runs with planted trouble, for the tests of the guard."""

from __future__ import annotations

import math
from functools import cache

import torch

from groundup.console import Reporter
from groundup.model.batch import Batch
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.storage import model_tensors
from groundup.model.transformer import Transformer
from groundup.recipe.schema import PretrainSection
from groundup.record.metrics import read
from groundup.train.loop import Job
from groundup.train.objective import Loss, language_modelling

CONFIG = ModelConfig(48, 32, 1, 2, 1, 16, 64, 16, dropout=0.1)
STEPS = 200
GUARD = {"window": 40, "patience": 3}


NEXT = torch.rand(48, 48, generator=torch.Generator().manual_seed(99)).pow(12)  # entropy about 2.2 nats of 3.87


class Chain:
    """Rows of a Markov chain over 48 tokens; at the `garbage` steps, random tokens. A pure function of the step.

    nans: steps whose loss is NaN where the objective is `nan_where_told`.
    """

    pure = True

    def __init__(self, garbage=(), seed=0, nans=()):
        self.garbage, self.seed, self.nans = frozenset(garbage), seed, frozenset(nans)

    def micro_batches(self, step):
        tokens = drawn(1_000_003 * self.seed + step, step in self.garbage).clone()
        documents = torch.zeros(8, 16, dtype=torch.int32)
        extra = {"nan": torch.ones(8)} if step in self.nans else {}
        return [Batch(tokens[:, :-1], tokens[:, 1:].clone(), documents, torch.arange(16).expand(8, 16), extra)]


@cache  # most runs of these tests see the same text
def drawn(seed, garbage):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 48, (8, 17), generator=generator)
    for place in range(1, 1 if garbage else 17):
        tokens[:, place] = torch.multinomial(NEXT[tokens[:, place - 1]], 1, generator=generator)[:, 0]
    return tokens


def nan_where_told(model, batch):
    loss = language_modelling(model, batch)
    return Loss(loss.total * math.nan, loss.weight) if "nan" in batch.extra else loss


def job(folder, source=None, objective=language_modelling, seed=7, guard=None, **section):
    values = {
        "steps": STEPS, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2, "optimizer": "adamw",
        "precision": "fp32", "compile": False, "save_every": 20, "log_every": 5, "validate_every": 10**6, "prefetch": 0,
        "guard": GUARD | (guard or {}),
    }  # fmt: skip
    model, warnings = init_weights(Transformer(CONFIG), seed), []
    made = Job(
        "pretrain", "key", model, objective, source or Chain(seed=seed), PretrainSection(**(values | section)), folder,
        seed, Reporter(quiet=True), on_warning=warnings.append, describe=lambda step: f"document {step}",
    )  # fmt: skip
    made.validate = lambda: {"validation_loss": held_out(model)}
    made.facts["warnings"] = warnings
    return made


def held_out(model):
    """Nats a token on 64 steps' worth of text that no run sees."""
    source, total, weight = Chain(seed=12345), 0.0, 0
    with torch.no_grad():
        for step in range(64):
            loss = language_modelling(model, source.micro_batches(step)[0])
            total, weight = total + float(loss.total), weight + loss.weight
    return total / weight


def weights(one):
    return {k: v.clone() for k, v in model_tensors(one.model).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(folder):
    clocked = ("seconds", "tokens_per_second", "eta", "memory", "time/", "loader_wait")
    return [{k: v for k, v in r.items() if not k.startswith(clocked)} for r in read(folder)]
