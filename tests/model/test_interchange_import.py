"""Import tensor by tensor: every shape that checkpoints come in, everything that can be wrong, and little memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_shapes import randomised
from model_shapes import GPT2, config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from groundup.errors import UserError
from groundup.model.interchange.configs import architecture_of, hf_config
from groundup.model.interchange.hf import hf_tensors
from groundup.model.interchange.hf_import import import_hf
from groundup.model.interchange.tensors import INDEX, Spec, write_tensors
from groundup.model.storage import load_config, load_model
from groundup.model.transformer import Transformer

Tensors = dict[str, torch.Tensor]


def checkpoint(folder: Path, seed: int = 0, **shape: Any) -> tuple[Transformer, Tensors]:
    """A folder as transformers would save it, of a model of ours."""
    model = randomised(Transformer(config(**{"qk_norm": "none", **shape})), seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(model.config)))
    tensors = {name: tensor.detach().contiguous() for name, tensor in hf_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model, tensors


def rewrite(folder: Path, tensors: Tensors, **keys: Any) -> None:
    save_file(tensors, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(content))


def equal(model: Transformer, folder: Path) -> bool:
    back = load_model(folder).state_dict()
    return back.keys() == model.state_dict().keys() and all(
        torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items()
    )


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(UserError) as error:
        import_hf(folder, out)
    assert not (out / "model.safetensors").exists() and not (out / "config.json").exists()
    return str(error.value)


def shard(folder: Path, parts: int) -> None:
    """Cut model.safetensors into several files with an index, tensors dealt out in turn."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {f"model-{n + 1:05}-of-{parts:05}.safetensors": names[n::parts] for n in range(parts)}
    for file, here in files.items():
        save_file({name: tensors[name] for name in here}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, here in files.items() for name in here}}
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    """Bug: only the first shard is read, or a fused matrix whose parts lie in two shards is torn."""
    model, _ = checkpoint(tmp_path / "hf")
    shard(tmp_path / "hf", 5)
    shutil.copy(
        tmp_path / "hf" / "model-00001-of-00005.safetensors", tmp_path / "hf" / "model-00001-of-00009.safetensors"
    )
    info = import_hf(tmp_path / "hf", tmp_path / "ours", extra={"tokenizer_hash": "abc"})
    assert equal(model, tmp_path / "ours")
    assert info == {
        "architecture": "LlamaForCausalLM",
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float32",
        "bytes": (tmp_path / "ours" / "model.safetensors").stat().st_size,
        "ignored": [],
    }
    assert load_config(tmp_path / "ours") == (model.config, {"tokenizer_hash": "abc"})


def test_tensors_keep_their_dtype_or_get_the_one_asked_for(tmp_path: Path) -> None:
    """Bug: bf16 files come back as fp32, fp32 norms of a bf16 file are rounded, or q and k of two dtypes are."""
    model, tensors = checkpoint(tmp_path / "hf")
    mixed = {n: t if "norm" in n or "k_proj" in n else t.bfloat16() for n, t in tensors.items()}
    rewrite(tmp_path / "hf", mixed)
    assert import_hf(tmp_path / "hf", tmp_path / "kept")["dtype"] == "bfloat16, float32"
    kept = load_file(tmp_path / "kept" / "model.safetensors")
    assert kept["norm.weight"].dtype == torch.float32 and kept["embed.weight"].dtype == torch.bfloat16
    state = model.state_dict()
    assert torch.equal(kept["norm.weight"], state["norm.weight"])
    assert torch.equal(kept["embed.weight"], state["embed.weight"].bfloat16())
    qkv, heads = kept["blocks.0.attention.qkv.weight"], slice(32, 48)
    assert qkv.dtype == torch.float32
    assert torch.equal(qkv[heads], state["blocks.0.attention.qkv.weight"][heads])
    assert import_hf(tmp_path / "hf", tmp_path / "half", dtype=torch.float16)["dtype"] == "float16"


def test_what_nothing_reads_is_ignored_and_told(tmp_path: Path) -> None:
    """Bug: refused over a table of angles; or any unknown tensor is passed over."""
    model, tensors = checkpoint(tmp_path / "hf")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path / "hf", tensors | {name: torch.ones(4)})
    assert import_hf(tmp_path / "hf", tmp_path / "ours")["ignored"] == [name]
    assert equal(model, tmp_path / "ours")


def test_gpt2_as_it_stands_on_the_hub(tmp_path: Path) -> None:
    """Bug: names without "transformer." are not found, or the causal masks in the file are taken for biases."""
    model, tensors = checkpoint(tmp_path / "hf", **GPT2)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 40, 40).tril() for n in range(3)}
    rewrite(tmp_path / "hf", bare | masks)
    assert import_hf(tmp_path / "hf", tmp_path / "ours")["ignored"] == sorted(masks)
    assert equal(model, tmp_path / "ours")


@pytest.mark.parametrize("moe", [None, {"n_experts": 4, "top_k": 2, "d_expert": 24}])
def test_llamas_files_without_a_prefix(moe: Any, tmp_path: Path) -> None:
    """Bug: a file saved from LlamaModel, or one with nothing of ours in it, ends in "unhashable type: 'slice'", for
    q, k and v have a place in a fused matrix, unlike anything of GPT-2's."""
    model, tensors = checkpoint(tmp_path / "hf", moe=moe)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    rewrite(tmp_path / "hf", bare | {"rotary_emb.inv_freq": torch.ones(4)})
    assert import_hf(tmp_path / "hf", tmp_path / "ours")["ignored"] == ["rotary_emb.inv_freq"]
    assert equal(model, tmp_path / "ours")
    rewrite(tmp_path / "hf", {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()})
    assert "embed_tokens.weight is missing" in refused(tmp_path / "hf", tmp_path / "other")


@pytest.mark.parametrize("shape", [{}, GPT2])
def test_a_tied_matrix_under_the_heads_name(shape: dict[str, Any], tmp_path: Path) -> None:
    """Bug: safetensors' save_model keeps the first name of a shared matrix, lm_head; refused as without embedding."""
    model, tensors = checkpoint(tmp_path / "hf", **{**shape, "tied": True})
    name = next(name for name in tensors if "embed_tokens" in name or "wte" in name)
    rewrite(tmp_path / "hf", {("lm_head.weight" if n == name else n): tensor for n, tensor in tensors.items()})
    assert import_hf(tmp_path / "hf", tmp_path / "ours")["ignored"] == []
    assert equal(model, tmp_path / "ours")


def test_an_index_left_over_beside_the_whole_file(tmp_path: Path) -> None:
    """Bug: a stale index wins over model.safetensors, which transformers reads: refused, or older weights read."""
    model, tensors = checkpoint(tmp_path / "hf")
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "hf" / "model-00001-of-00001.safetensors"
    )
    where = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (tmp_path / "hf" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    import_hf(tmp_path / "hf", tmp_path / "ours")
    assert equal(model, tmp_path / "ours")
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / INDEX).write_text(json.dumps({"weight_map": {}}))
    assert "lists no tensors" in refused(tmp_path / "hf", tmp_path / "other")


def test_an_adapter_is_told_for_what_it_is(tmp_path: Path) -> None:
    """Bug: every tensor is called missing, or config.json is, and nobody says that there is no model here."""
    checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "adapter_model.safetensors")
    (tmp_path / "hf" / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/model"}')
    message = refused(tmp_path / "hf", tmp_path / "ours")
    assert "is an adapter of lab/model" in message and "merge_and_unload" in message
    (tmp_path / "hf" / "adapter_config.json").write_text("[]")
    assert "is an adapter of a model" in refused(tmp_path / "hf", tmp_path / "ours")


def test_the_head_of_a_tied_model(tmp_path: Path) -> None:
    """Bug: a head that differs from the embedding is dropped because config.json says tied (or left at its default)."""
    model, tensors = checkpoint(tmp_path / "hf", tied=True)
    embedding = tensors["model.embed_tokens.weight"]
    rewrite(tmp_path / "hf", tensors | {"lm_head.weight": embedding.clone()})
    assert import_hf(tmp_path / "hf", tmp_path / "ours")["ignored"] == ["lm_head.weight"]
    assert equal(model, tmp_path / "ours")
    rewrite(tmp_path / "hf", tensors | {"lm_head.weight": embedding + 1e-3})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refused(tmp_path / "hf", tmp_path / "other")
    rewrite(tmp_path / "hf", tensors | {"lm_head.weight": embedding + 1e-3}, tie_word_embeddings=False)
    import_hf(tmp_path / "hf", tmp_path / "untied")
    assert torch.equal(load_model(tmp_path / "untied").head.weight, embedding + 1e-3)


@pytest.mark.parametrize("qk_norm", ["none", "head"])
def test_experts_stacked_as_in_memory(qk_norm: str, tmp_path: Path) -> None:
    """Bug: a file written from transformers 5's stacked tensors is not read, or gate and up are swapped."""
    model, tensors = checkpoint(tmp_path / "hf", moe={"n_experts": 4, "top_k": 2, "d_expert": 24}, qk_norm=qk_norm)
    assert architecture_of(model.config).startswith("Mixtral" if qk_norm == "none" else "Qwen3Moe")
    router = re.compile(r"\.(block_sparse_moe|mlp)\.gate\.")
    kept = {router.sub(".mlp.gate.", n): t for n, t in tensors.items() if ".experts." not in n}
    for n, block in enumerate(model.blocks):
        kept[f"model.layers.{n}.mlp.experts.gate_up_proj"] = block.mlp.gate_up.detach()
        kept[f"model.layers.{n}.mlp.experts.down_proj"] = block.mlp.down.detach()
    rewrite(tmp_path / "hf", kept)
    import_hf(tmp_path / "hf", tmp_path / "ours")
    assert equal(model, tmp_path / "ours")


def test_everything_wrong_with_tensors_is_said_at_once(tmp_path: Path) -> None:
    """Bug: a missing tensor is left at whatever memory held, one too many is dropped; or told one by one."""
    _, tensors = checkpoint(tmp_path / "hf")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.1.self_attn.k_proj.bias"] = torch.ones(16)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.ones(32, 57)
    tensors["model.layers.2.self_attn.o_proj.weight"] = torch.ones(32, 32, dtype=torch.int8)
    rewrite(tmp_path / "hf", tensors)
    message = refused(tmp_path / "hf", tmp_path / "ours")
    assert "4 problems" in message
    assert "layers.1.self_attn.k_proj.weight is missing" in message
    assert "layers.1.self_attn.k_proj.bias has no place" in message
    assert "layers.0.mlp.down_proj.weight is (32, 57), config.json says (32, 56)" in message
    assert "layers.2.self_attn.o_proj.weight is I8: quantised weights are not read" in message
    rewrite(tmp_path / "hf", {"model.norm.weight": torch.ones(32)})
    assert "... and 18 more like it" in refused(tmp_path / "hf", tmp_path / "ours")


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """Bug: pickle is opened, a half download is read, a path in the index leads out of the folder; or a traceback."""
    out, hf = tmp_path / "ours", tmp_path / "hf"
    assert "is not a folder" in refused(hf, out)
    checkpoint(hf)
    whole = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors cannot be read" in refused(hf, out)
    (hf / "model.safetensors").unlink()
    assert "holds no *.safetensors" in refused(hf, out)
    (hf / "pytorch_model.bin").touch()
    message = refused(hf, out)
    assert "pytorch_model.bin" in message and "save_pretrained" in message
    (hf / "model.safetensors").write_bytes(whole)
    shard(hf, 3)
    (hf / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing, with " in refused(hf, out)
    index = json.loads((hf / INDEX).read_text())
    (hf / INDEX).unlink()
    assert "holds 2 safetensors files and no model.safetensors.index.json" in refused(hf, out)
    (hf / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(index["weight_map"], "../x.safetensors")}))
    assert "../x.safetensors is outside of the folder" in refused(hf, out)
    (hf / INDEX).write_text(json.dumps({"weight_map": {"more": "model-00001-of-00003.safetensors"}}))
    assert "model-00001-of-00003.safetensors has no more, though the index says so" in refused(hf, out)
    (hf / INDEX).write_text("{")
    assert "model.safetensors.index.json is damaged" in refused(hf, out)
    with pytest.raises(UserError, match="would be written over it"):
        import_hf(hf, hf / ".." / "hf")
    (hf / "config.json").write_text("[1]")
    assert "is not a JSON object" in refused(hf, out)
    (hf / "config.json").unlink()
    assert "config.json: no such file" in refused(hf, out)


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    """Bug: a header of our own making that the library refuses, tensors that are not aligned, or another's bytes."""
    tensors = {"a": torch.randn(3).bfloat16(), "b": torch.randn(2, 5), "c": torch.empty(0, 4), "d": torch.randn(4, 3).T}
    with open(tmp_path / "x.safetensors", "wb") as file:
        write_tensors(file, {n: Spec(t.dtype, tuple(t.shape)) for n, t in tensors.items()}, tensors.__getitem__)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], tensors[n]) and read[n].dtype == tensors[n].dtype for n in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    raw = (tmp_path / "x.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert size % 8 == 0
    assert all(header[n]["data_offsets"][0] % tensors[n].dtype.itemsize == 0 for n in tensors)
    with open(tmp_path / "y.safetensors", "wb") as file, pytest.raises(ValueError, match="not what the header says"):
        write_tensors(file, {"a": Spec(torch.float32, (3,))}, tensors.__getitem__)


PEAK = """
import json, sys
from pathlib import Path
from groundup.model.interchange.hf_import import import_hf

def memory(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) << 10

import_hf(sys.argv[1], sys.argv[2])  # once on something small: what is loaded late is loaded now
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
import_hf(sys.argv[3], sys.argv[4])
print(memory("VmHWM") - before)
"""


def peak_of_import(small: Path, large: Path, out: Path) -> int:
    """Bytes of memory that importing `large` takes at its peak, mapped pages of the files included."""
    command = [sys.executable, "-c", PEAK, str(small), str(out / "ours"), str(large), str(out / "ours")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_stays_near_one_copy(tmp_path: Path) -> None:
    """Bug: both copies of the model in memory at once; or, in shards, more than one of them."""
    checkpoint(tmp_path / "small")
    wide = {"d_model": 512, "n_heads": 8, "head_dim": 64, "d_ff": 2048, "n_layers": 14}
    checkpoint(tmp_path / "large", **wide)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 200e6
    single = peak_of_import(tmp_path / "small", tmp_path / "large", tmp_path)
    print(f"{size:,} bytes in one file: {single:,} at the peak")
    assert single < 1.3 * size
    large = tmp_path / "large"
    tensors = load_file(large / "model.safetensors")
    (large / "model.safetensors").unlink()
    layers = {name: name.split(".")[2] if ".layers." in name else "rest" for name in tensors}
    where = {name: f"model-{layer}.safetensors" for name, layer in layers.items()}
    for file in set(where.values()):
        save_file({name: tensor for name, tensor in tensors.items() if where[name] == file}, large / file)
    (large / INDEX).write_text(json.dumps({"weight_map": where}))
    sharded = peak_of_import(tmp_path / "small", large, tmp_path)
    print(f"in {len(set(where.values()))} files: {sharded:,}")
    assert sharded < 0.3 * size
