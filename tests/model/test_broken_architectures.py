"""Architectures that cannot be built: each is refused, where it stands and with the remedy, before a model is made.

Every row goes in twice: as the `model:` section of a recipe, the way a user writes it, and as a ModelConfig, the way
an importer or a stored config.json does.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundup.errors import UserError
from groundup.model.config import CHOICES, ModelConfig, RopeScaling
from groundup.model.obstacles import RULES, check_heads, config_problems
from groundup.model.transformer import Transformer
from groundup.model.values import BOUNDS, PATTERNS
from groundup.plan.host import Host
from groundup.plan.resolve import resolve
from groundup.recipe.load import load_recipe

HOST = Host("cpu", 2, 8 * 2**30, fast_bf16=False, compiler=False)
SOUND: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "d_ff": 64,
    "context": 64,
}
LATENT = {"latent": {"kv_rank": 8, "nope_dim": 8, "rope_dim": 4, "v_dim": 8}, "n_kv_heads": 4, "qk_norm": "none"}
MOE = {"n_experts": 4, "top_k": 2, "d_expert": 16}
YARN = {"kind": "yarn", "factor": 4, "original_context": 16}

# name -> (changes to a sound shape, words that the message about the recipe must hold[, and about the config])
Words = tuple[str, ...]
BROKEN: dict[str, tuple[dict[str, Any], Words] | tuple[dict[str, Any], Words, Words]] = {
    # sizes
    "no layers": ({"n_layers": 0}, ("model.n_layers", "greater than 0"), ("n_layers must be at least 1",)),
    "negative width": ({"d_model": -32}, ("model.d_model", "greater than 0"), ("d_model must be at least 1",)),
    "no heads": ({"n_heads": 0}, ("model.n_heads", "greater than 0"), ("n_heads must be at least 1",)),
    "no context": ({"context": 0}, ("model.context", "greater than 0"), ("context must be at least 1",)),
    "half a layer": ({"n_layers": 2.5}, ("model.n_layers", "integer"), ("n_layers must be a whole number", "2.5")),
    "width as text": ({"d_model": "wide"}, ("model.d_model", "wide"), ("d_model must be a whole number", "wide")),
    "yes layers": ({"n_layers": True}, ("model.n_layers", "number"), ("n_layers must be a whole number", "True")),
    "a width that heads do not divide": (
        {"d_model": 36, "n_heads": 5, "n_kv_heads": 5, "head_dim": "auto"},
        ("d_model 36 is not divisible by n_heads 5", "36/4", "36/6", "35/5", "40/5"),
    ),
    "kv heads that do not divide": ({"n_heads": 6, "n_kv_heads": 4}, ("n_kv_heads 4", "nearest n_kv_heads: 3 or 6")),
    "more kv heads than heads": ({"n_kv_heads": 8}, ("not divisible by n_kv_heads 8", "nearest n_kv_heads: 4")),
    "odd heads": ({"head_dim": 7}, ("head_dim must be even", "got 7", "6 or 8")),
    # position
    "an odd part rotated": (
        {"head_dim": 10, "rope_fraction": 0.5},
        ("rope_fraction 0.5 of head_dim 10 is 5", "nearest rope_fraction: 0.4 or 0.6"),
    ),
    "nothing rotated": ({"rope_fraction": 0.1}, ("rope_fraction 0.1 of head_dim 8 is 0", "0.25")),
    "too much rotated": ({"rope_fraction": 1.5}, ("model.rope_fraction", "less than or equal to 1"), ("at most 1",)),
    "unknown position": ({"position": "rop"}, ("model.position", "'rope'"), ('unknown "rop"', 'did you mean "rope"')),
    "stretched without rope": (
        {"position": "alibi", "rope_scaling": YARN},
        ("rope_scaling is read with position: rope alone", "position is alibi", "leave it out"),
    ),
    "rotated in part without rope": ({"position": "t5", "rope_fraction": 0.5}, ("rope_fraction is read with", "t5")),
    "a pattern without rope": (
        {"position": "none", "rope_pattern": "RN"},
        ("rope_pattern is read with", "none"),
    ),
    "a pattern that rotates nothing": ({"rope_pattern": "N"}, ("rotates no layer", "position: none")),
    "a pattern of other letters": ({"rope_pattern": "RX"}, ("model.rope_pattern", "RX"), ("letters R and N", "RX")),
    "an empty pattern": ({"window": 8, "window_pattern": ""}, ("model.window_pattern",), ("letters L and G",)),
    "base of one": ({"rope_base": 1.0}, ("rope_base must be above 1",)),
    "a base that is no number": ({"rope_base": math.nan}, ("model.rope_base", "nan"), ("rope_base must be a finite",)),
    "shrunk": ({"rope_scaling": {**YARN, "factor": 0.5}}, ("rope_scaling.factor must be at least 1", "0.5")),
    "stretched from a longer context": (
        {"rope_scaling": {**YARN, "original_context": 128}},
        ("original_context 128 is longer than context 64", "raise context"),
    ),
    "yarn upside down": (
        {"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 32}},
        ("beta_fast 1", "must be above beta_slow 32", "32 and 1"),
    ),
    "llama3 upside down": (
        {"rope_scaling": {**YARN, "kind": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
        ("low_freq_factor 4", "must be below high_freq_factor 1"),
    ),
    "another kind's field": (
        {"rope_scaling": {**YARN, "kind": "linear", "beta_fast": 16}},
        ("beta_fast is read by kind: yarn alone", "kind is linear"),
    ),
    "an unknown stretch": (
        {"rope_scaling": {**YARN, "kind": "yarm"}},
        ("model.rope_scaling.kind", "yarm"),
        ('rope_scaling.kind: unknown "yarm"', 'did you mean "yarn"'),
    ),
    "ntk on two dimensions": (
        {"head_dim": 2, "rope_scaling": {**YARN, "kind": "ntk"}},
        ("at least 4 rotated dimensions", "linear"),
    ),
    "one bucket": ({"position": "t5", "relative_buckets": 1}, ("relative_buckets must be at least 2",)),
    "buckets past the distance": (
        {"position": "t5", "relative_buckets": 64, "relative_distance": 32},
        ("relative_distance 32 must be above half of relative_buckets 64", "33"),
    ),
    "pairs from an odd width": (
        {"d_model": 33, "position": "sinusoidal"},
        ("sinusoidal", "d_model must be even", "33"),
    ),
    # windows
    "a window past the context": ({"window": 65}, ("window 65 is longer than context 64", "set it to 0")),
    "a window that no layer has": ({"window": 8, "window_pattern": "G"}, ("makes no layer local", "window to 0")),
    "a pattern without a window": ({"window_pattern": "LG"}, ("read with a window alone", "set window")),
    "a pattern longer than the model": (
        {"window": 8, "window_pattern": "LLLLLG"},
        ("6 letters for 4 layers", 'cut it to "LLLL"'),
    ),
    "a local base without a window": ({"rope_local_base": 1e4}, ("rope_local_base", "set window, or leave it out")),
    "a negative window": (
        {"window": -1},
        ("model.window", "greater than or equal to 0"),
        ("window must be at least 0",),
    ),
    # norms and biases
    "unknown norm": ({"norm": "rms"}, ("model.norm", "'rmsnorm'"), ('norm: unknown "rms"', 'did you mean "rmsnorm"')),
    "unknown block": ({"block": "pree"}, ("model.block", "'pre'"), ('block: unknown "pree"', 'did you mean "pre"')),
    "a norm's bias without LayerNorm": ({"bias": ["norm"]}, ("bias: norm goes with norm: layernorm", "rmsnorm")),
    "a bias on norms without parameters": (
        {"norm": "layernorm", "norm_weight": False, "bias": ["norm"]},
        ("norms without parameters have no bias",),
    ),
    "an offset without a weight": ({"norm_offset": True, "norm_weight": False}, ("norm_offset", "drop one of the two")),
    "unknown bias": ({"bias": ["kqv"]}, ("model.bias[0]", "'qkv'"), ('bias: unknown "kqv"', 'did you mean "qkv"')),
    "no epsilon": ({"norm_eps": 0}, ("model.norm_eps", "greater than 0"), ("norm_eps must be above 0",)),
    # feed-forward
    "unknown feed-forward": ({"mlp": "swigul"}, ("model.mlp", "'swiglu'"), ('mlp: unknown "swigul"', '"swiglu"')),
    "more experts used than there are": ({"moe": {**MOE, "top_k": 5}}, ("moe.top_k 5", "moe.n_experts 4", "at most 4")),
    "one expert": ({"moe": {**MOE, "n_experts": 1, "top_k": 1}}, ("one expert is a plain feed-forward", "2 or more")),
    "one expert used, normalised": (
        {"moe": {**MOE, "top_k": 1}},
        ("the one weight is always 1", "moe.normalise to false", "top_k to 2"),
    ),
    "experts in no layer": ({"moe": {**MOE, "first_dense": 4}}, ("no layer has experts", "at most 4")),
    "experts in every fifth of four": ({"moe": {**MOE, "every": 5}}, ("no layer has experts", "every 5")),
    "experts without width": (
        {"moe": {**MOE, "d_expert": 0}},
        ("model.moe.d_expert", "greater than 0"),
        ("moe.d_expert must be at least 1",),
    ),
    "a step for a bias that is not there": ({"moe": {**MOE, "bias_rate": 0.01}}, ("moe.bias_rate", "balance: bias")),
    "a weight for a loss that is not there": (
        {"moe": {**MOE, "balance": "none", "balance_weight": 0.1}},
        ("moe.balance_weight is read with moe.balance: loss alone", "balance is none"),
    ),
    "biases of experts": ({"moe": MOE, "bias": ["up"]}, ("every layer has experts", "take them out")),
    # latent attention
    "latent with fewer kv heads": ({**LATENT, "n_kv_heads": 2}, ("latent attention has no kv heads", "n_heads (4)")),
    "latent with qk_norm": ({**LATENT, "qk_norm": "head"}, ("qk_norm: head has no place in latent", "none")),
    "latent with qkv bias": ({**LATENT, "bias": ["qkv"]}, ("bias: qkv has no place in latent", "take qkv out")),
    "latent without rope": ({**LATENT, "position": "alibi"}, ("position must be rope", "alibi")),
    "latent with an odd rotated part": (
        {**LATENT, "latent": {**LATENT["latent"], "rope_dim": 5}},  # type: ignore[dict-item]
        ("latent.rope_dim must be even", "4 or 6"),
    ),
    "latent in part rotated": ({**LATENT, "rope_fraction": 0.5}, ("rope_fraction is not read with latent", "rope_dim")),
    "latent with a head_dim of its own": ({**LATENT, "head_dim": 10}, ("head_dim 10 is not read with latent", "(12)")),
    "latent without a rank": (
        {**LATENT, "latent": {**LATENT["latent"], "kv_rank": 0}},  # type: ignore[dict-item]
        ("model.latent.kv_rank", "greater than 0"),
        ("latent.kv_rank must be at least 1",),
    ),
    # the rest
    "unknown qk_norm": ({"qk_norm": "heads"}, ("model.qk_norm", "'head'"), ('qk_norm: unknown "heads"', '"head"')),
    "a negative cap": (
        {"logit_softcap": -30},
        ("model.logit_softcap", "greater than or equal to 0"),
        ("logit_softcap must be at least 0", "-30"),
    ),
    "no score_dim": ({"score_dim": 0}, ("model.score_dim", "greater than 0"), ("score_dim must be above 0",)),
    "everything dropped": ({"dropout": 1.0}, ("model.dropout", "less than 1"), ("dropout must be below 1",)),
    "an infinite scale": ({"embed_scale": math.inf}, ("model.embed_scale", "inf"), ("embed_scale must be a finite",)),
    "muP without its width": ({"init": "mup"}, ("init: mup needs mup_width", "for example")),
    "muP's width without muP": ({"mup_width": 64}, ("mup_width is read with init: mup alone", "init is gpt2")),
    "a deviation that Xavier does not read": ({"init": "xavier", "init_std": 0.01}, ("init_std is not read", "xavier")),
    "unknown init": ({"init": "gtp2"}, ("model.init", "'gpt2'"), ('init: unknown "gtp2"', 'did you mean "gpt2"')),
}


def written(tmp_path: Path, section: dict[str, Any]) -> Path:
    file = tmp_path / "broken.yaml"
    tree = {
        "name": "broken",
        "model": {**SOUND, **section},
        "tokenizer": {"vocab_size": 300},
        "data": {"sources": [{"builtin": "town"}]},
    }
    file.write_text(yaml.safe_dump(tree))
    return file


def config(changes: dict[str, Any]) -> ModelConfig:
    values = {**SOUND, **changes}
    if values["head_dim"] == "auto":
        values["head_dim"] = 8
    return ModelConfig(vocab_size=300, **values)


@pytest.mark.parametrize("name", BROKEN)
def test_a_recipe_is_refused(name: str, tmp_path: Path) -> None:
    """Bug: a broken shape gets as far as a stack trace from torch, or trains as something else than was written."""
    row = BROKEN[name]
    with pytest.raises(UserError) as caught:
        resolve(load_recipe(written(tmp_path, row[0])), HOST)
    message = str(caught.value)
    assert "model" in message
    for words in row[1]:
        assert words in message


@pytest.mark.parametrize("name", [name for name, row in BROKEN.items() if row[0].get("head_dim") != "auto"])
def test_a_config_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: an imported or stored config, which no schema has seen, is built all the same."""
    row = BROKEN[name]
    built: list[int] = []
    monkeypatch.setattr("torch.nn.Parameter.__new__", lambda *a, **k: built.append(1))
    with pytest.raises(UserError) as caught:
        Transformer(config(row[0]))
    for words in row[-1]:
        assert words in str(caught.value)
    assert not built


def test_there_are_enough() -> None:
    assert len(BROKEN) >= 40


def test_sound_shapes_pass(tmp_path: Path) -> None:
    """Bug: a rule that refuses what can be built."""
    for changes in (
        {},
        LATENT,
        {**LATENT, "window": 8, "sinks": True, "attention_softcap": 50.0, "score_dim": 4.0, "bias": ("out",)},
        {"moe": {**MOE, "top_k": 4, "first_dense": 1, "every": 3}},
        {"moe": {**MOE, "balance": "bias", "bias_rate": 0.01, "score": "sigmoid", "n_shared": 1}, "bias": ("up",)},
        {"moe": {**MOE, "top_k": 1, "normalise": False}},
        {"norm": "layernorm", "bias": ("qkv", "out", "up", "down", "norm", "head"), "position": "learned"},
        {"norm": "layernorm", "norm_offset": True},
        {"norm_weight": False},
        {"position": "t5", "relative_buckets": 7, "relative_distance": 16},
        {"position": "alibi", "head_dim": 7},
        {"rope_fraction": 0.25, "rope_pattern": "RRRN"},
        {"rope_scaling": YARN, "window": 64, "window_pattern": "LG", "rope_local_base": 1e4},
        {"init": "mup", "mup_width": 16},
        {"head_dim": 64},
    ):
        assert config(changes).problems() == [], changes
    resolve(load_recipe(written(tmp_path, {})), HOST)


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Bug: the second mistake is shown when the first is mended, and so on."""
    bad = {"n_kv_heads": 3, "head_dim": 7, "window": 99, "bias": ["norm"], "mup_width": 64, "moe": {**MOE, "top_k": 9}}
    found = config(bad).problems()
    assert len(found) == 6
    with pytest.raises(UserError) as caught:
        resolve(load_recipe(written(tmp_path, bad)), HOST)
    assert "6 problems" in str(caught.value)
    assert all(problem in str(caught.value) for problem in found)


def test_one_wrong_value_is_one_problem() -> None:
    """Bug: rules that read a value which is wrong by itself add noise, or divide by zero."""
    for field in fields(ModelConfig):
        for value in (0, -1, "word", None, math.nan, [], {}):
            if field.name == "bias" and not isinstance(value, list):
                continue  # __post_init__ makes a tuple of it
            if field.name in ("latent", "moe", "rope_scaling") and isinstance(value, dict):
                continue  # __post_init__ refuses it
            found = config_problems(replace(config({}), **{field.name: value}))
            assert len(found) <= 1, (field.name, value, found)


def test_remedies_work() -> None:
    """Bug: the nearest value that is named is refused as well."""
    for dim in range(3, 200):
        for fraction in (0.3, 0.37, 0.5, 0.77):
            broken = config({"head_dim": dim, "rope_fraction": fraction})
            for problem in broken.problems():
                if "nearest rope_fraction: " not in problem:
                    continue
                for value in problem.split("nearest rope_fraction: ")[1].rstrip(")").split(" or "):
                    assert replace(broken, rope_fraction=float(value)).problems() == [], (problem, value)
    for heads in range(1, 40):
        for kv in range(1, 50):
            for problem in config({"n_heads": heads, "n_kv_heads": kv}).problems():
                for value in problem.split("nearest n_kv_heads: ")[1].rstrip(")").split(" or "):
                    assert heads % int(value) == 0
    for width in range(1, 80):
        for heads in range(1, 20):
            for problem in check_heads(width, heads):
                for pair in problem.split("pairs: ")[1].split(", "):
                    w, n = map(int, pair.split("/"))
                    assert w % n == 0


def test_every_bound_and_rule_names_a_field() -> None:
    """Bug: a field is renamed and its bound, or the rule that reads it, silently stops to be asked."""
    known = {field.name for field in fields(ModelConfig)}
    parts = {
        "rope_scaling": RopeScaling,
        **{n: type(getattr(config(LATENT | {"moe": MOE}), n)) for n in ("latent", "moe")},
    }
    known |= {f"{name}.{field.name}" for name, part in parts.items() for field in fields(part)}
    assert set(BOUNDS) | set(PATTERNS) | set(CHOICES) <= known
    assert {name for reads, _ in RULES for name in reads} <= known
