"""Two real, tiny models behind the real app: `base` learned a text, `sft` learned conversations by heart.

They are trained here (seconds), so that a test can say what the right answer is: an app that renders, decodes
or stops otherwise than training did cannot give it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi import FastAPI

from groundup.infer.engine import Engine
from groundup.model.config import ModelConfig
from groundup.model.init import init_weights
from groundup.model.loss import cross_entropy_sum
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TokenizerSection
from groundup.serve import batcher as batching
from groundup.serve.app import ServedModel, create_app
from groundup.serve.feedback import FeedbackStore
from groundup.serve.server import bind
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

CONTEXT = 128

ANSWERS = {
    "Where does Anna live?": "Anna lives in the village of Oldbrook. She bakes bread every morning.",
    "What is 17 plus 25?": "17 plus 25 is 42.",
    "Write some HTML.": "<img src=x onerror=\"document.title='run'\"><b>bold</b> & <script>x</script>",
    "Say it in other letters.": "Grüße aus Köln, 日本語 🥐.",
    "And her brother?": "Her brother Tom keeps the mill by the river.",
}
STORY = "The miller went to the market in the rain, and he bought a coat for his brother."


@pytest.fixture(params=ANSWERS)
def lesson(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each question in turn, with the answer learned by heart."""
    return request.param, ANSWERS[request.param]


@pytest.fixture
def answer() -> str:
    """The learned answer to "Where does Anna live?"."""
    return ANSWERS["Where does Anna live?"]


@pytest.fixture
def story() -> str:
    """The text that base learned by heart."""
    return STORY


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TokenizerSection(kind="bpe", vocab_size=300), [*ANSWERS, *ANSWERS.values(), STORY])


def _learn(tokenizer: Tokenizer, rows: list[tuple[list[int], list[int]]], seed: int) -> Engine:
    """A micro Transformer that knows these (tokens, targets) by heart."""
    torch.set_num_threads(1)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128,
        context=CONTEXT,
    )  # fmt: skip
    model = init_weights(Transformer(config), seed)
    width = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([t + [tokenizer.eos] * (width - len(t)) for t, _ in rows])
    targets = torch.tensor([t + [-100] * (width - len(t)) for _, t in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    loss = torch.tensor(9.0)
    for _ in range(300):
        total, n = cross_entropy_sum(model, model(tokens), targets)
        loss = total / n
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    assert loss < 0.05, "the micro model did not learn its lines: the tests below would mean nothing"
    return Engine(model.eval(), tokenizer)


@pytest.fixture(scope="session")
def chat_engine(tokenizer: Tokenizer) -> Engine:
    rows = []
    for question, answer in ANSWERS.items():
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made = render(tokenizer, messages)
        targets = [i if scored else -100 for i, scored in zip(made.ids, made.mask, strict=True)]
        rows.append((made.ids[:-1], targets[1:]))
    return _learn(tokenizer, rows, seed=1)


@pytest.fixture(scope="session")
def base_engine(tokenizer: Tokenizer) -> Engine:
    ids = [tokenizer.bos, *tokenizer.encode(STORY), tokenizer.eos]
    return _learn(tokenizer, [(ids[:-1], ids[1:])], seed=2)


@pytest.fixture
def models(chat_engine: Engine, base_engine: Engine) -> Iterator[dict[str, ServedModel]]:
    """Named as a run's stages are; dpo and grpo share sft's weights, for what is tested is not their text."""
    served = {"base": ServedModel("base", base_engine, CONTEXT, has_template=False, created=1_700_000_000)}
    for name in ("sft", "dpo", "grpo"):
        served[name] = ServedModel(name, chat_engine, CONTEXT, has_template=True, created=1_700_000_000)
    yield served
    for model in served.values():
        model.batcher.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    kept = FeedbackStore(tmp_path / "feedback.sqlite")
    yield kept
    kept.close()


@pytest.fixture
def app(models: dict[str, ServedModel], store: FeedbackStore) -> FastAPI:
    return create_app(models, store, "town <b>", examples=["Where does Anna live?", "</script>"])


@pytest.fixture
def serving() -> Callable[[FastAPI], AbstractContextManager[int]]:
    """`with serving(app) as port`: on a real socket, for what a TestClient cannot do (leave, or be a browser)."""

    @contextmanager
    def running(app: FastAPI) -> Iterator[int]:
        listener = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            listener.close()

    return running


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes at least 10 ms, so that "while it decodes" lasts long enough to be tested."""
    step = batching.Decoder.step

    def slower(self: Any) -> Any:
        time.sleep(0.01)
        return step(self)

    monkeypatch.setattr(batching.Decoder, "step", slower)
