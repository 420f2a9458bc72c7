"""Faults of other people's models: bugs patched into transformers' own code."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from groundup.errors import missing_extra
from groundup.verify.adapter import Adapter
from groundup.verify.fault import fault, swapped

# Tiny models of transformers: 3 layers, grouped heads, a window that 24 tokens pass three times.
_LLAMA: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_HEADS = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_GEMMA = {**_LLAMA, **_HEADS, "sliding_window": 8, "query_pre_attn_scalar": 11}
_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
_GPT2: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 48,
    "bos_token_id": None,
    "eos_token_id": None,
}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**_LLAMA, **_HEADS, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**_LLAMA, **_HEADS, "sliding_window": 8}),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, **_HEADS}),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "mixtral": ("MixtralForCausalLM", {**_LLAMA, **_HEADS, "num_local_experts": 5, "sliding_window": None}),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA),
    "gemma3": ("Gemma3ForCausalLM", {**_GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 3}),
}
TINY["gemma3"][1].update(
    layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters=_BASES,
)


def tiny(family: str, attention: str = "eager", seed: int = 0, **changes: Any) -> Any:
    """A small random model of transformers. Errors: UserError without transformers."""
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("hf", "transformers") from error
    name, values = TINY[family]
    cls = getattr(transformers, name)
    config = cls.config_class(**{**values, **changes}, attn_implementation=attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config)


def of(family: str, spoil: Callable[[Adapter], Any] | None = None, **given: Any) -> Callable[[], Adapter]:
    """A factory of a tiny model's adapter, for `@fault(on=...)`. spoil: what is done to it before it is looked at."""

    def build() -> Adapter:
        from groundup.verify.hf import of_transformers

        adapter = of_transformers(tiny(family, **given))
        if spoil is not None:
            spoil(adapter)
        return adapter

    return build


def theirs(name: str) -> Any:
    """A module of transformers, or a family's file. Errors: UserError without transformers."""
    try:
        return importlib.import_module(
            f"transformers.{name}" if "." in name or "_" in name else f"transformers.models.{name}.modeling_{name}"
        )
    except ImportError as error:
        raise missing_extra("hf", "transformers") from error


# ---- masks ----


@fault("hf-causal-mask-off-by-one", "causality", "forward-is-its-definition", on=of("llama"))
def causal_mask_off_by_one() -> Iterator[None]:
    """The causal mask lets each token see the next one."""
    with swapped(theirs("masking_utils"), causal_mask_function=lambda b, h, q, k: k <= q + 1):
        yield


def _given_in_layer(attention: Any, layer: int, **wrong: Callable[[Any], Any]) -> Callable[..., Any]:
    """An attention's forward that in one layer is handed something else."""
    right = attention.forward

    def forward(self: Any, *given: Any, **more: Any) -> Any:
        if self.layer_idx == layer:
            more = {**more, **{name: change(more.get(name)) for name, change in wrong.items()}}
        return right(self, *given, **more)

    return forward


@fault("hf-mask-missing-in-one-layer", "causality", on=of("llama"))
def mask_missing_in_one_layer() -> Iterator[None]:
    """The last layer is not handed the mask."""
    attention = theirs("llama").LlamaAttention
    with swapped(attention, forward=_given_in_layer(attention, 2, attention_mask=lambda _: None)):
        yield


def _not_causal(adapter: Adapter) -> None:
    setattr(adapter.module.get_submodule("model.layers.1.self_attn"), "is_causal", False)  # noqa: B010


@fault("hf-sdpa-not-causal-in-one-layer", "causality", on=of("qwen3", _not_causal, attention="sdpa"))
def sdpa_not_causal_in_one_layer() -> Iterator[None]:
    """One layer's is_causal is False, and the fused kernel is handed no mask."""
    yield


@fault("hf-mask-of-the-first-row", "padding-changes-nothing", "cached-decode-equals-forward", on=of("llama"))
def mask_of_the_first_row() -> Iterator[None]:
    """One layer uses the first row's mask for the whole batch."""
    attention = theirs("llama").LlamaAttention
    with swapped(attention, forward=_given_in_layer(attention, 1, attention_mask=lambda mask: mask[:1])):
        yield


@fault("hf-padding-mask-ignored", "padding-changes-nothing", on=of("mistral"))
def padding_mask_ignored() -> Iterator[None]:
    """The mask is causal and knows no padding."""
    with swapped(theirs("masking_utils"), prepare_padding_mask=lambda *_, **__: None):
        yield


@fault("hf-padding-mask-ignored-while-decoding", "causality-with-cache", "cached-decode-equals-forward", on=of("llama"))
def padding_mask_ignored_while_decoding() -> Iterator[None]:
    """Once there is a cache, the padding mask is dropped: short rows read their filler."""
    model = theirs("llama").LlamaModel
    right = model.forward

    def forward(self: Any, *given: Any, past_key_values: Any = None, attention_mask: Any = None, **more: Any) -> Any:
        mask = None if past_key_values is not None else attention_mask
        return right(self, *given, past_key_values=past_key_values, attention_mask=mask, **more)

    with swapped(model, forward=forward):
        yield


@fault("hf-every-other-token", "past-is-used", "forward-is-its-definition", on=of("qwen3"))
def every_other_token() -> Iterator[None]:
    """Each token reads every other one alone: a stride that was meant for some heads."""
    with swapped(theirs("masking_utils"), causal_mask_function=lambda b, h, q, k: (k <= q) & ((q - k) % 2 == 0)):
        yield


@fault("hf-window-one-wider", "forward-is-its-definition", on=of("mistral"))
def window_one_wider() -> Iterator[None]:
    """The window holds one token more than the config says, in training and in decoding alike."""
    masks = theirs("masking_utils")
    right = masks.sliding_window_overlay
    with swapped(masks, sliding_window_overlay=lambda window: right(window + 1)):
        yield


@fault("hf-window-one-off-while-decoding", "cached-decode-equals-forward", on=of("mistral"))
def window_one_off_while_decoding() -> Iterator[None]:
    """While decoding, the oldest key of a full window is let fall: only past the window."""
    home = theirs("mistral")
    right = home.eager_attention_forward

    def wrong(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
        if query.shape[2] == 1 and key.shape[2] >= 8:
            mask = mask.clone()
            mask[..., 0] = torch.finfo(mask.dtype).min
        return right(module, query, key, value, mask, **given)

    with swapped(home, eager_attention_forward=wrong):
        yield


@fault("hf-windows-in-every-layer", "forward-is-its-definition", on=of("gemma3"))
def windows_in_every_layer() -> Iterator[None]:
    """The global layers are handed the window's mask."""
    home = theirs("gemma3")
    with swapped(home, create_causal_mask=home.create_sliding_window_causal_mask):
        yield


@fault("hf-window-reads-its-padding", "cached-decode-equals-forward", on=of("gemma2"))
def window_reads_its_padding() -> Iterator[None]:
    """While decoding, one windowed layer trusts the cache to hold its window alone: short rows read their filler."""
    home = theirs("gemma2")
    attention = home.Gemma2Attention

    def without(mask: Any) -> Any:
        return torch.zeros_like(mask) if mask is not None and mask.shape[2] == 1 else mask

    with swapped(attention, forward=_given_in_layer(attention, 0, attention_mask=without)):
        yield


# ---- scores ----


def _attends(family: str, **wrong: Any) -> Any:
    """A family's eager attention, written once more with places to go wrong.

    axis: of the softmax.  order: the cap's, before or after the mask.  tiled: query heads to key heads.
    factor: of the scores, from the number of keys.  low: dtype of scores and mask.
    """
    home = theirs(family)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **given: Any
    ) -> tuple[Tensor, Tensor]:
        groups, cap = module.num_key_value_groups, given.get("softcap")
        spread = (
            (lambda x: x.repeat(1, groups, 1, 1)) if wrong.get("tiled") else (lambda x: x.repeat_interleave(groups, 1))
        )
        key, value = spread(key), spread(value)
        scores = query @ key.transpose(2, 3) * scaling * wrong.get("factor", lambda n: 1.0)(key.shape[2])
        low = wrong.get("low", scores.dtype)
        mask = torch.zeros_like(scores) if mask is None else mask
        if cap and not wrong.get("masked_first"):
            scores = cap * torch.tanh(scores / cap)
        scores = scores.to(low) + mask.to(low) + (mask.to(low) if "low" in wrong else 0)
        if cap and wrong.get("masked_first"):
            scores = cap * torch.tanh(scores / cap)
        weights = torch.softmax(scores, dim=wrong.get("axis", -1)).to(value.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    return swapped(home, eager_attention_forward=attention)


@fault("hf-softmax-over-queries", "causality", on=of("llama"))
def softmax_over_queries() -> Iterator[None]:
    """The softmax runs over the queries, not the keys."""
    with _attends("llama", axis=-2):
        yield


@fault("hf-softmax-over-rows", "rows-do-not-mix", on=of("mistral"))
def softmax_over_rows() -> Iterator[None]:
    """The softmax runs over the batch."""
    with _attends("mistral", axis=0):
        yield


@fault("hf-heads-tiled", "forward-is-its-definition", on=of("qwen3"))
def heads_tiled() -> Iterator[None]:
    """Query head h reads key head h mod 2, not h // 2."""
    with _attends("qwen3", tiled=True):
        yield


@fault("hf-cap-after-mask", "causality", on=of("gemma2", attn_logit_softcapping=5.0))
def cap_after_mask() -> Iterator[None]:
    """Scores are capped once masked: tanh(-inf) is -1, and the future leaks in with e^-cap."""
    with _attends("gemma2", masked_first=True):
        yield


@fault("hf-scores-scaled-by-row-length", "prefix-reads-alike", "forward-is-its-definition", on=of("llama"))
def scores_scaled_by_row_length() -> Iterator[None]:
    """Scores are scaled by the logarithm of the row's length, where that of the place was meant."""
    with _attends("llama", factor=lambda n: float(torch.log(torch.tensor(n + 1.0))) / 3):
        yield


@fault("hf-mask-overflows-in-bf16", "bf16-tracks-fp32", on=of("llama"))
def mask_overflows_in_bf16() -> Iterator[None]:
    """The mask's lowest number is added twice: -inf in every place of a padded row, so NaN in all of them."""
    with _attends("llama", low=torch.bfloat16):
        yield


# ---- positions ----


@fault("hf-keys-not-rotated", "forward-is-its-definition", on=of("llama"))
def keys_not_rotated() -> Iterator[None]:
    """Queries are rotated, keys are not."""
    home = theirs("llama")
    right = home.apply_rotary_pos_emb
    with swapped(home, apply_rotary_pos_emb=lambda q, k, *given, **more: (right(q, k, *given, **more)[0], k)):
        yield


@fault("hf-positions-not-offset", "cached-decode-equals-forward", on=of("qwen3"))
def positions_not_offset() -> Iterator[None]:
    """While decoding, every new token is rotated as if it stood at the beginning."""
    rotary = theirs("qwen3").Qwen3RotaryEmbedding
    right = rotary.forward

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> Any:
        return right(self, x, position_ids * 0 if position_ids.shape[1] == 1 else position_ids)

    with swapped(rotary, forward=forward):
        yield


@fault("hf-padding-shifts-positions", "padding-changes-nothing", "cached-decode-equals-forward", on=of("gpt2"))
def padding_shifts_positions() -> Iterator[None]:
    """position_ids are not handed on: a left-padded row begins at the place of its first filler."""
    model = theirs("gpt2").GPT2Model
    right = model.forward

    def forward(self: Any, *given: Any, position_ids: Any = None, **more: Any) -> Any:
        return right(self, *given, **more)

    with swapped(model, forward=forward):
        yield


def _no_positions(adapter: Adapter) -> None:
    adapter.module.get_submodule("transformer.wpe").register_forward_hook(lambda module, given, out: out * 0)


@fault(
    "hf-position-vectors-lost",
    "positions-matter",
    "forward-is-its-definition",
    on=of("gpt2", _no_positions, n_layer=1),
)
def position_vectors_lost() -> Iterator[None]:
    """The position vectors are looked up and not added: in a model of one layer, a bag of words."""
    yield


@fault("hf-rope-in-bf16", "forward-is-its-definition", on=of("llama"))
def rope_in_bf16() -> Iterator[None]:
    """Angles are computed in bf16, where places above 256 are no longer told apart."""
    rotary = theirs("llama").LlamaRotaryEmbedding

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> Any:
        angles = position_ids[..., None].bfloat16() * self.inv_freq.bfloat16()
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)

    with swapped(rotary, forward=forward):
        yield


@fault("hf-local-base-in-every-layer", "forward-is-its-definition", on=of("gemma3"))
def local_base_in_every_layer() -> Iterator[None]:
    """The global layers turn by the local layers' angles."""
    rotary = theirs("gemma3").Gemma3RotaryEmbedding
    right = rotary.forward

    def forward(self: Any, x: Tensor, position_ids: Tensor, layer_type: Any = None) -> Any:
        return right(self, x, position_ids, "sliding_attention")

    with swapped(rotary, forward=forward):
        yield


# ---- caches ----


def _updates(wrong: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> Any:
    """transformers' cache, handed other keys and values."""
    cache = theirs("cache_utils").Cache
    right = cache.update

    def update(self: Any, keys: Tensor, values: Tensor, layer: int, *given: Any, **more: Any) -> Any:
        return right(self, *wrong(keys, values, layer), layer, *given, **more)

    return swapped(cache, update=update)


@fault("hf-values-not-appended-in-one-layer", "cached-decode-equals-forward", on=of("llama"))
def values_not_appended() -> Iterator[None]:
    """In one layer the new token's value does not reach the cache: zeros stand there."""
    with _updates(lambda k, v, layer: (k, v * 0 if layer == 1 and v.shape[2] == 1 else v)):
        yield


@fault("hf-cache-rows-in-another-order", "cached-decode-equals-forward", on=of("mixtral"))
def cache_rows_in_another_order() -> Iterator[None]:
    """The new keys are appended to the rows in another order, as after a beam search that reorders one layer."""
    with _updates(lambda k, v, layer: (k.flip(0) if layer == 2 and k.shape[2] == 1 else k, v)):
        yield


def _one_cache(adapter: Adapter) -> None:
    """A decoder whose cache belongs to the model: a server that forgets to empty it."""
    from groundup.verify.adapter import Step
    from groundup.verify.hf import _decoder

    kept: list[Tensor] = []

    def decoder(tokens: Tensor, real: Tensor) -> tuple[Tensor, Step]:
        stale = kept[:1] or [tokens]
        kept.insert(0, tokens)
        if stale[0].shape == tokens.shape:
            tokens = torch.where(real, tokens, stale[0])
            real = real.clone()
            real[:, 0] = True  # the slot before the row's first is believed to be the row's
        return _decoder(adapter.module, tokens, real)

    adapter.decoder = decoder


@fault("hf-cache-of-an-earlier-request", "causality-with-cache", on=of("llama", _one_cache))
def cache_of_an_earlier_request() -> Iterator[None]:
    """The cache is not emptied between requests, and a short row reads a slot of the one before."""
    yield


# ---- packing ----


def _with_cache(adapter: Adapter) -> None:
    from groundup.verify.ours import places

    adapter.documents = lambda tokens, documents: adapter.module(tokens, position_ids=places(documents)).logits


@fault("hf-packed-with-a-cache", "documents-isolated", "packed-equals-alone", on=of("llama", _with_cache))
def packed_with_a_cache() -> Iterator[None]:
    """Packed by position_ids, and use_cache left at its default: transformers then builds no mask of documents."""
    yield


def _places_run_on(adapter: Adapter) -> None:
    def documents(tokens: Tensor, documents: Tensor) -> Tensor:
        causal = torch.ones(2 * tokens.shape[1:], dtype=torch.bool).tril()
        mask = causal & (documents[:, :, None] == documents[:, None, :])
        added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return adapter.module(tokens, attention_mask=added[:, None], use_cache=False).logits

    adapter.documents = documents


@fault("hf-packed-places-run-on", "packed-equals-alone", on=of("gpt2", _places_run_on))
def packed_places_run_on() -> Iterator[None]:
    """Packed with a mask of documents, and positions that run on from one document to the next."""
    yield
