"""What a tuning stage measures while it runs, on examples it never trains on."""

from __future__ import annotations

from collections.abc import Sequence

from groundup.model.batch import Batch
from groundup.model.transformer import Transformer
from groundup.train.objective import language_modelling
from groundup.tune.dpo import DpoObjective


def validation_loss(model: Transformer, batches: Sequence[Batch]) -> float:
    """Nats a scored token over all batches: one division at the end."""
    device = model.embed.weight.device
    total, weight = 0.0, 0
    for batch in batches:
        loss = language_modelling(model, batch.to(device))
        total += float(loss.total)
        weight += loss.weight
    return total / max(weight, 1)


def pair_metrics(model: Transformer, objective: DpoObjective, batches: Sequence[Batch]) -> dict[str, float]:
    """DPO's loss, accuracy and margin on held-out pairs."""
    device = model.embed.weight.device
    sums: dict[str, float] = {}
    weight = 0
    for batch in batches:
        loss = objective(model, batch.to(device))
        weight += loss.weight
        for name, value in {"loss": loss.total, **loss.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {f"held_out_{name}": sums[name] / max(weight, 1) for name in ("loss", "accuracy", "margin")}
