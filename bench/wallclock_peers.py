"""The other projects in bench/wallclock.py: their model, their optimizer, their schedule over the time that is given.

Nothing of theirs is copied: models and optimizers come from their checkouts, each with the settings of its own
training script. Only the schedules are written again, as functions of the share of the budget that is spent: their
scripts count steps, and how many fit into ten minutes is not known before.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 256


@dataclass
class Peer:
    """model: its parameters; loss: of (rows, CONTEXT + 1) ids, compiled or not; logits: (rows, T) -> (rows, T, V).

    plan: sets the rates for (share of the budget that is spent, step). clip: of the gradients' norm, None for none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    plan: Callable[[float, int], None]
    clip: float | None
    autocast: bool

    def step(self, rows: Tensor, share: float, step: int) -> None:
        """One batch: rates, forward, backward, clip, update."""
        self.plan(share, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.loss(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def cosine(optimizer: torch.optim.Optimizer, peak: float, warmup: float, share: float, step: int) -> None:
    """nanoGPT's and litgpt's: linear warm-up, then a cosine down to a tenth of the peak."""
    rate = peak * share / warmup
    if share >= warmup:
        rate = peak * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup)))))
    for group in optimizer.param_groups:
        group["lr"] = rate


def nanogpt(given: dict[str, Any], vocabulary: int) -> Peer:
    """train.py, with the betas and the warm-up of its config for small models (train_shakespeare_char.py)."""
    from model import GPT, GPTConfig

    config = GPTConfig(CONTEXT, vocabulary, given["layers"], given["heads"], given["width"], dropout=0.0, bias=False)
    model = GPT(config)
    # "cuda" only chooses the fused AdamW there, which is the fastest on a CPU too
    optimizer = model.configure_optimizers(given["decay"], given["rate"], (0.9, given["beta2"]), "cuda")
    run = torch.compile(model) if given["compiled"] else model
    return Peer(
        model, optimizer,
        loss=lambda rows: run(rows[:, :-1], rows[:, 1:].contiguous())[1],
        logits=lambda rows: model(rows, rows)[0],
        plan=partial(cosine, optimizer, given["rate"], given["warmup"]),
        clip=1.0, autocast=given["bf16"],
    )  # fmt: skip


def litgpt(given: dict[str, Any], vocabulary: int) -> Peer:
    """litgpt/pretrain.py with config_hub/pretrain/tinyllama.yaml: Llama's shape, GPT-NeoX's initial weights."""
    # Its model alone: the package's __init__ and the converter ask for Lightning, and have no part in a step.
    package, converter = ModuleType("litgpt"), ModuleType("litgpt.scripts.convert_hf_checkpoint")
    package.__path__ = [str(Path(sys.path[0]) / "litgpt")]
    converter.qkv_reassemble = None  # type: ignore[attr-defined]
    sys.modules.update({"litgpt": package, "litgpt.scripts": ModuleType("scripts"), converter.__name__: converter})
    from litgpt.config import Config
    from litgpt.model import GPT

    layers, width = given["layers"], given["width"]
    config = Config(
        name="bench", block_size=CONTEXT, vocab_size=vocabulary, padded_vocab_size=vocabulary, n_layer=layers,
        n_head=given["heads"], n_embd=width, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=given["hidden"],
    )  # fmt: skip
    model = GPT(config)
    for name, parameter in model.named_parameters():  # pretrain.py, initialize_weights
        if parameter.ndim == 2:
            std = 1 / math.sqrt(width) / layers if name.endswith(".proj.weight") else math.sqrt(2 / 5 / width)
            nn.init.normal_(parameter, std=std)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=given["rate"], betas=(0.9, given["beta2"]), weight_decay=given["decay"], fused=True
    )
    run = torch.compile(model) if given["compiled"] else model
    return Peer(
        model, optimizer,
        loss=lambda rows: F.cross_entropy(run(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()),
        logits=model,
        plan=partial(cosine, optimizer, given["rate"], given["warmup"]),
        clip=1.0, autocast=given["bf16"],
    )  # fmt: skip


def nanochat(given: dict[str, Any], vocabulary: int) -> Peer:
    """scripts/base_train.py: rates by role, warm-up of 40 steps, the last 65% of the time falling to 5%.

    times: of all rates; decay: of the matrices at the start. The script's own rules give sqrt(tokens in a batch / 2^19)
    and about 4 here, far below the sizes that they were fitted to.
    """
    os.environ["NANOCHAT_DTYPE"] = "bfloat16" if given["bf16"] else "float32"
    from nanochat.gpt import GPT, GPTConfig

    heads = given["heads"]
    config = GPTConfig(CONTEXT, vocabulary, given["layers"], heads, heads, given["width"], "L")
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    times = given["times"]
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * times, embedding_lr=0.3 * times, scalar_lr=0.5 * times, matrix_lr=0.02 * times,
        weight_decay=given["decay"],
    )  # fmt: skip

    def plan(share: float, step: int) -> None:
        falling = max(0.0, (share - 0.35) / 0.65)
        rate = min(1.0, (step + 1) / 40) * (1 - falling * 0.95)
        momentum = 0.85 + 0.12 * min(1.0, step / 400) if falling == 0 else 0.97 - 0.07 * falling
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = given["decay"] * 0.5 * (1 + math.cos(math.pi * share))

    run = torch.compile(model, dynamic=False) if given["compiled"] else model
    return Peer(
        model, optimizer,
        loss=lambda rows: run(rows[:, :-1], rows[:, 1:].contiguous()),
        logits=model,
        plan=plan, clip=None, autocast=False,
    )  # fmt: skip


MAKERS = {"nanogpt": nanogpt, "litgpt": litgpt, "nanochat": nanochat}
# The best of the probes in docs/speedrun.md
SETTINGS: dict[str, dict[str, Any]] = {
    "nanogpt": {
        "layers": 4, "width": 208, "heads": 4, "rows": 16, "rate": 4e-3, "warmup": 0.02, "beta2": 0.99, "decay": 0.1,
        "bf16": True, "compiled": True,
    },
    "litgpt": {
        "layers": 3, "width": 192, "heads": 3, "hidden": 512, "rows": 16, "rate": 4e-3, "warmup": 0.02, "beta2": 0.95,
        "decay": 0.1, "bf16": True, "compiled": True,
    },
    "nanochat": {
        "layers": 4, "width": 128, "heads": 2, "rows": 16, "times": 1.0, "decay": 0.28, "bf16": True, "compiled": True,
    },
}  # fmt: skip
