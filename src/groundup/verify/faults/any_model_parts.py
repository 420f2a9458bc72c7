"""Faults of other people's models, in what is not attention: layers, experts, losses and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.verify.adapter import Adapter
from groundup.verify.fault import fault, swapped
from groundup.verify.faults.any_model import of, theirs

# ---- layers ----


def _norm(family: str, forward: Callable[[Any, Tensor], Tensor]) -> Any:
    home = theirs(family)
    name = next(name for name in vars(home) if name.endswith("RMSNorm"))
    return swapped(getattr(home, name), forward=forward)


@fault("hf-norm-in-bf16", "forward-is-its-definition", on=of("llama"))
def norm_in_bf16() -> Iterator[None]:
    """Norms are computed in bf16, inside a model in fp32."""

    def forward(self: Any, x: Tensor) -> Tensor:
        low = x.bfloat16()
        return self.weight * (low * torch.rsqrt(low.square().mean(-1, keepdim=True) + self.variance_epsilon)).to(
            x.dtype
        )

    with _norm("llama", forward):
        yield


@fault("hf-norm-over-time", "causality", "prefix-reads-alike", on=of("mistral"))
def norm_over_time() -> Iterator[None]:
    """A norm's mean square is taken over the row's tokens as well."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean((1, 2), keepdim=True) + self.variance_epsilon)

    with _norm("mistral", forward):
        yield


@fault("hf-norm-half-detached", "gradient-is-the-slope", on=of("llama"))
def norm_half_detached() -> Iterator[None]:
    """What a norm divides by is taken for a constant in the backward pass: every parameter still gets a gradient."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + self.variance_epsilon)

    with _norm("llama", forward):
        yield


@fault("hf-one-plus-missing", "forward-is-its-definition", on=of("gemma3"))
def one_plus_missing() -> Iterator[None]:
    """Gemma's norms multiply by the weight, without the 1 that is to be added to it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    with _norm("gemma3", forward):
        yield


@fault("hf-key-norm-missing-in-one-layer", "forward-is-its-definition", on=of("qwen3"))
def key_norm_missing_in_one_layer() -> Iterator[None]:
    """One layer's keys are not normalised; the weight is there, and is saved."""
    home = theirs("qwen3")
    right = home.Qwen3Attention.forward

    def forward(self: Any, *given: Any, **more: Any) -> Any:
        if self.layer_idx != 1:
            return right(self, *given, **more)
        with swapped(self.k_norm, forward=lambda x: x):
            return right(self, *given, **more)

    with swapped(home.Qwen3Attention, forward=forward):
        yield


@fault("hf-view-instead-of-transpose", "causality", "rows-do-not-mix", on=of("llama"))
def view_instead_of_transpose() -> Iterator[None]:
    """Heads and tokens are not transposed back but viewed as if they had been, and the batch with them."""
    home = theirs("llama")
    right = home.eager_attention_forward

    def wrong(*given: Any, **more: Any) -> Any:
        out, weights = right(*given, **more)
        rows, length, heads, width = out.shape
        return out.permute(2, 1, 0, 3).reshape(rows, length, heads, width), weights

    with swapped(home, eager_attention_forward=wrong):
        yield


def _scaled_to_8_bits(x: Tensor) -> Tensor:
    step = x.detach().abs().max() / 127  # over rows and tokens alike
    return x + ((x / step).round() * step - x).detach()


@fault("hf-activations-share-a-scale", "rows-do-not-mix", "prefix-reads-alike", on=of("qwen3"))
def activations_share_a_scale() -> Iterator[None]:
    """Activations are rounded to 8 bits by the largest of the whole batch: another batch, another answer."""
    mlp = theirs("qwen3").Qwen3MLP
    right = mlp.forward
    with swapped(mlp, forward=lambda self, x: right(self, _scaled_to_8_bits(x))):
        yield


def _attention_dropped(adapter: Adapter) -> None:
    right = adapter.fresh
    assert right is not None

    def deaf(one: Adapter) -> Adapter:
        for name, module in one.module.named_modules():
            if name.endswith("o_proj"):
                module.register_forward_hook(lambda module, given, out: out * 0)
        return one

    deaf(adapter)
    adapter.fresh = lambda seed: deaf(right(seed))


@fault(
    "hf-attention-dropped", "overfit-one-batch", "past-is-used", "positions-matter", on=of("llama", _attention_dropped)
)
def attention_dropped() -> Iterator[None]:
    """What attention found is not added to the stream: each token is read by itself."""
    yield


# ---- experts ----


@fault("hf-an-expert-is-never-run", "every-parameter-gets-gradient", "forward-is-its-definition", on=of("mixtral"))
def an_expert_is_never_run() -> Iterator[None]:
    """The loop over the experts ends one too soon."""
    experts = theirs("mixtral").MixtralExperts
    right = experts.forward

    def forward(self: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return right(self, x, index, weights * (index < self.num_experts - 1))

    with swapped(experts, forward=forward):
        yield


def _routes(wrong: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Any:
    router = theirs("mixtral").MixtralTopKRouter

    def forward(self: Any, x: Tensor) -> Any:
        logits = F.linear(x.reshape(-1, self.hidden_dim), self.weight)
        weights, index = wrong(logits, self.top_k)
        return logits, weights, index

    return swapped(router, forward=forward)


@fault("hf-experts-not-normalised", "forward-is-its-definition", on=of("mixtral"))
def experts_not_normalised() -> Iterator[None]:
    """The chosen experts' weights do not add up to 1: those of the others are left in the sum."""
    with _routes(lambda logits, k: tuple(logits.softmax(-1).topk(k, dim=-1))):  # type: ignore[arg-type, return-value]
        yield


@fault("hf-router-over-tokens", "rows-do-not-mix", "causality", on=of("mixtral"))
def router_over_tokens() -> Iterator[None]:
    """The router's softmax runs over the tokens of the batch."""

    def wrong(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        weights, index = logits.softmax(0).topk(k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), index

    with _routes(wrong):
        yield


# ---- losses ----


def _loss(wrong: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """transformers' loss of every causal model: (logits (B, T, V), labels (B, T)) -> loss, instead of its own."""
    mapping = theirs("loss.loss_utils").LOSS_MAPPING

    def loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
        return wrong(logits.float(), labels)

    return _entry(mapping, "ForCausalLM", loss)


class _entry:
    """One entry of a dict replaced for a while."""

    def __init__(self, mapping: dict[str, Any], key: str, value: Any) -> None:
        self.mapping, self.key, self.value, self.before = mapping, key, value, mapping[key]

    def __enter__(self) -> None:
        self.mapping[self.key] = self.value

    def __exit__(self, *_: Any) -> None:
        self.mapping[self.key] = self.before


def _per_token(logits: Tensor, labels: Tensor, shift: int = 1) -> Tensor:
    """(B, T - shift): -log softmax at the labels `shift` places on; 0 where there is none."""
    given = logits[:, : logits.shape[1] - shift].transpose(1, 2)
    return F.cross_entropy(given, labels[:, shift:], ignore_index=-100, reduction="none")


def _mean(losses: Tensor, labels: Tensor) -> Tensor:
    return losses.sum() / (labels[:, labels.shape[1] - losses.shape[1] :] != -100).sum()


@fault("hf-labels-not-shifted", "target-is-next-token", "loss-is-its-definition", on=of("llama"))
def labels_not_shifted() -> Iterator[None]:
    """Labels are not shifted: each token is asked for itself."""
    with _loss(lambda logits, labels: _mean(_per_token(logits, labels, 0), labels)):
        yield


@fault("hf-labels-shifted-twice", "target-is-next-token", "loss-is-its-definition", on=of("gpt2"))
def labels_shifted_twice() -> Iterator[None]:
    """Labels that the collator has shifted are shifted again by the model."""
    with _loss(lambda logits, labels: _mean(_per_token(logits, labels, 2), labels)):
        yield


@fault("hf-ignore-index-not-honoured", "loss-is-its-definition", "all-masked-is-refused", on=of("qwen3"))
def ignore_index_not_honoured() -> Iterator[None]:
    """Masked labels are taken for token 0."""
    with _loss(lambda logits, labels: _per_token(logits, labels.clamp(min=0)).mean()):
        yield


@fault("hf-loss-over-all-places", "loss-is-its-definition", "all-masked-is-refused", on=of("mistral"))
def loss_over_all_places() -> Iterator[None]:
    """The sum over scored places is divided by the number of all places."""
    with _loss(lambda logits, labels: _per_token(logits, labels).mean()):
        yield


@fault("hf-loss-is-a-mean-of-means", "loss-is-its-definition", on=of("gemma2"))
def loss_is_a_mean_of_means() -> Iterator[None]:
    """Each row is divided by its own count: tokens of short answers weigh more."""

    def wrong(logits: Tensor, labels: Tensor) -> Tensor:
        losses, counts = _per_token(logits, labels).sum(1), (labels[:, 1:] != -100).sum(1)
        return (losses / counts)[counts > 0].mean()

    with _loss(wrong):
        yield


@fault("hf-loss-of-nothing-is-zero", "all-masked-is-refused", on=of("mixtral"))
def loss_of_nothing_is_zero() -> Iterator[None]:
    """The count is kept from being 0, and a batch without a target has a loss of 0.0."""
    with _loss(lambda logits, labels: _per_token(logits, labels).sum() / (labels != -100).sum().clamp(min=1)):
        yield


# ---- parameters ----


def _untied(adapter: Adapter) -> None:
    head = adapter.module.get_submodule("lm_head")
    head.register_parameter("weight", nn.Parameter(adapter.module.get_parameter("lm_head.weight").detach().clone()))


@fault("hf-head-untied-after-load", "tied-is-one-storage", on=of("llama", _untied))
def head_untied_after_load() -> Iterator[None]:
    """Head and embedding hold the same numbers in two places: they will drift apart."""
    yield


@fault("hf-tie-lost-by-loading", "tied-is-one-storage", on=of("gpt2"))
def tie_lost_by_loading() -> Iterator[None]:
    """load_state_dict(assign=True) gives head and embedding a parameter each."""
    model = theirs("gpt2").GPT2LMHeadModel
    right = model.load_state_dict
    with swapped(model, load_state_dict=lambda self, state, **_: right(self, state, assign=True)):
        yield


@fault(
    "hf-feed-forward-detached-in-one-layer", "every-parameter-gets-gradient", "gradient-is-the-slope", on=of("llama")
)
def feed_forward_detached() -> Iterator[None]:
    """In one layer the gate is detached."""
    home = theirs("llama")
    right = home.LlamaDecoderLayer.__init__

    def init(self: Any, config: Any, layer_idx: int) -> None:
        right(self, config, layer_idx)
        if layer_idx == 1:
            self.mlp.gate_proj.register_forward_hook(lambda module, given, out: out.detach())

    with swapped(home.LlamaDecoderLayer, __init__=init):
        yield


@fault("hf-keys-detached", "every-parameter-gets-gradient", on=of("gpt2"))
def keys_detached() -> Iterator[None]:
    """Keys are detached: a third of one packed matrix gets no gradient, the other two do."""
    home = theirs("gpt2")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, *given: Any, **more: Any) -> Any:
        return right(module, query, key.detach(), *given, **more)

    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-layers-copied", "layers-start-unlike", on=of("mistral"))
def layers_copied() -> Iterator[None]:
    """Each layer is drawn from the same seed: the chunks of a pipeline, initialised apart."""
    model = theirs("mistral").MistralForCausalLM
    right = model.post_init

    def post_init(self: Any) -> None:
        right(self)
        first = self.model.layers[0].state_dict()
        self.model.layers[2].load_state_dict(first)

    with swapped(model, post_init=post_init):
        yield


@fault("hf-seed-without-effect", "layers-start-unlike", on=of("qwen3"))
def seed_without_effect() -> Iterator[None]:
    """The model seeds itself, the same whatever it is asked for."""
    model = theirs("qwen3").Qwen3ForCausalLM
    right = model.__init__

    def init(self: Any, config: Any) -> None:
        torch.manual_seed(0)
        right(self, config)

    with swapped(model, __init__=init):
        yield


@fault("hf-embedding-not-initialised", "init-loss", on=of("gpt2"))
def embedding_not_initialised() -> Iterator[None]:
    """The model's own initialisation is skipped: embedding, and so the tied head, is PyTorch's N(0, 1)."""
    with swapped(theirs("gpt2").GPT2PreTrainedModel, _init_weights=lambda self, module: None):
        yield


def _overflown(adapter: Adapter) -> None:
    with torch.no_grad():
        adapter.module.get_parameter("model.layers.2.mlp.down_proj.weight")[3, 5] = float("inf")


@fault("hf-weight-overflown", "weights-are-finite", on=of("gemma3", _overflown))
def weight_overflown() -> Iterator[None]:
    """One number of one matrix did not fit into fp16."""
    yield


def _lost(adapter: Adapter) -> None:
    with torch.no_grad():
        adapter.module.get_parameter("model.layers.1.mlp.experts.down_proj")[3].zero_()


@fault("hf-expert-lost-in-a-shard", "weights-are-finite", on=of("mixtral", _lost))
def expert_lost_in_a_shard() -> Iterator[None]:
    """One expert of one layer is zeros: its shard was not read."""
    yield


# ---- dropout, inputs, tokenizer ----


@fault("hf-dropout-in-evaluation", "eval-is-deterministic", on=of("gpt2", attn_pdrop=0.1))
def dropout_in_evaluation() -> Iterator[None]:
    """One layer drops attention weights in evaluation too: F.dropout's `training` is True unless it is told."""
    home = theirs("gpt2")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        out, weights = right(module, query, key, value, mask, **more)
        return (F.dropout(out, 0.1) if module.layer_idx == 2 else out), weights

    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-dropout-does-nothing", "eval-is-deterministic", on=of("gpt2", attn_pdrop=0.0))
def dropout_does_nothing() -> Iterator[None]:
    """The dropout that the config asks for is built and never applied."""
    with swapped(nn.Dropout, forward=lambda self, x: x):
        yield


@fault("hf-first-token-overwritten", "inputs-are-left-alone", on=of("llama"))
def first_token_overwritten() -> Iterator[None]:
    """The forward pass writes a first token into the batch that it was handed."""
    model = theirs("llama").LlamaModel
    right = model.forward

    def forward(self: Any, input_ids: Tensor, **more: Any) -> Any:
        if more.get("past_key_values") is None:
            input_ids[:, 0] = 1
        return right(self, input_ids=input_ids, **more)

    with swapped(model, forward=forward):
        yield


def _larger_tokenizer(adapter: Adapter) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(97)}, unk_token="w0"))
    tokenizer.add_special_tokens(["<|im_start|>"])
    adapter.tokenizer = tokenizer


@fault("hf-special-token-past-the-head", "ids-in-range", on=of("qwen3", _larger_tokenizer))
def special_token_past_the_head() -> Iterator[None]:
    """A special token was added to the tokenizer, and the embedding not resized."""
    yield
