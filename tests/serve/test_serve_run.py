"""From a run's folder to a server that answers: what `groundup serve RUN` does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import UserError
from groundup.infer.engine import Engine
from groundup.model.storage import save_model
from groundup.record.rundir import RunDir
from groundup.record.stage import StageRecord
from groundup.serve.run import examples, serve_run
from groundup.serve.server import bind
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tune.formats import to_messages, to_pair


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer, base_engine: Engine, chat_engine: Engine) -> RunDir:
    """A run with a base and an SFT model, DPO unfinished (a model, but no record)."""
    made = RunDir(tmp_path / "village")
    tokenizer.save(made.stage("tokenizer"))
    hashes = {"tokenizer_hash": tokenizer.hash, "template_hash": tokenizer.template_hash}
    for stage, engine in (("pretrain", base_engine), ("sft", chat_engine), ("dpo", chat_engine)):
        save_model(made.stage(stage) / "model", engine.model, hashes)
        if stage != "dpo":
            made.write_stage(StageRecord(stage=stage, key="x", status="done"))
    return made


def never(url: str) -> None:
    raise AssertionError(f"served at {url}")


PROGRAM = """
import sys
from groundup.record.rundir import RunDir
from groundup.serve.run import serve_run
from groundup.tokenizer.tokenizer import Tokenizer
run = RunDir(sys.argv[1])
serve_run(run, Tokenizer.load(run.stage("tokenizer")), "127.0.0.1", 0, "cpu", lambda url: print(url, flush=True))
"""


def test_a_run_is_served_stage_by_stage(run: RunDir, answer: str) -> None:
    """Bug: pretrain's model not called base, or given a template it never saw; an unfinished stage served."""
    server = subprocess.Popen([sys.executable, "-c", PROGRAM, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()

        def call(path: str, body: dict[str, Any] | None = None) -> Any:
            headers = {"Content-Type": "application/json"}
            data = json.dumps(body).encode() if body else None
            with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=30) as response:
                return json.loads(response.read())

        found = {model["id"]: model["chat_template"] for model in call("/v1/models")["data"]}
        assert found == {"base": False, "sft": True}
        messages = [{"role": "user", "content": "Where does Anna live?"}]
        said = call("/v1/chat/completions", {"model": "sft", "messages": messages, "temperature": 0})
        assert said["choices"][0]["message"]["content"] == answer
        call("/v1/feedback", {"model": "sft", "messages": messages, "answer": answer, "rating": 1})
        assert (run.path / "feedback.sqlite").exists()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
    finally:
        server.kill()
        server.wait()


def test_another_tokenizer_or_template_is_refused(run: RunDir, tokenizer: Tokenizer) -> None:
    """Bug: a changed chat template is served in silence; accuracy fell from 82% to 0% in a public report."""
    other = Tokenizer(tokenizer.json, tokenizer.chat_template.replace("<|end|>", "<|end|>\n"))
    with pytest.raises(UserError, match="another chat template"):
        serve_run(run, other, "127.0.0.1", 0, "cpu", never)


def test_a_run_without_a_model_and_a_taken_port_are_said(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Bug: a page without a model; or models loaded for a minute before the port turns out to be taken."""
    with pytest.raises(UserError, match="nothing to serve"):
        serve_run(RunDir(tmp_path / "empty"), tokenizer, "127.0.0.1", 0, "cpu", never)
    with bind("127.0.0.1", 0) as held, pytest.raises(UserError, match="in use"):
        serve_run(RunDir(tmp_path / "empty"), tokenizer, "127.0.0.1", held.getsockname()[1], "cpu", never)


def test_examples_are_short_questions_one_a_task(run: RunDir) -> None:
    """Bug: a page that offers a question longer than itself, or four of one kind."""
    assert examples(run) == []
    rows = [
        ("facts", "Where is it? " * 20),
        ("facts", "Where does Anna live?"),
        ("facts", "And Tom?"),
        ("sums", "2+2?"),
    ]
    folder = run.stage("evaluate-sft")
    folder.mkdir()
    lines = [json.dumps({"task": task, "prompt": prompt, "answer": "?"}) for task, prompt in rows]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    assert examples(run) == ["Where does Anna live?", "2+2?"]


def test_what_feedback_exports_sft_and_dpo_can_read(store: Any) -> None:
    """Bug: an export in a layout of its own, found out when a recipe first names it as a source."""
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where does Anna live?"}]
    store.add("sft", asked, "In Oldbrook.", 1)
    store.add("dpo", asked, "Who cares.", -1)
    (taught,) = [to_messages(json.loads(json.dumps(row))) for row in store.export("sft")]
    assert taught == [*asked, {"role": "assistant", "content": "In Oldbrook."}]
    (pair,) = [to_pair(json.loads(json.dumps(row))) for row in store.export("preference")]
    assert (pair.prompt, pair.chosen, pair.rejected) == (asked, "In Oldbrook.", "Who cares.")
