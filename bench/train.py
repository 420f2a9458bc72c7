"""Training speed beside a transformers LlamaForCausalLM loop: same shape, batch, data, optimizer and machine, one run.

    python bench/train.py                        # 10.7M parameters, bf16: 6 layers, 384 wide, context 256, batch 16
    python bench/train.py --precision fp32 --windows 7

Windows of the contestants alternate, so that a noisy neighbour hits all alike. Quote the ratios, not the rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from groundup.model.batch import Batch
from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.model.flops import train_flops_per_token
from groundup.model.init import init_weights
from groundup.model.transformer import Transformer
from groundup.plan.host import peak_flops
from groundup.recipe.schema import PretrainSection
from groundup.train.loop import clip_gradients
from groundup.train.objective import language_modelling
from groundup.train.optim import Optimizers
from groundup.train.precision import autocast, compile_blocks

LAYERS, WIDTH, HEADS, CONTEXT, BATCH, VOCAB, FF = 6, 384, 6, 256, 16, 256, 1024


def batches(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCAB, (BATCH, CONTEXT + 1), generator=generator) for _ in range(n)]


def ours(precision: str, compiled: bool, documents: bool) -> tuple[Callable[[torch.Tensor], float], int]:
    """One step of groundup's own parts: objective, division and clip, fused AdamW."""
    config = ModelConfig(
        VOCAB, WIDTH, LAYERS, HEADS, HEADS, WIDTH // HEADS, FF, CONTEXT, qk_norm=False, tied=False, norm_eps=1e-6
    )
    model = init_weights(Transformer(config), 0)
    section = PretrainSection(steps=1, optimizer="adamw", learning_rate=1e-3)
    optimizers = Optimizers(model, section)
    if compiled:
        compile_blocks(model)
    # What the loader gives in training: which document each token belongs to, so that attention is masked. None is the
    # peer's case, one document a row under the plain causal mask.
    of_row = torch.zeros(BATCH, CONTEXT, dtype=torch.int32) if documents else None
    positions = torch.arange(CONTEXT).expand(BATCH, CONTEXT)

    def step(tokens: torch.Tensor) -> float:
        batch = Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), of_row, positions)  # type: ignore[arg-type]
        with autocast("cpu", precision):
            loss = language_modelling(model, batch)
        loss.total.backward()
        clip_gradients(list(optimizers.parameters()), loss.weight, 1.0)
        optimizers.step(1.0)
        optimizers.zero_grad()
        return loss.total.item() / loss.weight

    return step, count(config)["total"]


def transformers_llama(precision: str, compiled: bool) -> tuple[Callable[[torch.Tensor], float], int]:
    """The loop that people write around a LlamaForCausalLM: autocast, its own loss, clip, fused AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model) if compiled else model

    def step(tokens: torch.Tensor) -> float:
        with autocast("cpu", precision):
            # its loss shifts the labels itself: 255 predictions a row to our 256
            loss = run(tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps in one window")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contestants = {
        "groundup": ours(args.precision, False, True),
        "groundup, compiled": ours(args.precision, True, True),
        "groundup, one document a row": ours(args.precision, False, False),
        "  the same, compiled": ours(args.precision, True, False),
        "transformers": transformers_llama(args.precision, False),
        "transformers, compiled": transformers_llama(args.precision, True),
    }
    data = batches(args.steps)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for step, _ in contestants.values():  # warm-up and compilation
        step(data[0]), step(data[1 % len(data)])
    for _ in range(args.windows):
        for name, (step, _) in contestants.items():
            start = time.perf_counter()
            for tokens in data:
                step(tokens)
            rates[name].append(args.steps * BATCH * CONTEXT / (time.perf_counter() - start))
    peak = peak_flops("cpu", args.precision)
    config = ModelConfig(VOCAB, WIDTH, LAYERS, HEADS, HEADS, WIDTH // HEADS, FF, CONTEXT, qk_norm=False, tied=False)
    flops = train_flops_per_token(config)
    best = max(statistics.median(rates[n]) for n in contestants if n.startswith("transformers"))
    rows = [
        {
            "name": name, "parameters": contestants[name][1], "tokens_per_second": statistics.median(r),
            "low": min(r), "high": max(r), "mfu": statistics.median(r) * flops / peak,
            "ratio": statistics.median(r) / best,
        }
        for name, r in rates.items()
    ]  # fmt: skip
    if args.json:
        print(json.dumps({"precision": args.precision, "peak_flops": peak, "rows": rows}, indent=2))
        return
    print(f"{args.precision}, {args.threads} threads, peak {peak / 1e9:.0f} GFLOP/s measured, {args.windows} windows")
    print(f"{'':30}{'parameters':>12}{'tokens/s':>10}{'low':>8}{'high':>8}{'MFU':>7}{'ratio to best peer':>20}")
    for row in rows:
        print(
            f"{row['name']:30}{row['parameters']:>12,}{row['tokens_per_second']:>10,.0f}{row['low']:>8,.0f}"
            f"{row['high']:>8,.0f}{row['mfu']:>7.0%}{row['ratio']:>20.2f}"
        )


if __name__ == "__main__":
    main()
