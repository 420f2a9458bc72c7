"""transformers' causal language models through the adapter: everything that one of them can be asked.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from groundup.verify import assert_verified

    assert_verified((AutoModelForCausalLM.from_config(config), AutoTokenizer.from_pretrained(name)))

Nothing here knows a family by name: what a model can do is read off its `forward` and its config.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.errors import UserError, missing_extra
from groundup.verify import draw
from groundup.verify.adapter import Adapter, Step, redraw
from groundup.verify.fault import swapped

CONTEXT = 128  # longest row that is asked for: past a small model's window, and quick
PACKED = {"c_attn": 3, "qkv_proj": 3, "gate_up_proj": 2}  # parts of one matrix, along its outputs


def of_transformers(module: Any, tokenizer: Any = None) -> Adapter:
    """An Adapter of a transformers model with a language modelling head.

    A model in half precision is looked at in a copy in fp32, since rounding to 8 bits hides what the checks look for;
    one in fp64 too, since transformers' masks of fp64's lowest number are -inf to its softmax in fp32.
    Errors: UserError without transformers, or for a model that is not causal.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_extra("hf", "transformers") from error
    name = type(module).__name__
    if getattr(module.config, "is_encoder_decoder", False) or module.get_output_embeddings() is None:
        raise UserError(f"{name} is not a causal language model with a head; give what AutoModelForCausalLM gives")
    if hasattr(module.config, "vision_config") or hasattr(module.config, "audio_config"):
        raise UserError(f"{name} reads more than text; only models of text alone are looked at")
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in module.parameters()):
        module = copy.deepcopy(module).float()
    takes = set(inspect.signature(module.forward).parameters)
    return Adapter(
        module,
        logits=lambda tokens: _forward(module, tokens).logits,
        tokenizer=tokenizer,
        context=_context(module.config),
        documents=partial(_documents, module) if _packs(module) else None,
        padded=partial(_padded, module) if "attention_mask" in takes else None,
        pads="left",
        decoder=partial(_decoder, module)
        if {"past_key_values", "attention_mask"} <= takes and _caches(module)
        else None,
        loss=partial(_loss, module) if "labels" in takes else None,
        fresh=partial(_fresh, module),
        redraw=_redraw,
        pieces=pieces,
        pad=_padding(module.config),
        loss_over=partial(_loss, module) if "labels" in takes and _counts_items(module) else None,
        recompute=partial(_recompute, module) if getattr(module, "supports_gradient_checkpointing", False) else None,
    )


def _padding(config: Any) -> int | None:
    """The config's padding, if it is no other special token too: some families count positions by it."""
    pad = getattr(config, "pad_token_id", None)
    others = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")]
    named = {n for one in others for n in (one if isinstance(one, list) else [one])}
    return pad if isinstance(pad, int) and pad >= 0 and pad not in named else None


def _counts_items(module: Any) -> bool:
    """Whether Trainer counts on the model to divide by `num_items_in_batch`: by its word, or by its open arguments."""
    takes = inspect.signature(module.forward).parameters.values()
    return bool(getattr(module, "accepts_loss_kwargs", any(p.kind is p.VAR_KEYWORD for p in takes)))


def _recompute(module: Any, on: bool) -> None:
    """Activations computed anew in the backward pass, or kept. The name is another since transformers 5."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        switch = getattr(module, f"{name}_{'enable' if on else 'disable'}", None)
        if switch is not None:
            return switch()


def _context(config: Any) -> int:
    """Tokens that may stand in a row without an encoding being stretched: what is stretched by the row's length cannot
    be decoded exactly with a cache."""
    text = config.get_text_config()
    most = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    if kind == "longrope":
        most += [rope.get("original_max_position_embeddings"), getattr(text, "original_max_position_embeddings", None)]
    return min([CONTEXT, *(n for n in most if isinstance(n, int))])


def _packs(module: Any) -> bool:
    """Whether the model looks for packed rows in the positions (transformers 4.53 and later, and not every family:
    see whether it asks where they begin)."""
    masking = importlib.import_module("transformers.masking_utils") if find_spec("transformers.masking_utils") else None
    right, asked = getattr(masking, "find_packed_sequence_indices", None), []
    if right is None:
        return False

    def find(*given: Any, **more: Any) -> Any:
        asked.append(True)
        return right(*given, **more)

    with swapped(masking, find_packed_sequence_indices=find), torch.no_grad():
        _forward(module, torch.zeros(1, 4, dtype=torch.int64), position_ids=torch.tensor([[0, 1, 0, 1]]))
    return bool(asked)


def _caches(module: Any) -> bool:
    """Whether a forward pass that is asked for a cache gives one."""
    with torch.no_grad():
        given = _forward(module, torch.zeros(1, 4, dtype=torch.int64), use_cache=True)
    return getattr(given, "past_key_values", None) is not None


def _forward(module: Any, tokens: Tensor, **given: Any) -> Any:
    """One forward pass, on the module's device, without a cache unless one is asked for."""
    takes = inspect.signature(module.forward).parameters
    given = {"use_cache": False, **given}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    always = ("use_cache", "num_items_in_batch")
    given = {name: value for name, value in given.items() if name in takes or (open_ended and name in always)}
    here = module.get_input_embeddings().weight.device
    given = {name: value.to(here) if isinstance(value, Tensor) else value for name, value in given.items()}
    return module(input_ids=tokens.to(here), return_dict=True, **given)


def _positions(real: Tensor) -> Tensor:
    """(B, T): each real token's place among the real ones of its row, as transformers' `generate` counts."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


def _padded(module: Any, tokens: Tensor, real: Tensor) -> Tensor:
    return _forward(module, tokens, attention_mask=real.long(), position_ids=_positions(real)).logits


def _documents(module: Any, tokens: Tensor, documents: Tensor) -> Tensor:
    """Positions that start again at each document. With a cache transformers would not look at them, hence none."""
    from groundup.verify.ours import places

    return _forward(module, tokens, position_ids=places(documents)).logits


def _decoder(module: Any, tokens: Tensor, real: Tensor) -> tuple[Tensor, Step]:
    mask = real.long()
    found = _forward(module, tokens, attention_mask=mask, position_ids=_positions(real), use_cache=True)
    cache = found.past_key_values

    def step(new: Tensor) -> Tensor:
        nonlocal mask, cache
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        given = {"attention_mask": mask, "position_ids": _positions(mask)[:, -1:], "past_key_values": cache}
        with torch.no_grad():
            found = _forward(module, new[:, None], use_cache=True, **given)
        cache = found.past_key_values
        return found.logits[:, -1]

    return found.logits, step


def _loss(module: Any, tokens: Tensor, targets: Tensor, items: int | None = None) -> Tensor:
    """Through `labels`, which transformers shifts by one: labels[t + 1] is what follows tokens[t].

    A token more is appended, so that the last place has a label too. Router losses are left out: they are no part of
    the mean over scored places. items: what the sum is divided by, as Trainer hands it over (`num_items_in_batch`).
    """
    counted = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    rows = F.pad(tokens, (0, 1), value=0)
    labels = F.pad(targets, (1, 0), value=-100)
    return _forward(module, rows, labels=labels, output_router_logits=False, **counted).loss


def _fresh(module: Any, seed: int) -> Adapter:
    """The same class and config, initialised by transformers."""
    config = copy.deepcopy(module.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.shifted(seed))
        return of_transformers(type(module)(config).float())


@torch.no_grad()
def _redraw(module: nn.Module, seed: int) -> None:
    """As the adapter's `redraw`; stacks of experts that are stored (E, in, out) by their own fan-in, and the biases
    that choose experts, which are buffers, too."""
    redraw(module, seed)
    generator = draw.generator(seed + 2)
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if parameter.ndim == 3 and getattr(owner, "is_transposed", False):
            parameter.mul_(math.sqrt(parameter.shape[-1] / parameter.shape[-2]))
    for name, buffer in module.named_buffers():
        if name.endswith("correction_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def pieces(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A parameter as what it is made of: each expert of a stack; q, k, v of one matrix where they are as wide."""
    last = name.removesuffix(".weight").rpartition(".")[2]
    experts = list(tensor) if tensor.ndim == 3 else [tensor]
    if tensor.ndim < 2:  # a key's bias has no gradient where nothing is rotated: it is the same for all keys
        return [(name, tensor)]
    parts = [part for expert in experts for part in _split(last, expert)]
    return [(name, parts[0])] if len(parts) == 1 else [(f"{name}[{n}]", part) for n, part in enumerate(parts)]


def _split(last: str, matrix: Tensor) -> Iterator[Tensor]:
    parts, (rows, columns) = PACKED.get(last, 1), matrix.shape
    if parts == 3 and rows != 3 * columns:  # GPT-2's Conv1D is (in, out); grouped keys are narrower, and left whole
        yield from matrix.chunk(3, dim=1) if columns == 3 * rows else [matrix]
    elif rows % parts == 0:
        yield from matrix.chunk(parts)
    else:
        yield matrix


def definition(module: Any, tokens: Tensor) -> Tensor:
    """(B, T, V) in fp64: the model's weights through groundup's own formulas (verify/reference.py).

    The module is saved by transformers and imported by groundup, so that only weights and config are shared.
    Errors: UserError for an architecture, or a choice in its config, that groundup does not have.
    """
    from groundup.model.interchange.hf_import import import_hf
    from groundup.model.storage import load_model
    from groundup.verify.reference import Reference

    with tempfile.TemporaryDirectory(prefix="groundup-verify-") as folder:
        theirs, ours = Path(folder) / "theirs", Path(folder) / "ours"
        with _no_progress_bar(), _config_kept(module):
            module.save_pretrained(theirs)
        import_hf(theirs, ours)
        return Reference(load_model(ours)).logits(tokens)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """A model of a few kilobytes needs none."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _config_kept(module: Any) -> Iterator[None]:
    """save_pretrained writes into the config (its dtype becomes a word), of which fresh models are made."""
    before = dict(vars(module.config))
    try:
        yield
    finally:
        vars(module.config).clear()
        vars(module.config).update(before)
