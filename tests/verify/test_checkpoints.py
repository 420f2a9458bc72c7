"""Hugging Face folders: sound ones of every family pass, findings have names and numbers, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tokenizers import normalizers

from groundup.errors import UserError, missing_extra
from groundup.verify import folders
from groundup.verify.adapter import Adapter
from groundup.verify.check import REGISTRY, NotApplicable
from groundup.verify.faults import checkpoint as planted
from groundup.verify.faults import checkpoint_files
from groundup.verify.faults.any_tokenizer import END, backend
from groundup.verify.faults.checkpoint import FAMILIES, checkpoint, config, json_of, weights
from groundup.verify.folders import Checkpoint
from groundup.verify.opening import open_target
from groundup.verify.outside import open_checkpoint
from groundup.verify.run import Result, run_checks

transformers = pytest.importorskip("transformers")

# The checks of files and of the tokenizer: those of the model are looked at in their own tests.
OURS = [one.id for one in REGISTRY.values() if {"checkpoint", "tokenizer"} & set(one.ways())]
FILES = {one.id for one in REGISTRY.values() if "checkpoint" in one.ways()}
LAST = planted.LAST


def looked(target: Any, only: list[str] | None = None) -> dict[str, Result]:
    return {one.id: one for one in run_checks(target, only or OURS) if one.skipped is None}


def alarms(target: Any, only: list[str] | None = None) -> list[tuple[str, str]]:
    return [(one.id, one.note) for one in looked(target, only).values() if one.failed]


def reason(target: Any, check: str) -> str | None:
    return run_checks(target, [check])[0].skipped


# ---- sound ones ----


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_checkpoints_pass(family: str) -> None:
    """A random model of each family as transformers saves it, with tokenizer and template: no alarm, and all that
    applies is looked at."""
    found = looked(checkpoint(family))
    assert not [(one.id, one.note) for one in found.values() if one.failed]
    skipped = {"index-names-what-is-there", "rope-spellings-agree"}  # not in parts; spelled once
    skipped |= {"import-equals-transformers"} if family == "gemma" else set()  # the first Gemma is not read here
    assert FILES - set(found) == skipped


def test_a_sound_checkpoint_passes_whole() -> None:
    """With its model as well: one command for a whole folder."""
    target = checkpoint("llama")
    assert isinstance(target.face("model"), Adapter) and target.face("recipe") is None
    found = {one.id: one for one in run_checks(target)}
    assert not [(one.id, one.note) for one in found.values() if one.failed]
    assert {"causality", "round-trip", "terminator-stops"} <= {one.id for one in found.values() if one.skipped is None}


def test_in_parts_and_in_half_precision() -> None:
    """Bugs: the index of a sound model in parts failed; bf16 taken for another dtype than config.json's."""
    in_parts = planted._sharded(lambda index, parts: None)()
    assert not alarms(in_parts) and "index-names-what-is-there" in looked(in_parts)
    half = weights(lambda t: t.update({k: v.bfloat16() for k, v in t.items()}), dtype="bfloat16")()
    assert not alarms(half)
    assert next(half.model.parameters()).dtype == torch.float32


def test_both_spellings_of_rope_may_stand_side_by_side() -> None:
    """As libraries write configs for readers old and new: what agrees is no finding."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    both = config(rope_theta=10000.0, rope_scaling=scaling, rope_parameters={**scaling, "rope_theta": 10000.0})()
    assert not alarms(both, ["rope-spellings-agree", "import-equals-transformers", "length-claims-agree"])
    old = config(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=None)()
    assert reason(old, "rope-spellings-agree") is not None


def test_what_old_files_carry_besides_is_no_tensor() -> None:
    """gpt2 on the Hub holds its causal masks, the same in every layer, with a row that is constant."""

    def old(tensors: dict[str, torch.Tensor]) -> None:
        for layer in (0, 1):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(128, 128).tril()[None, None]

    assert not alarms(weights(old, "gpt2")(), ["weights-are-alive", "layers-are-distinct", "weights-fit-the-config"])


# ---- findings ----


def test_findings_have_names_and_numbers() -> None:
    lost = weights(lambda t: t.__delitem__(LAST + "mlp.down_proj.weight"))()
    assert alarms(lost, ["weights-fit-the-config"])[0][1] == f"{LAST}mlp.down_proj.weight is missing"
    shallow = looked(config(num_hidden_layers=1)(), ["weights-fit-the-config"])["weights-fit-the-config"]
    assert shallow.measured == 9 and "is read by nothing" in shallow.note
    nan = looked(weights(planted._put(LAST + "self_attn.o_proj.weight", planted._nan))(), ["stored-weights-are-finite"])
    assert nan["stored-weights-are-finite"].note == f"{LAST}self_attn.o_proj.weight: 1"
    dead = alarms(weights(planted._put(LAST + "mlp.gate_proj.weight", planted._dead_row))(), ["weights-are-alive"])
    assert dead == [("weights-are-alive", f"{LAST}mlp.gate_proj.weight: 1 of 48 rows are constant")]
    rows = looked(checkpoint(), ["rows-cover-the-tokenizer"])["rows-cover-the-tokenizer"]
    assert rows.note == "vocab_size 368, embedding 368, head 368; tokenizer 365; 3 rows of padding"


def test_the_published_claim_of_qwen_2_5_is_found() -> None:
    """131,072 tokens are claimed, 32,768 positions are there; with YaRN written down the claim holds."""

    def claims(content: dict[str, Any]) -> None:
        content["model_max_length"] = 131072

    target = json_of("tokenizer_config.json", claims)()
    target.config["max_position_embeddings"] = 32768
    assert looked(target, ["length-claims-agree"])["length-claims-agree"].measured == 98304
    target.config["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert not alarms(target, ["length-claims-agree"])


@pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) < 5, reason="transformers 4 reads tokenizer.json")
def test_transformers_5_builds_another_tokenizer_beside_a_qwen_2_config(tmp_path: Path) -> None:
    """Real: a tokenizer without a normaliser, saved beside a Qwen 2 model, comes back with NFC. Other readers of the
    same tokenizer.json keep the text as it is."""
    from groundup.verify.faults.any_tokenizer import with_template

    def other(folder: Path) -> None:
        with_template().given.save_pretrained(folder)

    found = looked(checkpoint("qwen2", other), ["tokenizer-json-is-what-loads"])["tokenizer-json-is-what-loads"]
    assert found.failed and found.measured == 6
    assert isinstance(checkpoint("qwen2", other).tokenizer.backend.normalizer, normalizers.NFC)  # type: ignore[union-attr]


def test_eos_that_is_stated_nowhere_stops_nothing() -> None:
    """transformers' generate stops at what generation_config or config state; the tokenizer alone is not asked."""

    def silent(folder: Path) -> None:
        for name in ("config.json", "generation_config.json"):
            content = json.loads((folder / name).read_text())
            content["eos_token_id"] = None
            (folder / name).write_text(json.dumps(content))

    found = dict(alarms(checkpoint("llama", silent), ["special-ids-agree", "terminator-stops"]))
    assert "generation stops at nothing" in found["special-ids-agree"] and "terminator-stops" in found
    end = backend().token_to_id(END)
    assert f"an answer ends with {end}" in found["terminator-stops"]


def test_stored_weights_alone_would_hide_a_bug_of_the_import() -> None:
    """At a random model's first weights attention is nearly uniform: another base moves no logit past rounding. The
    redrawn weights show it."""
    with checkpoint_files._importing(rope_base=10100.0):
        found = looked(checkpoint("qwen2"), ["import-equals-transformers"])["import-equals-transformers"]
    stored, redrawn = (float(part.split()[-1]) for part in found.note.removesuffix(" times the rounding").split(", "))
    assert found.failed and stored < 1 < redrawn


# ---- what is missing, damaged or too large ----


def test_without_transformers_the_files_are_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra that is not installed takes its own checks away, not all."""
    target = checkpoint()

    def absent() -> Any:
        raise missing_extra("hf", "transformers")

    monkeypatch.setattr(folders, "library", absent)
    assert target.face("model") is None
    assert target.tokenizer is not None and target.tokenizer.library == "groundup"
    found = looked(target)
    assert not [(one.id, one.note) for one in found.values() if one.failed]
    of_files = {"tied-flag-agrees-with-weights", "stored-weights-are-finite", "special-ids-agree", "terminator-stops"}
    assert set(found) >= of_files | {"round-trip", "rows-cover-the-tokenizer", "tokenizer-files-agree"}
    assert "transformers" in (reason(target, "weights-fit-the-config") or "")


def test_weights_that_are_not_read_are_skipped_and_not_passed(tmp_path: Path) -> None:
    """A pickle is not opened; no weights at all; a folder whose code would have to be run."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    target = Checkpoint(tmp_path)
    assert reason(target, "stored-weights-are-finite") == "the folder holds no weights"
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "is a pickle" in (reason(Checkpoint(tmp_path), "weights-are-alive") or "")
    assert target.tokenizer is None and reason(target, "rows-cover-the-tokenizer") == "the folder holds no tokenizer"
    remote = config(auto_map={"AutoModelForCausalLM": "modeling.Model"})()
    assert "is not run here" in (reason(remote, "weights-fit-the-config") or "") and remote.face("model") is None
    with pytest.raises(NotApplicable, match="is not run here"):
        _ = remote.model


@pytest.mark.parametrize(
    ("said", "reason_"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantised (gptq)"),
        ({"quantization_config": {"quant_method": "awq"}}, "its weights are quantised (awq)"),
        (
            {"model_type": "llama9", "architectures": ["Llama9ForCausalLM"]},
            "does not know model_type 'llama9': a newer one may",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            "makes no language model of model_type 't5'",
        ),
    ],
)
def test_what_this_transformers_cannot_read_is_skipped(said: dict[str, Any], reason_: str) -> None:
    """Bug: sound folders that are quantised, or newer than the installed library, failed `weights-fit-the-config`."""
    folder = config(**said)()
    for check in ("weights-fit-the-config", "import-equals-transformers"):
        assert reason_ in (reason(folder, check) or "")
    others = {"weights-fit-the-config", "import-equals-transformers"}
    assert not alarms(folder, sorted(FILES - others))


def test_a_quantised_folder_is_no_alarm() -> None:
    """Bug: the zero points of GPTQ's symmetric form are alike in all layers; 8 bits are not the config's dtype."""

    def quantised(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            out, inner = tensors.pop(name).shape
            stem = name.removesuffix("weight")
            draw = torch.Generator().manual_seed(sum(stem.encode()))
            tensors[stem + "qweight"] = torch.randint(-(2**31), 2**31 - 1, (inner // 8, out), generator=draw).int()
            tensors[stem + "qzeros"] = torch.full((1, out // 8), 0x77777777, dtype=torch.int32)
            tensors[stem + "scales"] = torch.rand(1, out, generator=draw).half() + 0.1
            tensors[stem + "g_idx"] = torch.arange(inner, dtype=torch.int32) // 128

    folder = weights(quantised, quantization_config={"quant_method": "gptq", "bits": 4, "sym": True})()
    assert not alarms(folder, sorted(FILES))
    assert "weights-are-alive" in looked(folder, ["weights-are-alive"])


def test_dead_columns_are_counted() -> None:
    """Bug: only rows were looked at; half a matrix zero by columns passed."""

    def half(tensors: dict[str, torch.Tensor]) -> None:
        tensors[LAST + "mlp.down_proj.weight"][:, 24:] = 0

    found = alarms(weights(half)(), ["weights-are-alive"])
    assert found == [("weights-are-alive", f"{LAST}mlp.down_proj.weight: 24 of 48 columns are zero")]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        open_checkpoint(tmp_path)


def test_a_model_that_cannot_be_built_is_a_finding_and_no_crash() -> None:
    """transformers raises while loading: the folder's fault, told by the check, and the others still run."""
    broken = config(num_attention_heads=5, num_key_value_heads=3)()
    found = dict(alarms(broken, ["weights-fit-the-config", "stored-weights-are-finite", "import-equals-transformers"]))
    assert "weights-fit-the-config" in found and "stored-weights-are-finite" not in found


# ---- as a target ----


def test_it_is_opened_by_its_folder() -> None:
    """`groundup verify FOLDER`: config.json makes a checkpoint, a tokenizer alone a tokenizer."""
    whole = checkpoint()
    target = open_target(str(whole.folder))
    assert isinstance(target, Checkpoint) and target.kind == "checkpoint"
    for path in whole.folder.iterdir():
        if not path.name.startswith(("tokenizer", "chat_template")):
            path.unlink()
    alone = open_target(str(whole.folder))
    assert alone is not None and alone.kind == "tokenizer" and alone.face("checkpoint") is None


def test_looking_changes_nothing_and_loads_once() -> None:
    """Bug: weights left redrawn after the import was compared, a folder written to, a model loaded for each check."""
    target = checkpoint()
    model = target.face("model")
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.folder.iterdir()}
    state = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    run_checks(target, OURS)
    assert target.face("model") is model and target.face("tokenizer") is target.tokenizer
    assert before == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.folder.iterdir()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.model.state_dict().items())


def test_each_part_is_read_from_its_own_file() -> None:
    """Bug: all tensors read from the first part."""
    target = planted._sharded(lambda index, parts: None)()
    whole = load(planted.files()["model.safetensors"])
    assert save(dict(target.each())) == save(whole)
    assert all(torch.equal(target.tensor(name), tensor) for name, tensor in whole.items())
