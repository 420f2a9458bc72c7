"""What the guard asks of weights and data before it decides."""

from __future__ import annotations

import torch

from groundup.model.transformer import Transformer
from groundup.train.job import Job
from groundup.train.precision import autocast


def loss_now(job: Job, step: int) -> float:
    """Mean loss of the data of 0-based `step` by the weights as they are: no gradient, no update.

    In eval mode: dropout would draw random numbers, and experts would count the tokens. The source must be pure: its
    batches are asked for past the loader, and once more if the step is taken.
    """
    total, weight = 0.0, 0
    job.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            for batch in job.source.micro_batches(step):
                with autocast(job.device, job.section.precision):
                    loss = job.objective(job.model, batch.to(job.device))
                total, weight = total + float(loss.total), weight + loss.weight
    finally:
        job.model.train()
    return total / max(weight, 1)


def finite_weights(model: Transformer) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
