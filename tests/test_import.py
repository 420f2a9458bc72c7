"""A checkpoint of another toolkit through import, evaluation, fine-tuning and export, and back into that toolkit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import TESTS, Forked, Result, groundup
from hf_folders import TEMPLATES, byte_level, sentencepiece, write_tokenizer

from groundup.model.storage import load_model
from groundup.stages import checkpoint
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONTEXT = 256
CONVERSATION = [
    {"role": "user", "content": "Pick a number from 1 to 4. "},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "Another, please: 日本?"},
]
SFT = f"""
threads: 1
verify: {{enabled: false}}
evaluate: {{tasks: [town-facts, {{name: pick, path: pick.jsonl, choices_field: choices}}], limit: 3, max_new_tokens: 4}}
sft: {{sources: [{{path: {TESTS / "micro" / "numbers.jsonl"}}}], steps: 4, batch_size: 2, precision: fp32,
  compile: false, optimizer: adamw, learning_rate: 0.003, validate_every: 2, save_every: 2, log_every: 1}}
"""


@pytest.fixture(autouse=True)
def quick_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's two seconds of measuring are tested with the plan."""
    monkeypatch.setattr("groundup.plan.budget.peak_flops", lambda device, precision: 1e11)
    monkeypatch.setattr("groundup.plan.budget.matmul_rate", lambda device, precision, shape: 1e11)


def make(kind: str, folder: Path) -> Path:
    """A random checkpoint, saved by transformers. Its embedding has more rows than the tokenizer has tokens."""
    torch.manual_seed(7)
    common = {**SMALL, "max_position_embeddings": CONTEXT, "num_key_value_heads": 2, "head_dim": 8}
    if kind == "llama3":
        tokens, names = byte_level("<|bot|>", puts="<|bot|>"), {"bos_token": "<|bot|>", "eos_token": "<|im_end|>"}
        rows, template = tokens.get_vocab_size() + 7, TEMPLATES["llama3"]
        config = transformers.LlamaConfig(**common, vocab_size=rows, tie_word_embeddings=False)
    elif kind == "llama2":
        tokens, names = sentencepiece(), {"bos_token": "<s>", "eos_token": "</s>"}
        rows, template = tokens.get_vocab_size(), TEMPLATES["llama2"]
        config = transformers.LlamaConfig(**common, vocab_size=rows, tie_word_embeddings=True)
    elif kind == "qwen3":
        tokens, names = byte_level("<|endoftext|>"), {"bos_token": None, "eos_token": "<|im_end|>"}
        rows, template = tokens.get_vocab_size() + 20, TEMPLATES["qwen3"]
        config = transformers.Qwen3Config(**common, vocab_size=rows, tie_word_embeddings=True)
    else:  # names of bos and eos stand in config.json alone, and there is no template
        tokens, names = byte_level("<|endoftext|>"), {}
        rows, template, end = tokens.get_vocab_size(), None, tokens.token_to_id("<|endoftext|>")
        config = transformers.GPT2Config(
            vocab_size=rows, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=end, eos_token_id=end
        )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # as initialised, attention is nearly uniform and biases are 0: nothing shows
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, tokens, template, **names)
    return folder


KINDS = ("llama3", "llama2", "qwen3", "gpt2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {kind: make(kind, base / kind) for kind in KINDS}


def imported(folder: Path, out: Path) -> dict[str, Any]:
    result = groundup("import", folder, "--out", out, "--json")
    assert result.code == 0, result.err
    return dict(result.json())


def worked(result: Result) -> list[str]:
    """The stages that did something, by what the command said."""
    assert result.code == 0, result.err
    return [line.removesuffix(" ...") for line in result.err.splitlines() if line.endswith(" ...")]


def their_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.as_tensor(model(torch.tensor([ids])).logits[0])


def our_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = load_model(folder).eval()
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids])))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_checkpoint_and_back(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bugs: a weight under the wrong name, chat ids that are not those of transformers, a stage that asks for a corpus
    or for groundup's own special tokens, weights or tokenizer that come out otherwise than they went in."""
    source, run = checkpoints[kind], tmp_path / "runs" / kind
    found = imported(source, run)
    assert found["context"] == CONTEXT and not found["imported_before"]
    tokenizer = Tokenizer.load(run / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(run / "tokenizer")
    ids = render(tokenizer, CONVERSATION, add_generation_prompt=True).ids
    assert ids == theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert (run / "tokenizer" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    torch.testing.assert_close(our_logits(run / "pretrain/model", ids), their_logits(source, ids), atol=1e-4, rtol=1e-4)
    assert bool(found["warnings"]) == (kind == "gpt2"), "a template of ours is told of"

    sampled = groundup("sample", run, "--prompt", "", "--max-new-tokens", 3, "--json")
    assert sampled.code == 0, sampled.err

    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text() + SFT)
    (run / "pick.jsonl").write_text('{"prompt": "1 2 3", "choices": ["4", " 5"], "answer": "4"}\n' * 3)
    result = groundup("run", recipe, "--until", "evaluate-sft")
    assert worked(result) == ["plan", "evaluate-base", "sft", "evaluate-sft"]
    again = groundup("run", recipe, "--until", "evaluate-sft")
    assert worked(again) == [] and again.err.count("done before") == 6

    for stage, model in (("base", "pretrain"), ("sft", "sft")):
        out = tmp_path / f"{kind}-{stage}"
        exported = groundup("export", run, "--stage", stage, "--out", out, "--json")
        assert exported.code == 0, exported.err
        torch.testing.assert_close(their_logits(out, ids), our_logits(run / model / "model", ids), atol=1e-4, rtol=1e-4)
        opened = transformers.AutoTokenizer.from_pretrained(out)
        again_ids = opened.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert again_ids == ids
        stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
        assert tokenizer.end in (stops if isinstance(stops, list) else [stops])
        assert "imported from" in (out / "README.md").read_text()


def test_half_precision_comes_out_as_it_went_in(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bug: bf16 weights exported as fp32: the numbers are the same, the files twice as large."""
    from safetensors.torch import load_file

    source = tmp_path / "half"
    shutil.copytree(checkpoints["llama3"], source)
    transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    imported(source, tmp_path / "runs" / "half")
    result = groundup("export", tmp_path / "runs" / "half", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    went_in, came_out = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert went_in.keys() == came_out.keys()
    for name, tensor in came_out.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, went_in[name]), name


@pytest.mark.parametrize("kind", ["llama3", "qwen3"])
def test_a_special_beyond_the_rows_is_exported_too(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bug: [PAD], added to the tokenizer and not to the model, is imported, and then both exports are refused."""
    from groundup.model.interchange.gguf_tokenizer import gguf_tokenizer

    source = Path(shutil.copytree(checkpoints[kind], tmp_path / "source"))
    content, names = (json.loads((source / f).read_text()) for f in ("tokenizer.json", "tokenizer_config.json"))
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    last = max(token["id"] for token in content["added_tokens"])
    filler = [(i, f"<|filler{i}|>") for i in range(last + 1, rows)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": i, "content": name, **flags} for i, name in [*filler, (rows, "[PAD]")]]
    (source / "tokenizer.json").write_text(json.dumps(content))
    (source / "tokenizer_config.json").write_text(json.dumps({**names, "pad_token": "[PAD]"}))
    imported(source, tmp_path / "run")
    for to, out in (("hf", tmp_path / "hf"), ("gguf", tmp_path / "x.gguf")):
        result = groundup("export", tmp_path / "run", "--to", to, "--out", out)
        assert result.code == 0, result.err
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.convert_tokens_to_ids("[PAD]") == rows
    made = gguf_tokenizer(source, rows)
    assert (
        len(made.fields["tokenizer.ggml.tokens"]) == rows and "[PAD]: beyond the model's rows, left out" in made.notes
    )
    assert made.fields["tokenizer.ggml.padding_token_id"] == made.fields["tokenizer.ggml.eos_token_id"]


def test_rows_beyond_the_tokenizer_are_never_drawn(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bug: a padded vocabulary (Qwen) gives ids that stand for nothing, and decoding breaks."""
    from groundup.infer.engine import Engine
    from groundup.infer.sample import SamplingParams

    imported(checkpoints["qwen3"], tmp_path / "q")
    tokenizer, model = Tokenizer.load(tmp_path / "q/tokenizer"), load_model(tmp_path / "q/pretrain/model")
    with torch.no_grad():
        model.embed.weight[tokenizer.vocab_size :] *= 50  # tied: their logits become the largest
    params = SamplingParams(max_new_tokens=20, temperature=2.0, seed=1)
    made = Engine(model, tokenizer).generate([[5]] * 4, params)
    assert max(i for one in made for i in one.ids) < tokenizer.vocab_size < model.config.vocab_size


def test_a_recipe_with_a_base(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: base: is not looked for beside the recipe; report and card say it was pretrained here; with a corpus, bits
    per byte are not measured; dpo asks for an sft stage that an imported chat model does not need."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoints["llama3"], tmp_path / "recipes" / "base-model")
    recipe = tmp_path / "recipes" / "tuned.yaml"
    text = "\n".join(f"line {n} of held-out text, number {n % 4}" for n in range(200))
    (tmp_path / "recipes" / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text.split("\n")))
    dpo = f"dpo: {{sources: [{{path: {TESTS / 'micro' / 'pairs.jsonl'}}}], steps: 2, batch_size: 2, precision: fp32}}\n"
    recipe.write_text(
        "name: tuned\nbase: base-model\nmodel: {context: 128}\nthreads: 1\nverify: {only: [causality]}\n"
        "data: {sources: [{path: text.jsonl}], validation: 0.4}\nevaluate: {bits_per_byte_bytes: 500}\n" + dpo
    )
    result = groundup("run", recipe)
    assert worked(result) == [
        *("plan", "verify-model", "tokenizer", "pretrain", "data", "verify", "evaluate-base"),
        *("dpo", "evaluate-dpo", "report", "card"),
    ]
    run = tmp_path / "runs" / "tuned"
    status = {row["name"]: row for row in groundup("status", run, "--json").json()["stages"]}
    assert status["evaluate-base"]["metrics"]["bits_per_byte"] > 1
    assert load_model(run / "dpo/model").config.context == 128
    card, page = (run / "card/README.md").read_text(), (run / "report/index.html").read_text()
    assert "imported from base-model" in card and "trained from scratch" not in card
    assert "was imported from" in page and "not pretrained here" in page
    resolved = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    assert resolved["dpo"]["learning_rate"] == 5e-7, "an auto rate as for a model made here would spoil a finished one"
    assert worked(groundup("run", run / "recipe.resolved.yaml", "--runs", "runs")) == []


# ---- once ----


def test_the_checkpoint_may_vanish(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bugs: a run that needs the folder it was imported from for ever; one that does not see that it was changed; or
    one that a mere copy of the checkpoint makes stale."""
    source, run = Path(shutil.copytree(checkpoints["qwen3"], tmp_path / "source")), tmp_path / "runs" / "q"
    imported(source, run)
    shutil.rmtree(source)
    assert groundup("sample", run, "--prompt", "a", "--max-new-tokens", 2).code == 0
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "verify: {enabled: false}\nthreads: 1\n")
    until = ("run", recipe, "--until", "evaluate-base")
    assert worked(groundup(*until)) == ["plan", "evaluate-base"]
    shutil.rmtree(run / "pretrain")
    lost = groundup(*until)
    assert lost.code == 2 and "is not there any more" in lost.err

    shutil.copytree(checkpoints["qwen3"], source)
    for path in source.iterdir():
        os.utime(path, (1, 1))
    assert worked(groundup(*until)) == ["pretrain"]
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-5] ^= 64
    (source / "model.safetensors").write_bytes(weights)
    changed = groundup(*until)
    assert worked(changed) == ["pretrain", "evaluate-base"]


def test_importing_again_does_nothing(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bug: the second import copies everything again, or overwrites a recipe that was edited in between."""
    run = tmp_path / "q"
    imported(checkpoints["qwen3"], run)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + "description: Mine.\n")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert imported(checkpoints["qwen3"], run)["imported_before"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    other = groundup("import", checkpoints["llama3"], "--out", run)
    assert other.code == 2 and "is a run of something else" in other.err


def test_a_model_without_a_template_is_no_one_to_chat_with(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bugs: an imported base model is recommended for chat, and babbles without a warning; one with a template of its
    own is warned of."""
    for kind, talks in (("gpt2", False), ("llama3", True)):
        shown = groundup("import", checkpoints[kind], "--out", tmp_path / kind)
        assert shown.code == 0, shown.err
        assert ("chat here" in shown.out, "groundup sample" in shown.out) == (talks, not talks)
        chat = groundup("chat", tmp_path / kind, stdin="\n")
        assert chat.code == 0 and ("this is a base model" in chat.err) == (not talks), chat.err


def test_a_killed_import_leaves_nothing(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bug: half a run at --out, which the next command takes for a whole one."""
    run = tmp_path / "runs" / "q"
    forked = Forked("import", checkpoints["qwen3"], "--out", run, log=tmp_path / "log")
    code = forked.kill_when(lambda: any(run.parent.glob(".q.tmp-*/tokenizer")), signal.SIGKILL)
    assert code == -signal.SIGKILL and not run.exists()
    imported(checkpoints["qwen3"], run)
    assert [path.name for path in run.parent.iterdir()] == ["q"], "what the killed one left is removed"


def test_large_files_are_known_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the fingerprint of a large file sees its size alone, or reads all of it at every command."""
    monkeypatch.setattr(checkpoint, "WHOLE_BYTES", 100)
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 16)
    prints = set()
    for name, place in (("a", None), ("b", 0), ("c", 99_999), ("d", 49_999 + 800)):
        (tmp_path / name).mkdir()
        content = bytearray(100_000)
        if place is not None:
            content[place] = 1
        (tmp_path / name / "w").write_bytes(content)
        prints.add(checkpoint._fingerprint(tmp_path / name, ["w"]))
    assert len(prints) == 4


# ---- what cannot be imported ----


def _damage(folder: Path, what: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if what == "no config":
        config.unlink()
    elif what == "no weights":
        weights.rename(folder / "pytorch_model.bin")
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif what == "cut tokenizer":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:500])
    elif what == "unknown architecture":
        content = json.loads(config.read_text())
        config.write_text(json.dumps({**content, "architectures": ["BirdForCausalLM"], "model_type": "bird"}))
    elif what == "config list":
        config.write_text("[1]")
    elif what == "cut config":
        config.write_text(config.read_text()[:50])
    elif what == "adapter":
        config.unlink()
        weights.rename(folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/model"}')
    elif what == "eos of text":  # as a config.json copied from another model says it
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
        config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 64, "bos_token_id": None}))
    elif what == "template beyond":
        content = json.loads((folder / "tokenizer.json").read_text())
        rows, last = json.loads(config.read_text())["vocab_size"], max(t["id"] for t in content["added_tokens"])
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        filler = [(i, f"<|filler{i}|>") for i in range(last + 1, rows)]
        content["added_tokens"] += [{"id": i, "content": n, **flags} for i, n in [*filler, (rows, "<|turn|>")]]
        (folder / "tokenizer.json").write_text(json.dumps(content))
        names = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        names["chat_template"] = "{% for m in messages %}<|turn|>{{ m.content }}<|im_end|>{% endfor %}"
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    elif what == "no eos":
        (folder / "tokenizer_config.json").write_text('{"eos_token": null, "chat_template": "{{ 1 }}"}')
    elif what == "word pieces":
        content = json.loads((folder / "tokenizer.json").read_text())
        content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    elif what == "another's tokenizer":
        content = json.loads(config.read_text())
        rows = content["vocab_size"] - 100
        from safetensors.torch import load_file, save_file

        tensors = {k: v[:rows].clone() if v.shape[0] == rows + 100 else v for k, v in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(json.dumps({**content, "vocab_size": rows}))


WRONG = {
    "no config": "has no config.json",
    "no weights": "has no .safetensors weights (but pytorch_model.bin: a pickle can run code",
    "no tokenizer": "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    "cut weights": "model.safetensors",
    "cut tokenizer": "tokenizer.json",
    "unknown architecture": "BirdForCausalLM",
    "config list": "config.json is not a JSON object: fetch it again",
    "cut config": "fetch it again",  # not "delete the folder it is in", which read_json advises for files of ours
    "adapter": "is an adapter of lab/model",
    "eos of text": "an ordinary token of text: write the right eos_token into tokenizer_config.json",
    "template beyond": "the chat template writes <|turn|>, which the model",
    "no eos": "names no eos_token",
    "word pieces": "WordPiece",
    "another's tokenizer": "is it this model's tokenizer?",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_checkpoint_is_refused(what: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bugs: a traceback, exit code 1, a message without a remedy, or a half-made run; a recipe's base is told otherwise
    than the command's folder."""
    source = Path(shutil.copytree(checkpoints["llama3"], tmp_path / "source"))
    _damage(source, what)
    result = groundup("import", source, "--out", tmp_path / "runs" / "x")
    assert result.code == 2, result.err
    assert WRONG[what] in result.err and "Traceback" not in result.err
    assert not (tmp_path / "runs" / "x").exists() and not list((tmp_path / "runs").glob(".*"))
    (tmp_path / "r.yaml").write_text(f"name: r\nbase: {source}\n")
    result = groundup("run", tmp_path / "r.yaml", "--runs", tmp_path / "runs", "--until", "pretrain")
    assert result.code == 2 and WRONG[what] in result.err, result.err


def test_places_that_are_wrong(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bugs: --out that holds something is overwritten; a name on the hub ends in 'no such file'."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("x")
    asked = {
        (checkpoints["gpt2"], tmp_path / "full"): "exists and is no run of this checkpoint",
        (checkpoints["gpt2"], tmp_path / "file"): "exists",
        (checkpoints["gpt2"], tmp_path / "-odd name"): "give --name",
        ("some-lab/some-model", tmp_path / "y"): "hf download some-lab/some-model",
        (tmp_path / "file", tmp_path / "y"): "is a file",
        (tmp_path / "full", tmp_path / "y"): "3 problems",
        (checkpoints["gpt2"], Path("/proc/none/x")): "cannot make the folder /proc/none",
    }
    for (source, out), message in asked.items():
        result = groundup("import", source, f"--out={out}")
        assert result.code == 2 and message in result.err, (message, result.err)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine" and not (tmp_path / "y").exists()


def test_a_recipe_that_contradicts_its_base_is_told_everything(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bug: the recipe's shape wins over the checkpoint's, or nothing reads it and nobody says so."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nbase: {checkpoints['gpt2']}\n"
        "model: {d_model: 48, norm: rmsnorm, n_layers: 2, params: 3M, context: 64}\n"
        "tokenizer: {kind: char, vocab_size: 300}\n"
    )
    result = groundup("plan", recipe)
    assert result.code == 2
    for said in (
        "6 problems",
        "model.d_model is 48, the checkpoint has 32",
        "model.norm is rmsnorm, the checkpoint has layernorm",
        "model.params decides a shape",
        "model.context is 64, but the checkpoint learned 256 positions",
        "tokenizer.kind is for training a tokenizer",
        "tokenizer.vocab_size is 300",
    ):
        assert said in result.err
    recipe.write_text(f"name: r\nbase: {checkpoints['gpt2']}\npretrain: {{steps: 10}}\n")
    result = groundup("plan", recipe)
    assert result.code == 2 and "with base nothing is pretrained" in result.err
    recipe.write_text("name: r\n")
    result = groundup("plan", recipe)
    assert result.code == 2 and "give data (a corpus to pretrain on), or base" in result.err
