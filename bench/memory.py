"""Memory of real training steps beside the plan's estimate: six shapes and more, by part.

    python bench/memory.py                 # exact: torch's own allocations, summed over a step
    python bench/memory.py --rss           # and each shape in a process of its own, by what the system says it took
    python bench/memory.py --compile       # the blocks compiled
    python bench/memory.py --recompute block
    python bench/memory.py --naive         # 100M parameters, 8 x 1024 tokens, vocabulary 50,304, beside a plain loop

The first is what the tests hold to 10%. The second adds what no tensor accounts for: the allocator's slack, oneDNN's
scratch, code that is loaded on first use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from groundup.model.batch import Batch
from groundup.model.config import LatentAttention, MixtureOfExperts, ModelConfig
from groundup.model.count import count
from groundup.model.transformer import Transformer
from groundup.plan.budget import training_memory
from groundup.plan.memory import Memory
from groundup.plan.resolve import cpu_tokens_per_forward
from groundup.recipe.schema import PretrainSection
from groundup.stages.steps import Steps
from groundup.train.allocator import kept_memory
from groundup.train.objective import Loss

WIDE = ModelConfig(
    vocab_size=2048, d_model=512, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=1408, context=256
)  # fmt: skip
DEEP = replace(WIDE, d_model=128, n_layers=12, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384, vocab_size=1024)
BIASES = ("qkv", "out", "up", "down", "norm")
SHAPES: dict[str, tuple[ModelConfig, int]] = {  # and the rows of a micro-batch
    "wide": (WIDE, 8),
    "deep": (DEEP, 8),
    "large vocabulary": (replace(DEEP, n_layers=2, vocab_size=32768), 4),
    "long context": (replace(DEEP, n_layers=3, context=2048, vocab_size=512), 2),
    "experts": (
        replace(WIDE, d_model=256, n_layers=3, n_heads=4, n_kv_heads=4, d_ff=704,
                moe=MixtureOfExperts(8, 2, 352, n_shared=1)), 8,
    ),
    "GPT-2's kind": (
        replace(WIDE, d_model=256, n_layers=6, n_heads=4, n_kv_heads=4, d_ff=1024, norm="layernorm", bias=BIASES,
                position="learned", mlp="gelu_tanh", qk_norm="none"), 8,
    ),
    "Gemma 2's kind": (
        replace(DEEP, n_layers=4, context=512, attention_softcap=50.0, logit_softcap=30.0, block="sandwich"), 4,
    ),
    "latent attention": (
        replace(DEEP, n_layers=4, context=512, n_kv_heads=4, qk_norm="none",
                latent=LatentAttention(64, 32, 16, 32)), 4,
    ),
    "more weights than tokens": (
        replace(WIDE, d_model=768, n_layers=6, n_heads=12, n_kv_heads=12, d_ff=2048, context=64), 2,
    ),
}  # fmt: skip
MIB = 2**20
HUNDRED_MILLION = ModelConfig(
    vocab_size=50304, d_model=640, n_layers=14, n_heads=10, n_kv_heads=10, head_dim=64, d_ff=1728, context=1024
)  # fmt: skip
CONTESTANTS: dict[str, dict[str, Any]] = {
    "plain loop, AdamW": {"optimizer": "adamw"},
    "groundup, AdamW": {"optimizer": "adamw"},
    "groundup's defaults, all rows at once": {"rows": 8},
    "groundup's defaults (Muon)": {},
    "its defaults, recompute: selective": {"recompute": "selective"},
    "its defaults, recompute: block": {"recompute": "block"},
}


def section(
    precision: str, optimizer: str, rows: int, micro_batches: int, compiled: bool, recompute: str = "none"
) -> PretrainSection:
    return PretrainSection(
        steps=10, batch_size=rows * micro_batches, micro_batch_size=rows, optimizer=optimizer, learning_rate=1e-3,
        muon_learning_rate=0.01, precision=precision, compile=compiled, recompute=recompute,
    )  # fmt: skip


def whole(model: Transformer, batch: Batch) -> Loss:
    """The loss of a plain loop: logits of the whole batch in fp32, then cross-entropy."""
    logits = model.logits(model(batch.tokens, documents=batch.documents, positions=batch.positions))
    return Loss(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"), batch.targets.numel())


def contestant(name: str) -> None:
    """Peak bytes of a fresh process over a step of 8 x 1024 tokens: by the system's count, and torch's tensors.

    The plain loop takes all 8 rows in one forward pass; groundup's micro-batch is what `auto` is there.
    """
    auto = cpu_tokens_per_forward(HUNDRED_MILLION.d_model) // HUNDRED_MILLION.context
    given = {"optimizer": "muon", "recompute": "none", "rows": 8 if "plain" in name else auto, **CONTESTANTS[name]}
    asked = section("bf16", **given, micro_batches=8 // given["rows"], compiled=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    steps = Steps(HUNDRED_MILLION, asked)
    if "plain" in name:
        steps.job.objective = whole
    # The optimizer's state is there before the step that is measured; making it by a step would take a minute more
    for p in steps.model.parameters():
        p.grad = torch.zeros_like(p)
    steps.optimizers.step(0.0)
    steps.optimizers.zero_grad()
    with nullcontext() if "plain" in name else kept_memory("cpu"):  # which the loop of every stage has
        steps()
        resident = status("VmHWM") - before
        tensors = steps.measured_peak()  # its profiler takes memory of its own
    predicted = training_memory(HUNDRED_MILLION, asked).total
    print(json.dumps({"name": name, "resident": resident, "tensors": tensors, "predicted": predicted}))


def naive() -> None:
    base: dict[str, Any] = {}
    print(f"{'MiB':40}{'resident':>10}{'':8}{'tensors':>10}{'':8}{'predicted':>10}")
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--contestant", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        found = json.loads(done.stdout.splitlines()[-1])
        base = base or found
        shares = (f"{found[key] / MIB:>10,.0f}{found[key] / base[key]:>7.2f}x" for key in ("resident", "tensors"))
        planned = "" if found is base else f"{found['predicted'] / MIB:>10,.0f}"
        print(f"{name:40}{''.join(shares)}{planned}", flush=True)


def resident(name: str, asked: dict[str, Any]) -> int:
    """Bytes that a fresh process's high-water mark rose by, over two steps of the shape."""
    command = [sys.executable, __file__, "--one", json.dumps({"name": name, **asked})]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return int(done.stdout.splitlines()[-1])


def one(asked: dict[str, Any]) -> None:
    config, rows = SHAPES[asked.pop("name")]
    # The libraries load on first use: a step of a tiny model first
    Steps(
        replace(WIDE, d_model=64, n_heads=1, n_kv_heads=1, n_layers=1, d_ff=64, context=16), section(rows=1, **asked)
    )()
    # Not ru_maxrss: a process starts with that of the one that started it
    Path("/proc/self/clear_refs").write_text("5")  # forgets the high-water mark
    before = status("VmRSS")
    steps = Steps(config, section(rows=rows, **asked))
    for _ in range(2):
        steps()
    print(status("VmHWM") - before)


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rss", action="store_true", help="by the system's count too")
    parser.add_argument("--recompute", choices=["none", "block", "selective"], default="none")
    parser.add_argument("--naive", action="store_true", help="100M parameters beside a plain loop")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.naive or args.contestant:
        return contestant(args.contestant) if args.contestant else naive()
    if args.one:
        return one(json.loads(args.one))
    rows = []
    for name, (config, micro) in SHAPES.items():
        for precision in ("fp32", "bf16"):
            asked = {
                "precision": precision, "optimizer": args.optimizer, "micro_batches": args.micro_batches,
                "compiled": args.compile, "recompute": args.recompute,
            }  # fmt: skip
            given = section(rows=micro, **asked)
            found: Memory = training_memory(config, given)
            measured = Steps(config, given).peak_bytes()
            row = {
                "shape": name, "precision": precision, "parameters": count(config)["total"], "measured": measured,
                **found.to_dict(), "error": found.total / measured - 1,
            }  # fmt: skip
            if args.rss:
                row["resident"] = resident(name, asked)
            rows.append(row)
            if not args.json:
                show(row, first=len(rows) == 1)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"largest error {max(abs(row['error']) for row in rows):.1%}")
    return None


def show(row: dict[str, Any], first: bool) -> None:
    parts = ("weights", "gradients", "optimizer", "copies", "activations", "logits", "temporary")
    if first:
        head = f"{'MiB':26}{'parameters':>12}{'predicted':>11}{'measured':>10}{'error':>8}"
        print(head + ("  resident" if "resident" in row else "") + "".join(f"{p:>13}" for p in parts) + "  fullest at")
    line = f"{row['shape'] + ', ' + row['precision']:26}{row['parameters']:>12,}"
    line += f"{row['total'] / MIB:>11.1f}{row['measured'] / MIB:>10.1f}{row['error']:>8.1%}"
    line += f"{row['resident'] / MIB:>10.1f}" if "resident" in row else ""
    print(line + "".join(f"{row[p] / MIB:>13.1f}" for p in parts) + f"  {row['moment']}", flush=True)


if __name__ == "__main__":
    main()
