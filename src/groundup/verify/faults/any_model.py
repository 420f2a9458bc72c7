"""Faults of other people's models: bugs patched into transformers' own code."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
