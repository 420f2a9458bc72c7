"""Serve all models of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from groundup.errors import problems
from groundup.infer.engine import Engine
from groundup.model.storage import load_config, load_model
from groundup.model.transformer import Transformer
from groundup.record.rundir import RunDir
from groundup.serve.app import create_app
from groundup.serve.feedback import FeedbackStore
from groundup.serve.generate import ServedModel
from groundup.serve.server import bind, run_server
from groundup.tokenizer.tokenizer import Tokenizer

STAGES = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}
LONGEST_EXAMPLE = 70  # characters of a question that the empty chat page offers


def serve_run(
    run: RunDir, tokenizer: Tokenizer, host: str, port: int, device: str, ready: Callable[[str], None]
) -> None:
    """Load every model that the run has made and serve it until Ctrl-C; thumbs go to RUN/feedback.sqlite."""
    listener = bind(host, port)  # first: a port in use is told of before the models are loaded
    try:
        models = {}
        for stage, name in STAGES.items():
            if run.read_stage(stage, "size") is None:
                continue
            folder = run.stage(stage) / "model"
            engine = Engine(_load(folder, tokenizer).to(device).eval(), tokenizer, device=device)
            created = int((folder / "model.safetensors").stat().st_mtime)
            # a base model never saw the chat template, it continues texts; an imported one saw the one it came with
            taught = stage != "pretrain" or _came_with_template(run)
            models[name] = ServedModel(name, engine, engine.context, taught, created)
        store = FeedbackStore(run.path / "feedback.sqlite")
        app = create_app(models, store, title=run.path.name, examples=examples(run))
        run_server(app, listener=listener, ready=ready)
    finally:
        listener.close()


def _came_with_template(run: RunDir) -> bool:
    record = run.record("tokenizer")
    return record is not None and record.metrics.get("template") == "the checkpoint's"


def _load(folder: Path, tokenizer: Tokenizer) -> Transformer:
    """The model, refused when it was trained with another tokenizer or chat template than it would be served with."""
    extra = load_config(folder)[1]
    found = []
    if extra.get("tokenizer_hash") != tokenizer.hash:
        found.append("it was trained with another tokenizer: its ids mean other text")
    if extra.get("template_hash") != tokenizer.template_hash:
        found.append("it was trained with another chat template: answers would silently be worse")
    problems(str(folder), found)
    return load_model(folder)


def examples(run: RunDir, most: int = 4) -> list[str]:
    """Short held-out questions, one a task, from the newest evaluation of a model that answers."""
    for stage in reversed(list(STAGES)[1:]):
        path = run.stage(f"evaluate-{stage}") / "samples.jsonl"
        if not path.exists():
            continue
        found: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if len(row["prompt"]) <= LONGEST_EXAMPLE:
                found.setdefault(row["task"], row["prompt"])
        return list(found.values())[:most]
    return []
