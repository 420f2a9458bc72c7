"""Serve all models of a run."""

from __future__ import annotations

from collections.abc import Callable

from groundup.infer.engine import Engine
from groundup.model.storage import load_model
from groundup.record.rundir import RunDir
from groundup.serve.app import create_app
from groundup.serve.feedback import FeedbackStore
from groundup.serve.generate import ServedModel
from groundup.serve.server import bind, run_server
from groundup.tokenizer.tokenizer import Tokenizer

STAGES = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}


def serve_run(
    run: RunDir, tokenizer: Tokenizer, host: str, port: int, device: str, ready: Callable[[str], None]
) -> None:
    """Load every model that the run has made and serve it until Ctrl-C; thumbs go to RUN/feedback.sqlite."""
    listener = bind(host, port)  # first: a port in use is told of before the models are loaded
    models = {}
    for stage, name in STAGES.items():
        if run.read_stage(stage, "size") is None:
            continue
        model = load_model(run.stage(stage) / "model").to(device)
        models[name] = ServedModel(name, Engine(model, tokenizer, device=device), model.config.context)
    app = create_app(models, FeedbackStore(run.path / "feedback.sqlite"), title=run.path.name)
    run_server(app, listener=listener, ready=ready)
