"""groundup's own model through the adapter, so that what is asked of other people's models is asked of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from groundup.infer.cache import KVCache
from groundup.model.batch import Batch
from groundup.model.transformer import Transformer
from groundup.train import objective
from groundup.verify import rig
from groundup.verify.adapter import Adapter, Step
from groundup.verify.micro import wake


def of_transformer(model: Transformer, fresh: Callable[[int], Transformer] | None = None) -> Adapter:
    """A Transformer of ours. fresh: seed -> the same model, newly initialised."""

    def new(seed: int) -> Adapter:
        assert fresh is not None
        return of_transformer(fresh(seed))

    return Adapter(
        model,
        logits=lambda tokens: model.logits(model(tokens)),
        vocab_size=model.config.vocab_size,
        context=_exact(model),
        documents=partial(_documents, model),
        padded=lambda tokens, real: model.logits(model(tokens)),  # on the right, where no real place sees it
        pads="right",
        decoder=partial(_decoder, model),
        loss=partial(_loss, model),
        fresh=new if fresh is not None else None,
        redraw=_wake,
        pieces=partial(rig.pieces, model),
    )


def _exact(model: Transformer) -> int:
    """Longest text that a cache computes exactly: dynamic RoPE turns earlier keys anew once it stretches."""
    scaling = model.config.rope_scaling
    return scaling.original_context if scaling is not None and scaling.kind == "dynamic" else model.config.context


def _wake(module: nn.Module, seed: int) -> None:
    assert isinstance(module, Transformer)
    wake(module, seed)


def places(documents: Tensor) -> Tensor:
    """(B, T): each token's place in its document."""
    place = torch.arange(documents.shape[1]).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values


def _documents(model: Transformer, tokens: Tensor, documents: Tensor) -> Tensor:
    return model.logits(model(tokens, documents=documents.int(), positions=places(documents)))


def _decoder(model: Transformer, tokens: Tensor, real: Tensor) -> tuple[Tensor, Step]:
    rows, width = tokens.shape
    cache = KVCache(model.config, rows, model.config.context)
    at = real.sum(1)

    def step(new: Tensor) -> Tensor:
        nonlocal at
        logits = model.logits(model(new[:, None], positions=at[:, None], cache=cache))
        at = at + 1
        return logits[:, 0]

    return model.logits(model(tokens, positions=torch.arange(width).expand(rows, -1), cache=cache)), step


def _loss(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    documents = torch.zeros_like(tokens, dtype=torch.int32)
    batch = Batch(tokens, targets, documents, torch.arange(tokens.shape[1]).expand_as(tokens))
    found = objective.language_modelling(model, batch)
    return found.total / found.weight
