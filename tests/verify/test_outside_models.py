"""transformers' models: sound ones pass, of whatever family; bugs planted in its code are caught (test_faults.py)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from groundup.errors import UserError
from groundup.verify import Adapter, verify
from groundup.verify.fault import FAULTS, swapped
from groundup.verify.faults.any_model import _HEADS, _LLAMA, TINY, of, tiny
from groundup.verify.hf import definition, of_transformers
from groundup.verify.ours import places
from groundup.verify.rig import largest
from groundup.verify.run import run_checks

SOUND = [(family, kind) for family in TINY for kind in ("eager", "sdpa") if (family, kind) != ("gemma2", "sdpa")]
ALL = {"cached-decode-equals-forward", "packed-equals-alone", "padding-changes-nothing", "forward-is-its-definition"}


def assert_sound(adapter: Any, seed: int = 0) -> list[Any]:
    results = run_checks(adapter, seed=seed)
    failed = [f"{r.id}: {r.measured} {r.direction} {r.bound}; {r.note}" for r in results if r.failed]
    assert not failed, failed
    return results


@pytest.mark.parametrize(("family", "attention"), SOUND)
def test_sound_families_pass(family: str, attention: str) -> None:
    """A verifier that cries wolf is switched off; one that skips everything is none: all but the tokenizer applies.
    (Gemma 2's caps are refused by the fused attention.)"""
    results = assert_sound(of(family, attention=attention)())
    aside = ["mask-holds-against-any-score"] if family == "mixtral" else []  # a router, at scores of 1e5
    assert [r.id for r in results if r.skipped] == ["ids-in-range", *aside]
    assert {r.id for r in results if r.passed} >= ALL


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("family", TINY)
def test_sound_families_pass_at_other_seeds(family: str, seed: int) -> None:
    """Other weights, other tokens."""
    assert_sound(of(family, attention="eager")(), seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3, 23))
@pytest.mark.parametrize(("family", "attention"), SOUND)
def test_sound_families_pass_at_many_seeds(family: str, attention: str, seed: int) -> None:
    """A bound that chance oversteps once in a hundred would show."""
    assert_sound(of(family, attention=attention)(), seed)


# Families that groundup does not import, of other makes: ALiBi, places with an offset, sinks, a state space.
OTHERS: dict[str, dict[str, Any]] = {
    "OPTForCausalLM": {
        "vocab_size": 97,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "word_embed_proj_dim": 32,
    },
    "BloomForCausalLM": {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "GPTNeoXForCausalLM": _LLAMA,
    "GptOssForCausalLM": {
        **_LLAMA,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    },
    "Cohere2ForCausalLM": {**_LLAMA, **_HEADS, "sliding_window": 8},
    "MambaForCausalLM": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_pass_what_applies(name: str) -> None:
    """Nothing knows a family by name: those that do not tell packed rows apart are not asked to."""
    import transformers

    cls = getattr(transformers, name)
    results = assert_sound(of_transformers(cls(cls.config_class(**OTHERS[name]))))
    packs = "documents-isolated" in {r.id for r in results if r.passed}
    assert packs == (name in ("GPTNeoXForCausalLM", "Cohere2ForCausalLM"))


def test_enough_is_planted_in_every_family() -> None:
    """The numbers that the page promises; test_faults.py plants them."""
    planted = [f for id, f in FAULTS.items() if id.startswith("hf-")]
    assert len(planted) == 84
    assert {check for f in planted for check in f.caught_by} >= {
        r.id for r in run_checks(of("gpt2")()) if not r.skipped
    }


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "LlamaModel"])
def test_what_is_no_language_model_is_refused(name: str) -> None:
    """An encoder with a decoder, a model without its head: no logits of the next token."""
    import transformers

    cls = getattr(transformers, name)
    small = (
        {**_LLAMA}
        if name == "LlamaModel"
        else {"vocab_size": 97, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
    )
    with pytest.raises(UserError, match="not a causal language model"):
        of_transformers(cls(cls.config_class(**small)))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError from within a check would be a failure of the model."""
    model = tiny("llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="transformers"):
        of_transformers(model)
    with pytest.raises(UserError, match="transformers"):
        tiny("llama")


def test_the_model_is_left_as_it_was() -> None:
    """Weights, config and mode: save_pretrained writes into the config, and a fresh model is built from it."""
    model = tiny("mixtral").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(vars(model.config))
    verify(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert vars(model.config) == config and model.training


def test_the_loss_is_asked_for_as_trainers_do() -> None:
    """labels = input_ids: the adapter's loss at next-token targets is what transformers says of the same row."""
    model = tiny("qwen3").eval()
    adapter, rows = of_transformers(model), torch.randint(97, (3, 21))
    with torch.no_grad():
        theirs = model(rows, labels=rows).loss
        ours = adapter.loss(rows[:, :-1], rows[:, 1:])  # type: ignore[misc]
    assert abs(float(theirs - ours)) < 1e-6


def test_router_losses_stay_out_of_the_loss() -> None:
    """A config that adds the router's loss is no wrong mean over scored places."""
    adapter = of("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)()
    assert all(r.passed for r in run_checks(adapter, only=["loss-is-its-definition", "target-is-next-token"]))


def test_packing_by_positions_needs_the_cache_off() -> None:
    """The page says so: with use_cache at its default, or a mask of ones, packed documents read each other, in training
    mode too."""
    model, tokens = tiny("llama", "sdpa").train(), torch.randint(97, (1, 16))
    positions = places(torch.tensor([[0] * 8 + [1] * 8]))
    changed = torch.cat([(tokens[:, :8] + 1) % 97, tokens[:, 8:]], dim=1)

    def leak(**given: Any) -> float:
        with torch.no_grad():
            both = [model(rows, position_ids=positions, **given).logits[:, 8:] for rows in (tokens, changed)]
        return largest(both[0] - both[1])

    assert leak() > 1e-3 and leak(use_cache=False) == 0
    assert leak(use_cache=False, attention_mask=torch.ones_like(tokens)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_no_bug(dtype: torch.dtype) -> None:
    """Looked at in fp32: in fp64 transformers' masks are -inf to its softmax. (A cast of the whole module rounds the
    rotary frequencies, which GPT-2 has not.)"""
    assert_sound(of_transformers(tiny("gpt2").to(dtype)))


@pytest.mark.parametrize(("experts", "chosen"), [(64, 2), (128, 8)])
def test_many_experts_are_no_bug(experts: int, chosen: int) -> None:
    """Experts that one batch does not reach are reached with other weights; a router that is undecided in the last bit
    does not look like a row that reads another."""
    adapter = of("mixtral", num_local_experts=experts, num_experts_per_tok=chosen, intermediate_size=8)()
    ids = ["every-parameter-gets-gradient", "rows-do-not-mix", "causality", "cached-decode-equals-forward"]
    assert not [(r.id, r.note) for r in run_checks(adapter, only=ids) if not r.passed]


@pytest.mark.parametrize("vocabulary", [2, 5, 20])
def test_small_vocabularies_are_no_bug(vocabulary: int) -> None:
    """Of characters, of bits: with fewer than 21 ids another batch is learned by heart."""
    assert_sound(of("llama", vocab_size=vocabulary)())


def test_a_padding_id_is_left_to_the_model() -> None:
    """The config's padding, which is no other special token, is never drawn; where it is the end of text it is."""
    alone, shared = of("llama", pad_token_id=0)(), of("llama", pad_token_id=0, eos_token_id=0)()
    assert alone.padding == 0 and 0 not in alone.special and not bool((alone.tokens(8, 48) == 0).any())
    assert shared.padding is None and bool((shared.tokens(8, 48) == 0).any())
    assert not bool((alone.other(alone.tokens(8, 48)) == alone.tokens(8, 48)).any())
    ids = ["special-ids-are-read", "loss-is-its-definition", "overfit-one-batch", "every-parameter-gets-gradient"]
    for one in (alone, shared):
        assert not [(r.id, r.note) for r in run_checks(one, only=ids) if not r.passed]


def test_half_precision_is_looked_at_in_a_copy() -> None:
    """The model stays in bf16; what the cast did to the rotary frequencies, which are a buffer, is seen."""
    model = tiny("llama", max_position_embeddings=64).bfloat16()
    adapter = of_transformers(model)
    assert model.dtype == torch.bfloat16 and adapter.module.dtype == torch.float32
    found = {r.id: r for r in run_checks(adapter, only=["forward-is-its-definition", "cached-decode-equals-forward"])}
    assert found["forward-is-its-definition"].failed and found["cached-decode-equals-forward"].passed


def test_the_definition_follows_the_weights_it_is_given() -> None:
    """A definition that were computed by the model under test would agree with whatever that does."""
    model = tiny("gemma2")
    adapter = of_transformers(model)
    with adapter.awake():
        tokens = adapter.tokens(1, 8)
        right = definition(model, tokens)
        assert largest(adapter.ask(tokens) - right) < adapter.rounding(largest(right))
        with torch.no_grad():
            model.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(1.1)
        assert largest(adapter.ask(tokens) - right) > 10 * adapter.rounding(largest(right))


def test_an_architecture_without_a_definition_is_skipped_with_the_reason() -> None:
    """Not passed, and not failed: groundup has nothing to compare it with."""
    import transformers

    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_LLAMA))
    result = run_checks(of_transformers(model), only=["forward-is-its-definition"])[0]
    assert result.skipped and "no definition of this architecture" in result.skipped


def test_a_tokenizer_that_fits_passes() -> None:
    """The pair (model, tokenizer): ids up to the last row of the head, none past it."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(97)}, unk_token="w0"))
    adapter = of_transformers(tiny("gpt2"), words)
    assert run_checks(adapter, only=["ids-in-range"])[0].passed
    words.add_tokens(["one more"])
    found = run_checks(adapter, only=["ids-in-range"])[0]
    assert found.failed and "'one more' is 97, the logits are 97 wide" in found.note


def test_decoding_goes_past_the_window() -> None:
    """A window of 8 in a context of 48: what goes wrong from the wrap on alone must be within reach."""
    adapter, longest = of("mistral")(), [0]
    right = adapter.decoder
    assert right is not None and adapter.context == 48

    def counted(tokens: Tensor, real: Tensor) -> Any:
        logits, step = right(tokens, real)
        seen = int(real.sum(1).max())

        def more(new: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            longest[0] = max(longest[0], seen)
            return step(new)

        return logits, more

    adapter.decoder = counted
    assert run_checks(adapter, only=["cached-decode-equals-forward"])[0].passed and longest[0] == 48


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers warns of what is meant here (a loss type that is not named, tokens without a mask)."""
    from transformers.utils import logging

    with swapped(logging.get_logger("transformers"), warning=lambda *_, **__: None):
        yield


def test_a_layer_of_ones_own_may_scale_its_weights() -> None:
    """Bug: weights drawn at 1 and scaled in use (arXiv 1710.10196) are found too large, by the class's name."""

    class Linear(nn.Linear):
        def __init__(self, d_in: int, d_out: int) -> None:
            super().__init__(d_in, d_out, bias=False)
            nn.init.normal_(self.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight * self.in_features**-0.5)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(97, 64), Linear(64, 128), Linear(128, 64)
            self.head = nn.Linear(64, 97, bias=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            return self.head(x + self.down(torch.relu(self.up(x))))  # type: ignore[no-any-return]

    def target(seed: int = 0) -> Adapter:
        torch.manual_seed(seed)
        model = Small()
        return Adapter(model, logits=model, vocab_size=97, context=64, fresh=target)

    (result,) = run_checks(target(), only=("first-matrices-are-of-a-size",))
    assert not result.failed and result.note.find("Error") < 0, result
