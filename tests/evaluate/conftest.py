"""A real tokenizer and a real, tiny, untrained Transformer; one of each for the whole room."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from groundup.infer.engine import Engine
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

TEXT = [
    "The baker lives in Mill Lane and keeps a grey cat.",
    "What is the job of the tall neighbour? The tall neighbour is a tailor.",
    "Three and four make seven. The cat sat on the mat, and the dog sat on the cat.",
    "Un café à côté de l'église; 東京 is far from here, 🙂 said the baker.",
] * 8


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TokenizerSection(vocab_size=340), iter(TEXT))


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64,
        context=64, dropout=0.1,
    )  # fmt: skip
    model = init_weights(Transformer(config), seed=0)
    for block in model.blocks:  # larger weights: an untrained model that nevertheless has strong opinions
        for weight in block.parameters():
            weight.data *= 6 if weight.ndim > 1 else 1
    model.embed.weight.data *= 10
    return model


@pytest.fixture
def engine(model: Transformer, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer)


@torch.no_grad()
def _by_hand(model: Transformer, ids: list[int], first: int) -> list[float]:
    """log p of ids[first:], one forward pass a token: slow, and without any shift to get wrong."""
    training = model.training
    model.eval()
    found = []
    for t in range(first, len(ids)):
        last = model.logits(model(torch.tensor([ids[:t]])))[0, -1]
        found.append(float(torch.log_softmax(last, -1)[ids[t]]))
    model.train(training)
    return found


@pytest.fixture(scope="session")
def by_hand() -> Callable[[Transformer, list[int], int], list[float]]:
    return _by_hand


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXT
