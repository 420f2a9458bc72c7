"""The exported model is our model: same logits, same ids, same text in transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from model_shapes import ODD_SHAPES, SHAPES, build, config, tokens

from groundup.errors import UserError
from groundup.infer.engine import Engine, SamplingParams
from groundup.model.interchange.hf import architecture_of, export_hf, hf_obstacles
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

ADVERSARIAL = [
    "",
    " a",
    "a  b",
    "\x00",
    "e\u0301 \u0301",
    "👩‍👩‍👧",
    "\u202eabc",
    "a\r\nb\t",
    "x .",
    "日本語",
    "\ufeffz",
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [Path(os.__file__).read_text(encoding="utf-8")]
    train_tokenizer(TokenizerSection(kind="bpe", vocab_size=300), texts).save(folder)
    return folder


def opened(folder: Path, **kw: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **kw
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_text_are_ours(shape: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: a fused matrix split at the wrong seam, rows permuted for another rotary layout, Conv1D not transposed,
    eps, rope_base or head_dim left at the library's default. Whole sequences, up to the end of the context."""
    model = build(**SHAPES[shape])
    info = export_hf(model, tokenizer_folder, tmp_path / "hf")
    theirs = opened(tmp_path / "hf")
    assert type(theirs).__name__ == info["architecture"] == architecture_of(model.config)
    assert theirs.num_parameters() == info["parameters"] == sum(p.numel() for p in model.parameters())
    ids = tokens(4, model.config.context)
    with torch.no_grad():
        difference = (theirs(ids).logits - model.logits(model(ids))).abs().max()
    assert difference < 1e-4

    prompts = [[0, 7, 8, 9], [0, 50]]
    ours = Engine(model, Tokenizer.load(tokenizer_folder)).generate(
        prompts, SamplingParams(max_new_tokens=30, temperature=0, stop_ids=(1, 5))
    )
    for prompt, completion in zip(prompts, ours, strict=True):
        said = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, len(prompt) :]
        assert said.tolist() == completion.ids


def test_the_tokenizer_opens_with_the_same_ids(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: AutoTokenizer picks its class by the model's type and rebuilds it (spaces lost), or has no template."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for shape in ("qwen3", "llama", "gpt2"):
        export_hf(build(**SHAPES[shape]), tokenizer_folder, tmp_path / shape)
        ours, theirs = Tokenizer.load(tokenizer_folder), transformers.AutoTokenizer.from_pretrained(tmp_path / shape)
        for text in ADVERSARIAL:
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ids == ours.encode(text)
            assert theirs.decode(ids) == ours.decode(ids)
        assert theirs("the cat")["input_ids"] == ours.encode("the cat")  # no BOS of its own: the template has it
        messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello."}]
        rendered = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert list(rendered) == render(ours, messages).ids


def test_generation_stops_where_training_stopped(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: <|end|> missing from eos_token_id: the exported chat model never stops talking."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = build()
    export_hf(model, tokenizer_folder, tmp_path / "hf")
    theirs = opened(tmp_path / "hf")
    special = {
        t["content"]: t["id"] for t in json.loads((tokenizer_folder / "tokenizer.json").read_text())["added_tokens"]
    }
    assert theirs.generation_config.eos_token_id == [special["<|end|>"], special["<|end_of_text|>"]]
    assert theirs.config.bos_token_id == special["<|begin_of_text|>"]
    # a pad id in the config would freeze that embedding for whoever trains on
    assert theirs.get_input_embeddings().padding_idx is None


def test_a_tied_head_is_left_out_and_an_untied_one_kept(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: tie_word_embeddings at the library's default: an untied head is dropped on loading, in silence."""
    from safetensors.torch import load_file

    for tied in (True, False):
        export_hf(build(tied=tied), tokenizer_folder, tmp_path / str(tied))
        assert ("lm_head.weight" in load_file(tmp_path / str(tied) / "model.safetensors")) is not tied
        content = json.loads((tmp_path / str(tied) / "config.json").read_text())
        assert content["tie_word_embeddings"] is tied
        assert content["head_dim"] == 8 and content["rope_theta"] == content["rope_parameters"]["rope_theta"] == 500


def test_bf16_weights_stay_bf16(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: the file says float32 and holds bf16, or doubles in size on the way."""
    info = export_hf(build().to(torch.bfloat16), tokenizer_folder, tmp_path / "hf")
    assert info["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_what_no_architecture_computes_is_refused_by_field(shape: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: exported under the nearest name, it loads without a word and answers differently."""
    found = hf_obstacles(config(**ODD_SHAPES[shape]))
    assert found
    with pytest.raises(UserError) as error:
        export_hf(build(**ODD_SHAPES[shape]), tokenizer_folder, tmp_path / "hf")
    assert all(obstacle in str(error.value) for obstacle in found)
    assert not (tmp_path / "hf").exists()


def test_obstacles_name_the_fields() -> None:
    """Bug: "not supported", and the user has to find out what."""
    assert [hf_obstacles(config(**shape)) for shape in SHAPES.values()] == [[]] * len(SHAPES)
    assert hf_obstacles(config(norm="layernorm", qk_norm="none")) == ["norm is layernorm, LlamaForCausalLM has rmsnorm"]
    assert any("n_kv_heads is 2" in o for o in hf_obstacles(config(**{**SHAPES["gpt2"], "n_kv_heads": 2})))


def test_what_cannot_be_exported_well_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: weights beside a stale shard index, which transformers reads instead; a tokenizer of another model."""
    out = tmp_path / "hf"
    out.mkdir()
    (out / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="holds other files"):
        export_hf(build(), tokenizer_folder, out)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        export_hf(build(), tmp_path, tmp_path / "new")
    with pytest.raises(UserError, match="vocabulary is 200"):
        export_hf(build(vocab_size=200), tokenizer_folder, tmp_path / "new")
    with pytest.raises(UserError, match="did you mean"):
        export_hf(build(), tokenizer_folder, tmp_path / "new", architecture="Qwen3ForCausal")
    with pytest.raises(UserError, match="qk_norm is head, LlamaForCausalLM has none"):
        export_hf(build(), tokenizer_folder, tmp_path / "new", architecture="LlamaForCausalLM")
    assert not (tmp_path / "new").exists()
    export_hf(build(), tokenizer_folder, tmp_path / "twice")
    export_hf(build(seed=1), tokenizer_folder, tmp_path / "twice")  # its own files it may write again


def test_a_large_model_is_cut_into_shards(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: a shard past the limit, a tensor in two of them or in none, an index with the wrong size."""
    from safetensors.torch import load_file

    model, limit = build(tied=False), 30_000
    info = export_hf(model, tokenizer_folder, tmp_path / "whole")
    assert not (tmp_path / "whole" / "model.safetensors.index.json").exists()
    info = export_hf(model, tokenizer_folder, tmp_path / "cut", max_shard_bytes=limit)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert files == sorted(p.name for p in (tmp_path / "cut").glob("*.safetensors"))
    assert set(files) <= info["files"].keys()
    found: dict[str, torch.Tensor] = {}
    for file in files:
        here = load_file(tmp_path / "cut" / file)
        assert all(index["weight_map"][name] == file for name in here) and not here.keys() & found.keys()
        assert len(here) == 1 or sum(t.nbytes for t in here.values()) <= limit
        found |= here
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    ids = tokens(2, 20)
    with torch.no_grad():
        assert torch.equal(opened(tmp_path / "cut")(ids).logits, opened(tmp_path / "whole")(ids).logits)


def test_weights_left_over_are_not_read(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: shards of an earlier export beside a new file, or the other way about: one of the two is read."""
    out = tmp_path / "hf"
    export_hf(build(), tokenizer_folder, out, max_shard_bytes=30_000)
    for limit in (10**9, 60_000):
        with pytest.raises(UserError, match="holds other files"):
            export_hf(build(), tokenizer_folder, out, max_shard_bytes=limit)
    export_hf(build(seed=1), tokenizer_folder, out, max_shard_bytes=30_000)  # the same names: all written anew
    export_hf(build(), tokenizer_folder, tmp_path / "single")
    with pytest.raises(UserError, match=r"holds other files \(model\.safetensors\)"):
        export_hf(build(), tokenizer_folder, tmp_path / "single", max_shard_bytes=30_000)


def test_another_architecture_that_computes_the_same(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: a choice of architecture that is not obeyed, or obeyed in config.json and not in the tensors' names."""
    model, ids = build(qk_norm="none", tied=False), tokens(2, 30)
    for architecture in ("MistralForCausalLM", "Phi3ForCausalLM"):
        info = export_hf(model, tokenizer_folder, tmp_path / architecture, architecture=architecture)
        theirs = opened(tmp_path / architecture)
        assert type(theirs).__name__ == info["architecture"] == architecture
        with torch.no_grad():
            assert (theirs(ids).logits - model.logits(model(ids))).abs().max() < 1e-4


def test_a_tokenizer_that_others_trained(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: only our own special tokens are known, and an imported model cannot be exported again."""
    source = tmp_path / "tokenizer"
    source.mkdir()
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    names = {"<|end_of_text|>": "</s>", "<|begin_of_text|>": "<s>", "<|end|>": "<|im_end|>"}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    content["model"]["vocab"] = {names.get(k, k): v for k, v in content["model"]["vocab"].items()}
    (source / "tokenizer.json").write_text(json.dumps(content))
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}

    def written(config: dict[str, Any], **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        export_hf(build(), source, tmp_path / "hf", **options)
        return tuple(
            json.loads((tmp_path / "hf" / f"{name}.json").read_text()) for name in ("config", "generation_config")
        )

    config, generation = written({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    assert (config["bos_token_id"], config["eos_token_id"]) == (ids["<s>"], ids["</s>"])
    assert generation["eos_token_id"] == [ids["</s>"]]
    config, generation = written({"eos_token": "</s>"}, stop_ids=(ids["<|im_end|>"], ids["</s>"]))
    assert config["bos_token_id"] is None
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["</s>"]]
    with pytest.raises(UserError, match="names no eos_token"):
        written({"bos_token": "<s>"})
