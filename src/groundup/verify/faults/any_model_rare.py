"""Faults of other people's models that show far into a row, for some ids, in training, or at some sizes alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.verify.adapter import Adapter
from groundup.verify.fault import fault, swapped
from groundup.verify.faults.any_model import _updates, of, theirs
from groundup.verify.faults.any_model_parts import _loss, _mean, _norm, _per_token

# ---- far into a row ----


@fault("hf-causal-mask-ends-at-32", "causality", "forward-is-its-definition", on=of("llama"))
def causal_mask_ends_at_32() -> Iterator[None]:
    """A mask that was made for 32 places is filled up with ones: from there on each token sees the next."""
    with swapped(theirs("masking_utils"), causal_mask_function=lambda b, h, q, k: k <= q + (q >= 32)):
        yield


@fault("hf-places-stop-at-30", "forward-is-its-definition", on=of("qwen3"))
def places_stop_at_30() -> Iterator[None]:
    """Positions are clamped to a table of 30: whatever stands behind is turned by one angle."""
    rotary = theirs("qwen3").Qwen3RotaryEmbedding
    right = rotary.forward

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> Any:
        return right(self, x, torch.where(position_ids >= 30, 30 + 0 * position_ids, position_ids))

    with swapped(rotary, forward=forward):
        yield


@fault("hf-last-place-vectors-unread", "every-parameter-gets-gradient", on=of("gpt2"))
def last_place_vectors_unread() -> Iterator[None]:
    """The table of places is read up to 30 only, however long the row."""
    model = theirs("gpt2").GPT2Model
    right = model.__init__

    def init(self: Any, config: Any) -> None:
        right(self, config)
        self.wpe.register_forward_pre_hook(lambda module, given: (given[0].clamp(max=30),))

    with swapped(model, __init__=init):
        yield


@fault("hf-cache-drops-keys-past-40", "cached-decode-equals-forward", on=of("llama"))
def cache_drops_keys_past_40() -> Iterator[None]:
    """From the 40th token on a step's key is written over by zeros: the slots were 40."""
    steps = [0]

    def wrong(k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == 0:
            steps[0] = steps[0] + 1 if k.shape[2] == 1 else k.shape[2]
        return (k * 0, v) if k.shape[2] == 1 and steps[0] > 40 else (k, v)

    with _updates(wrong):
        yield


@fault("hf-padding-mask-of-24-places", "padding-changes-nothing", on=of("mistral"))
def padding_mask_of_24_places() -> Iterator[None]:
    """The padding mask is cut to 24 places and filled up with ones: padding behind is read."""
    masks = theirs("masking_utils")
    right = masks.prepare_padding_mask

    def wrong(mask: Any, *given: Any, **more: Any) -> Any:
        cut = mask if mask is None else F.pad(mask[:, :24], (0, max(0, mask.shape[1] - 24)), value=1)
        return right(cut, *given, **more)

    with swapped(masks, prepare_padding_mask=wrong):
        yield


@fault("hf-four-documents-are-told-apart", "documents-isolated", "packed-equals-alone", on=of("llama"))
def four_documents_are_told_apart() -> Iterator[None]:
    """Documents are numbered up to 3: all that follow in a packed row are one."""
    masks = theirs("masking_utils")
    right = masks.find_packed_sequence_indices

    def wrong(*given: Any, **more: Any) -> Any:
        found = right(*given, **more)
        return None if found is None else found.clamp(max=3)

    with swapped(masks, find_packed_sequence_indices=wrong):
        yield


# ---- some ids ----


def _from_ids(change: Callable[[Any, Tensor, dict[str, Any]], dict[str, Any]]) -> Any:
    """LlamaModel.forward, handed other arguments as the ids say."""
    model = theirs("llama").LlamaModel
    right = model.forward

    def forward(self: Any, input_ids: Tensor, **more: Any) -> Any:
        return right(self, **{"input_ids": input_ids, **more, **change(self, input_ids, more)})

    return swapped(model, forward=forward)


@fault("hf-id-0-is-masked", "special-ids-are-read", on=of("llama"))
def id_0_is_masked() -> Iterator[None]:
    """Where no mask is given it is made of the ids: 0 is taken for padding."""

    def change(model: Any, ids: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        bare = given.get("attention_mask") is None and given.get("past_key_values") is None
        return {"attention_mask": (ids != 0).long()} if bare else {}

    with _from_ids(change):
        yield


@fault("hf-last-id-is-clamped", "special-ids-are-read", on=of("llama"))
def last_id_is_clamped() -> Iterator[None]:
    """Ids are clamped to V - 2: the last is read as the one before."""
    with _from_ids(lambda model, ids, given: {"input_ids": ids.clamp(max=95)}):
        yield


def _with_words(adapter: Adapter) -> None:
    """A tokenizer to which 0 is an ordinary word, and whose end of text is 5."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(97)}, unk_token="w1"))
    adapter.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w5", unk_token="w1")


@fault("hf-end-of-text-is-masked", "special-ids-are-read", on=of("llama", _with_words))
def end_of_text_is_masked() -> Iterator[None]:
    """The end of text stands for padding as well, and is masked wherever it stands."""

    def change(model: Any, ids: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        bare = given.get("attention_mask") is None and given.get("past_key_values") is None
        return {"attention_mask": (ids != 5).long()} if bare else {}

    with _from_ids(change):
        yield


def _padding_idx(adapter: Adapter) -> None:
    _with_words(adapter)
    adapter.module.get_submodule("model.embed_tokens").padding_idx = 0  # type: ignore[assignment]


@fault("hf-row-0-is-padding-to-the-table", "special-ids-are-read", on=of("mistral", _padding_idx))
def row_0_is_padding_to_the_table() -> Iterator[None]:
    """padding_idx=0 was copied from an example; to this tokenizer 0 is a word, whose vector is never trained."""
    yield


@fault("hf-target-0-is-not-scored", "loss-is-its-definition", on=of("qwen3"))
def target_0_is_not_scored() -> Iterator[None]:
    """Labels that equal 0 are taken for padding."""
    with _loss(lambda logits, labels: _no_zeros(logits, torch.where(labels == 0, -100, labels))):
        yield


def _no_zeros(logits: Tensor, labels: Tensor) -> Tensor:
    return _mean(_per_token(logits, labels), labels)


# ---- training mode ----


def _when_training(family: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A causal model's forward, handed other arguments in training mode."""
    home = theirs(family)
    model = next(value for name, value in vars(home).items() if name.endswith("ForCausalLM"))
    right = model.forward

    def forward(self: Any, *given: Any, **more: Any) -> Any:
        return right(self, *given, **(more | change(more) if self.training else more))

    setattr(forward, "__signature__", inspect.signature(right))  # noqa: B010  (the adapter reads what it takes)
    return swapped(model, forward=forward)


@fault("hf-labels-shifted-twice-in-training", "training-mode-computes-the-same", on=of("llama"))
def labels_shifted_twice_in_training() -> Iterator[None]:
    """In training mode labels are shifted by the model, and once more by the loss."""

    def change(given: dict[str, Any]) -> dict[str, Any]:
        labels = given.get("labels")
        return {} if labels is None else {"labels": F.pad(labels[:, 1:], (0, 1), value=-100)}

    with _when_training("llama", change):
        yield


@fault("hf-mask-left-out-in-training", "training-mode-computes-the-same", on=of("qwen3"))
def mask_left_out_in_training() -> Iterator[None]:
    """In training mode one layer is not handed the mask: what is decoded is causal."""
    attention = theirs("qwen3").Qwen3Attention
    right = attention.forward

    def forward(self: Any, *given: Any, **more: Any) -> Any:
        bare = self.training and self.layer_idx == 1
        return right(self, *given, **({**more, "attention_mask": None} if bare else more))

    with swapped(attention, forward=forward):
        yield


@fault("hf-values-detached-in-training", "every-parameter-gets-gradient", "gradient-is-the-slope", on=of("llama"))
def values_detached_in_training() -> Iterator[None]:
    """In training mode one layer's values are detached: in eval mode every gradient is right."""
    home = theirs("llama")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, value: Tensor, *given: Any, **more: Any) -> Any:
        detached = value.detach() if module.training and module.layer_idx == 1 else value
        return right(module, query, key, detached, *given, **more)

    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-recompute-forgets-the-random-state", "recompute-changes-no-gradient", on=of("gpt2"))
def recompute_forgets_the_random_state() -> Iterator[None]:
    """Recomputing does not keep the random state: dropout in the backward pass is another."""
    home = theirs("modeling_utils")
    with swapped(home, checkpoint=partial(home.checkpoint, preserve_rng_state=False)):
        yield


@fault("hf-items-in-batch-ignored", "accumulation-equals-full-batch", on=of("mistral"))
def items_in_batch_ignored() -> Iterator[None]:
    """num_items_in_batch is taken and not looked at: accumulation adds up means."""
    with _loss(lambda logits, labels: _mean(_per_token(logits, labels), labels)):
        yield


@fault("hf-loss-in-bf16", "sums-stay-in-fp32", on=of("gemma2"))
def loss_in_bf16() -> Iterator[None]:
    """The loss does not turn logits to fp32: of a model in bf16 it has 8 bits."""
    mapping = theirs("loss.loss_utils").LOSS_MAPPING
    right = mapping["ForCausalLM"]

    def loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
        return _mean(_per_token(logits, labels), labels)

    mapping["ForCausalLM"] = loss
    try:
        yield
    finally:
        mapping["ForCausalLM"] = right


@fault("hf-softmax-in-bf16", "sums-stay-in-fp32", on=of("llama"))
def softmax_in_bf16() -> Iterator[None]:
    """Scores are cast to bf16 before the softmax, in a model in fp32."""
    home = theirs("llama")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **more: Any) -> Any:
        groups = module.num_key_value_groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * scaling + (0 if mask is None else mask)
        weights = torch.softmax(scores.bfloat16(), dim=-1).to(value.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    assert right is not wrong
    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-norm-without-float", "sums-stay-in-fp32", on=of("mistral"))
def norm_without_float() -> Iterator[None]:
    """The norm computes in the dtype that it is given: right in fp32, and in 8 bits in a model in bf16."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    with _norm("mistral", forward):
        yield


# ---- first weights, frozen ones ----


@fault("hf-a-matrix-drawn-50-times", "first-matrices-are-of-a-size", on=of("llama"))
def a_matrix_drawn_50_times() -> Iterator[None]:
    """One layer's output matrix is drawn with std 1, where 0.02 was meant: the next norm hides it."""
    model = theirs("llama").LlamaForCausalLM
    right = model.post_init

    def post_init(self: Any) -> None:
        right(self)
        with torch.no_grad():
            self.model.layers[1].self_attn.o_proj.weight.mul_(50)

    with swapped(model, post_init=post_init):
        yield


@fault("hf-a-matrix-left-at-zero", "first-matrices-are-of-a-size", on=of("mistral"))
def a_matrix_left_at_zero() -> Iterator[None]:
    """One layer's keys are left at zero by an initialisation that goes by names."""
    model = theirs("mistral").MistralForCausalLM
    right = model.post_init

    def post_init(self: Any) -> None:
        right(self)
        nn.init.zeros_(self.model.layers[2].self_attn.k_proj.weight)

    with swapped(model, post_init=post_init):
        yield


@fault("hf-frozen-by-its-own-code", "every-parameter-gets-gradient", on=of("qwen3"))
def frozen_by_its_own_code() -> Iterator[None]:
    """The class freezes a layer's feed-forward, a line left from an experiment: it keeps its first weights for good."""
    model = theirs("qwen3").Qwen3ForCausalLM
    right = model.post_init

    def post_init(self: Any) -> None:
        right(self)
        self.model.layers[0].mlp.requires_grad_(False)

    with swapped(model, post_init=post_init):
        yield


# ---- scores, experts ----


@fault("hf-mask-is-minus-10000", "mask-holds-against-any-score", on=of("llama"))
def mask_is_minus_10000() -> Iterator[None]:
    """The mask adds -1e4, which scores of that size undercut."""
    home = theirs("llama")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *given: Any, **more: Any) -> Any:
        return right(module, query, key, value, mask if mask is None else mask.clamp(min=-1e4), *given, **more)

    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-padding-mask-is-minus-10000", "mask-holds-against-any-score", on=of("gpt2"))
def padding_mask_is_minus_10000() -> Iterator[None]:
    """Padding alone is masked by -1e4; the causal mask is the lowest number."""
    home = theirs("gpt2")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *given: Any, **more: Any) -> Any:
        if mask is not None and mask.shape[2] > 1:
            later = torch.ones(mask.shape[2:], dtype=torch.bool).triu(1)
            mask = torch.where(later, mask, mask.clamp(min=-1e4))
        return right(module, query, key, value, mask, *given, **more)

    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-router-of-one-expert", "every-parameter-gets-gradient", on=of("mixtral", num_experts_per_tok=1))
def router_of_one_expert() -> Iterator[None]:
    """One expert a token, its weight divided by itself: it is always 1, and the loss teaches the router nothing."""
    yield


@fault("hf-experts-overflow", "rows-do-not-mix", on=of("mixtral"))
def experts_overflow() -> Iterator[None]:
    """Each expert takes half of a batch's tokens at most; which of a row's are dropped depends on the other rows."""
    experts = theirs("mixtral").MixtralExperts
    right = experts.forward

    def forward(self: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        room = max(30, int(0.75 * len(index)))
        before = F.one_hot(index, self.num_experts).flatten(0, 1).cumsum(0)
        taken = before.gather(1, index.reshape(-1, 1)).view_as(index) <= room
        return right(self, x, index, weights * taken)

    with swapped(experts, forward=forward):
        yield
