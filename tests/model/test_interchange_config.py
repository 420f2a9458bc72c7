"""config.json both ways: nothing is lost without a word, and nothing is guessed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hf_published import PUBLISHED
from model_shapes import ODD_SHAPES, SHAPES, VARIANTS, config

from groundup.errors import UserError
from groundup.model.config import LatentAttention, MixtureOfExperts, ModelConfig, RopeScaling
from groundup.model.interchange.configs import (
    TRAINING,
    TRAINING_MOE,
    architecture_of,
    computed,
    config_from_hf,
    hf_config,
    hf_obstacles,
)
from groundup.model.interchange.families import FAMILIES
from groundup.plan.resolve import model_config
from groundup.recipe.load import load_recipe

YARN = {"kind": "yarn", "factor": 4.0, "original_context": 10}
LLAMA3 = {"kind": "llama3", "factor": 4.0, "original_context": 10}
EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 24}
LATENT = {"kv_rank": 12, "nope_dim": 8, "rope_dim": 4, "v_dim": 6}
WINDOW = {"window": 6}

# Field -> (what the config must have besides, values of which one at least is not the family's own).
CHANGES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "vocab_size": ({}, [301]),
    "d_model": ({}, [64]),
    "n_layers": ({}, [4]),
    "n_heads": ({}, [8]),
    "n_kv_heads": ({}, [1]),
    "head_dim": ({}, [24]),
    "d_ff": ({"moe": None}, [64]),
    "context": ({}, [41]),
    "norm": ({}, ["rmsnorm", "layernorm"]),
    "norm_eps": ({}, [2e-3]),
    "norm_weight": ({}, [False]),
    "norm_offset": ({}, [False, True]),
    "block": ({}, ["pre", "sandwich"]),
    "position": ({}, ["rope", "learned"]),
    "rope_base": ({"position": "rope"}, [600.0]),
    "rope_local_base": ({"position": "rope", **WINDOW}, [50.0]),
    "rope_fraction": ({"position": "rope"}, [0.5]),
    "rope_pattern": ({"position": "rope"}, ["RN"]),
    "rope_scaling": ({"position": "rope"}, [RopeScaling(**LLAMA3)]),
    "relative_buckets": ({"position": "t5"}, [10]),
    "relative_distance": ({"position": "t5"}, [21]),
    "window": ({}, [7]),
    "window_pattern": (WINDOW, ["LGG", "GLG"]),
    "qk_norm": ({}, ["none", "head"]),
    "score_dim": ({}, [11.0]),
    "attention_softcap": ({}, [5.0]),
    "sinks": ({}, [True]),
    "latent": ({}, [LatentAttention(**LATENT)]),
    "mlp": ({}, ["swiglu", "gelu"]),
    "moe": ({}, [None, MixtureOfExperts(**EXPERTS)]),
    "bias": ({}, [("qkv",), ()]),
    "tied": ({}, [True, False]),
    "embed_scale": ({}, [2.0]),
    "logit_scale": ({}, [0.5]),
    "logit_softcap": ({}, [5.0]),
}
# The same inside a section: (the section, another value).
INSIDE: dict[str, tuple[dict[str, Any], Any]] = {
    "rope_scaling.kind": (YARN, "linear"),
    "rope_scaling.factor": (YARN, 3.0),
    "rope_scaling.original_context": (YARN, 12),
    "rope_scaling.beta_fast": (YARN, 30.0),
    "rope_scaling.beta_slow": (YARN, 2.0),
    "rope_scaling.attention_factor": (YARN, 1.5),
    "rope_scaling.low_freq_factor": (LLAMA3, 2.0),
    "rope_scaling.high_freq_factor": (LLAMA3, 5.0),
    "latent.kv_rank": (LATENT, 16),
    "latent.nope_dim": (LATENT, 10),
    "latent.rope_dim": (LATENT, 6),
    "latent.v_dim": (LATENT, 8),
    "latent.q_rank": (LATENT, 8),
    "moe.n_experts": (EXPERTS, 5),
    "moe.top_k": (EXPERTS, 3),
    "moe.d_expert": (EXPERTS, 32),
    "moe.n_shared": (EXPERTS, 1),
    "moe.first_dense": (EXPERTS, 1),
    "moe.every": (EXPERTS, 2),
    "moe.score": (EXPERTS, "sigmoid"),
    "moe.normalise": (EXPERTS, False),
    "moe.scale": (EXPERTS, 2.0),
    "moe.balance": (EXPERTS, "bias"),  # the bias decides who is chosen
}
TINY = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 40}
TINY |= {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "num_experts": 6}
TINY |= {"num_experts_per_tok": 2}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_field_is_refused_or_written(architecture: str) -> None:
    """Bug: a field (a new one, perhaps) that an architecture neither has nor refuses: the export answers differently.

    Whoever adds a field to ModelConfig adds values of it here.
    """
    base = config_from_hf({"architectures": [architecture], **TINY})
    assert hf_obstacles(base, architecture) == []

    def check(name: str, before: ModelConfig, after: ModelConfig) -> None:
        assert computed(before) != computed(after), name
        written = hf_config(before, architecture) != hf_config(after, architecture)
        assert written or hf_obstacles(after, architecture), name

    for field in fields(ModelConfig):
        if field.name not in TRAINING:
            needs, values = CHANGES[field.name]
            before = replace(base, **needs)
            other = next(value for value in values if value != getattr(before, field.name))
            check(field.name, before, replace(before, **{field.name: other}))
    for section, kind in (("rope_scaling", RopeScaling), ("latent", LatentAttention), ("moe", MixtureOfExperts)):
        for field in fields(kind):
            if section != "moe" or field.name not in TRAINING_MOE or field.name == "balance":
                values, other = INSIDE[f"{section}.{field.name}"]
                before = replace(base, position="rope", **{section: kind(**values)})
                check(
                    f"{section}.{field.name}",
                    before,
                    replace(before, **{section: kind(**{**values, field.name: other})}),
                )


@pytest.mark.parametrize("shape", [*SHAPES, *ODD_SHAPES, *VARIANTS])
def test_no_obstacle_means_the_same_function(shape: str) -> None:
    """Bug: a config is called expressible, and comes back as another."""
    ours = config(**{**SHAPES, **ODD_SHAPES, **VARIANTS}[shape])
    for architecture in FAMILIES:
        if not hf_obstacles(ours, architecture):
            assert computed(config_from_hf(hf_config(ours, architecture))) == computed(ours)


def test_what_training_alone_reads_is_no_obstacle() -> None:
    """Bug: a model trained with dropout or a router's loss is refused, though it answers as any other."""
    assert hf_obstacles(config(dropout=0.1, init="depth", zero_out=True)) == []
    assert hf_obstacles(config(moe={**EXPERTS, "balance": "none", "z_weight": 0.1})) == []
    assert hf_obstacles(config(moe={**EXPERTS, "balance": "bias"})) == [
        "moe.balance is bias, Qwen3MoeForCausalLM has no bias"
    ]
    assert "logit_scale is 0.5" in hf_obstacles(config(init="mup", mup_width=16))[0]


def test_two_ways_to_say_the_same_are_the_same() -> None:
    """Bug: a model is refused over a field that does nothing, or that another field says too."""
    same = [
        ({"score_dim": 8.0}, {}),
        ({"window": 6, "window_pattern": "LGL"}, {"window": 6, "window_pattern": "LG"}),
        ({"position": "learned", "rope_base": 7.0}, {"position": "learned"}),
        ({"moe": EXPERTS, "d_ff": 99}, {"moe": EXPERTS}),
        ({"rope_scaling": {"kind": "ntk", "factor": 4.0, "original_context": 10}}, {"rope_base": 500.0 * 4 ** (8 / 6)}),
    ]
    for one, other in same:
        assert computed(config(**one)) == computed(config(**other))


def test_nearest_architecture() -> None:
    """Bug: the obstacles named are those of an architecture that is far off."""
    assert architecture_of(config(window=6, qk_norm="none")) == "MistralForCausalLM"
    assert architecture_of(config(moe={**EXPERTS, "n_shared": 1})) == "Qwen3MoeForCausalLM"
    assert architecture_of(config(qk_norm="none", rope_fraction=0.5)) == "Phi3ForCausalLM"
    assert hf_obstacles(config(block="parallel")) == ["block is parallel, Qwen3ForCausalLM has pre"]
    assert hf_obstacles(config(bias=("qkv", "out", "up", "down"))) == [
        "bias is qkv, out, up, down, Qwen3ForCausalLM has qkv, out"
    ]
    with pytest.raises(UserError, match="did you mean"):
        hf_obstacles(config(), "LlamaForCausal")


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_config_is_the_preset(preset: str) -> None:
    """Bug: a published config.json, in the words of transformers 4, is read as another model than the preset's."""
    content = PUBLISHED[preset]
    read, made = config_from_hf(content), model_config(load_recipe(preset))
    assert computed(read) == computed(made)
    assert hf_obstacles(made, content["architectures"][0]) == []


def test_published_config_in_the_words_of_transformers_5() -> None:
    """Bug: only one of the two spellings of RoPE is read, and the other falls to a default of 10,000."""
    old = PUBLISHED["llama-3.1-8b"]
    scaling = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    new = {key: value for key, value in old.items() if key not in ("rope_scaling", "rope_theta")}
    assert config_from_hf({**new, "rope_parameters": scaling}) == config_from_hf(old)
    old = PUBLISHED["gemma-3-1b"]
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_local_base_freq", "sliding_window_pattern")}
    new["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert config_from_hf(new) == config_from_hf(old)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("qwen2.5-7b", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 5}),
        ("qwen3-8b", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
        ("qwen3-8b", {"use_sliding_window": True, "sliding_window": None}),
        ("gemma-3-1b", {"sliding_window_pattern": 4}),
        ("gemma-2-2b", {}),
    ],
)
def test_windows_without_layer_types(preset: str, changes: dict[str, Any]) -> None:
    """Bug: the rule for windows in a config older than layer_types is off by a layer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    content = {**PUBLISHED[preset], **changes}
    theirs = getattr(transformers, content["architectures"][0]).config_class(**content).layer_types
    ours = config_from_hf(content)
    assert [ours.is_local(n) for n in range(ours.n_layers)] == [kind == "sliding_attention" for kind in theirs]


def test_what_is_written_for_versions_without_layer_types() -> None:
    """Bug: who reads max_window_layers or sliding_window_pattern instead gets windows in other layers."""
    gemma = {"block": "sandwich", "norm_offset": True, "mlp": "geglu_tanh", "embed_scale": 32**0.5}
    for shape in (
        {"window": 6, "window_pattern": "GLL"},
        {"window": 6},
        {"window": 6, "window_pattern": "LLG", "rope_local_base": 50.0, **gemma},
    ):
        content = hf_config(config(**shape))
        del content["layer_types"]
        assert computed(config_from_hf(content)) == computed(config(**shape))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_keys_left_out_mean_what_transformers_takes(architecture: str) -> None:
    """Bug: a default of the library's (tied head, window, head_dim, base) is not ours."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 56, "num_hidden_layers": 8}
    sizes |= {"num_attention_heads": 32, "max_position_embeddings": 8192}
    if architecture == "GPT2LMHeadModel":
        sizes = {"vocab_size": 300, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 50}
    content = {"architectures": [architecture], **sizes}
    config_class = getattr(transformers, architecture).config_class
    whole = config_class(**sizes).to_dict() | {"architectures": [architecture]}
    assert computed(config_from_hf(content)) == computed(config_from_hf(whole))


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("llama-3.1-8b", {"hidden_act": "relu"}, 'hidden_act: no feed-forward here has "relu"'),
    "near activation": ("llama-3.1-8b", {"hidden_act": "gelu_pytorch_tan"}, 'did you mean "gelu_pytorch_tanh"'),
    "longrope": (
        "phi-3-mini",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        'rope_type "longrope" cannot be expressed',
    ),
    "scaling without factor": (
        "llama-3.1-8b",
        {"rope_scaling": {"rope_type": "linear"}},
        "rope_scaling.factor is missing",
    ),
    "trained on nothing": (
        "llama-3.1-8b",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}},
        "rope_scaling.original_max_position_embeddings must be at least 1",
    ),
    "llama3 without its factors": (
        "llama-3.1-8b",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope_scaling.low_freq_factor is missing",
    ),
    "yarn, not truncated": (
        "qwen3-8b",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
        "truncate: false",
    ),
    "partial rotary in llama": ("llama-3.1-8b", {"partial_rotary_factor": 0.5}, "rotates whole heads"),
    "quantised": ("llama-3.1-8b", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "other layers": ("qwen3-8b", {"layer_types": ["linear_attention"] * 36}, "linear_attention cannot be expressed"),
    "layers too few": ("qwen3-8b", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 36 layers"),
    "window without size": ("qwen3-8b", {"layer_types": ["sliding_attention"] * 36}, "no sliding_window is on"),
    "windows of two versions": (
        "qwen3-30b-a3b",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 24},
        "transformers 4 and 5 compute different things",
    ),
    "experts here and there": ("qwen3-30b-a3b", {"mlp_only_layers": [0, 5]}, "are not first_dense and every"),
    "scaled scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "capped scores in gemma 3": ("gemma-3-1b", {"attn_logit_softcapping": 50.0}, "does not compute it here"),
    "both directions": ("gemma-3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "scaled local rope": (
        "gemma-3-1b",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "sliding_attention",
    ),
    "other architecture": ("llama-3.1-8b", {"architectures": ["LlamaForSequenceClassification"]}, "is not read here"),
    "other model": ("llama-3.1-8b", {"architectures": None, "model_type": "falcon"}, "model_type 'falcon' is not one"),
    "word for a number": ("llama-3.1-8b", {"hidden_size": "big"}, "hidden_size must be a whole number"),
    "factor of nothing": (
        "llama-3.1-8b",
        {"rope_scaling": {"type": "linear", "factor": 0}},
        "a value is of the wrong kind",
    ),
    "layers as a word": ("qwen3-8b", {"layer_types": 36}, "a value is of the wrong kind"),
    "no causal mask": ("llama-3.1-8b", {"is_causal": False}, "is_causal False cannot be expressed"),
    "architecture against model_type": (
        "llama-3.1-8b",
        {"model_type": "mistral", "sliding_window": 9},
        "architectures says LlamaForCausalLM, whose model_type is llama, but model_type says 'mistral'",
    ),
    "architectures as a word": ("llama-3.1-8b", {"architectures": "LlamaForCausalLM"}, "must be a list of names"),
    "architectures as an object": ("llama-3.1-8b", {"architectures": {"a": 1}}, "must be a list of names"),
    "architectures in a list": ("llama-3.1-8b", {"architectures": [["a"]]}, "must be a list of names"),
    "model_type as a list": ("llama-3.1-8b", {"architectures": None, "model_type": ["llama"]}, "is not one of"),
    "pictures too": (
        "gemma-3-1b",
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": {}},
        "reads more than text",
    ),
    "cap of nothing on scores": ("gemma-2-2b", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0"),
    "cap of nothing on logits": ("gemma-3-1b", {"final_logit_softcapping": 0}, "final_logit_softcapping is 0"),
    "scaling in the words of old in gemma 3": (
        "gemma-3-1b",
        {"rope_scaling": {"type": "linear", "factor": 8.0}},
        'rope_scaling has "type", which transformers 4 computes here and 5 passes over',
    ),
    "tied as a word": ("llama-3.1-8b", {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
    "heads do not divide": ("gpt2", {"n_head": 7}, "n_embd 768 is not divisible by n_head 7"),
    "heads and kv heads": ("llama-3.1-8b", {"num_key_value_heads": 7}, "nearest n_kv_heads"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_expressed_is_refused(case: str) -> None:
    """Bug: a key is read past, and the imported model is another function."""
    preset, changes, message = BROKEN[case]
    with pytest.raises(UserError) as error:
        config_from_hf({**PUBLISHED[preset], **changes})
    assert message in str(error.value)


@pytest.mark.parametrize("content", [[1], None, "x"])
def test_a_config_that_is_no_object(content: Any) -> None:
    """Bug: 'list' object has no attribute 'get'."""
    with pytest.raises(UserError, match="is not a JSON object"):
        config_from_hf(content)


def test_all_problems_are_said_at_once() -> None:
    """Bug: one at a time, with a download between each."""
    content = {
        **PUBLISHED["llama-3.1-8b"],
        "hidden_act": "relu",
        "rope_scaling": {"type": "su"},
        "partial_rotary_factor": 0.5,
    }
    del content["hidden_size"]
    with pytest.raises(UserError, match=r"folder/config\.json: 4 problems") as error:
        config_from_hf(content, "folder/config.json")
    for part in ("hidden_size is missing", 'has "relu"', 'rope_type "su"', "rotates whole heads"):
        assert part in str(error.value)


def test_a_length_at_the_original_context_means_the_stretched_one() -> None:
    """Bug: YaRN added by hand to a config (as Qwen's cards tell) leaves a context in which nothing is stretched."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    content = {**PUBLISHED["qwen3-8b"], "max_position_embeddings": 32768, "rope_scaling": yarn}
    assert config_from_hf(content).context == 131072
    assert config_from_hf({**content, "max_position_embeddings": 65536}).context == 65536


def test_windows_wider_than_the_context_hide_nothing() -> None:
    """Bug: refused ("window is longer than context"), or, in Gemma 3, dropped together with the local base."""
    assert config_from_hf({**PUBLISHED["mistral-7b"], "sliding_window": 99999}).window == 32768
    read = config_from_hf({**PUBLISHED["gemma-3-1b"], "sliding_window": 99999})
    assert read.window == read.context and read.rope_local_base == 1e4
