"""A design written down: as a recipe with every dimension explicit, as Markdown, and as plain data."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

from groundup.plan.design import Design
from groundup.plan.growth import FACTORS, Grown, breaks_first, devices, grow, hyperparameters, memory_class, states
from groundup.plan.reasons import Reason, cache_bytes, reasons
from groundup.recipe.load import dump_recipe, parse_recipe
from groundup.recipe.schema import Recipe

# Which key of the recipe stands for a component: its reason becomes the comment there.
KEYS = {
    "vocabulary": "tokenizer.vocab_size",
    "context": "model.context",
    "position": "model.rope_base",
    "norm": "model.norm",
    "depth and width": "model.d_model",
    "heads": "model.n_heads",
    "attention": "model.n_kv_heads",
    "qk_norm": "model.qk_norm",
    "feed-forward": "model.mlp",
    "experts": "model.moe",
    "d_ff": "model.d_ff",
    "output head": "model.tied",
}
PARTS = ("embedding", "attention", "mlp", "norm", "head")


def short(n: float) -> str:
    """1_012_345_678 -> '1.01B'."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def to_recipe(d: Design) -> Recipe:
    """The recipe of a design. Its corpus is a stand-in: what to train on is not the architecture's to say."""
    model = {key: value for key, value in d.config.to_dict().items() if key != "vocab_size"}
    batch = hyperparameters(d).batch_size
    tree = {
        "name": f"design-{short(d.parameters['total']).lower()}",
        "description": f"{d.parameters['total']:,} parameters, designed for {d.target:,}.",
        "model": model,
        "tokenizer": {"kind": "bpe", "vocab_size": d.config.vocab_size},
        "data": {"sources": [{"builtin": "python"}]},
        "pretrain": {"batch_size": batch, "steps": max(1, round(d.tokens / (batch * d.config.context)))},
    }
    return parse_recipe(tree, "design")


def recipe_text(d: Design, command: str) -> str:
    """YAML with the reasons beside the values."""
    head = (
        f"# {command}\n"
        f"# {d.parameters['total']:,} parameters; {short(d.tokens)} tokens, {d.flops:.3g} FLOPs. Count it again:"
        f"   groundup plan FILE\n"
        "# The corpus is a stand-in: put your own text into data.sources.\n"
    )
    notes = {KEYS[r.component]: re.split(r"; |\. ", r.reason)[0] for r in reasons(d) if r.component in KEYS}
    notes["pretrain.steps"] = f"{d.tokens:,} tokens"
    notes["pretrain.batch_size"] = hyperparameters(d).source.split(":")[0]
    return head + dump_recipe(to_recipe(d), notes)


def to_json(d: Design) -> dict[str, Any]:
    """Everything that the Markdown says, as plain data."""
    hyper = hyperparameters(d)
    return {
        "target": d.target,
        "parameters": d.parameters,
        "off": d.parameters["total"] / d.target - 1,
        "config": d.config.to_dict(),
        "changes": list(d.changes),
        "reasons": [asdict(reason) for reason in reasons(d)],
        "compute": {
            "tokens": d.tokens,
            "tokens_per_parameter": d.tokens / d.parameters["active"],
            "flops": d.flops,
            "flops_per_token": d.flops / d.tokens,
            "batch_tokens": hyper.batch_tokens,
            "batch_size": hyper.batch_size,
            "learning_rate": hyper.learning_rate,
            "rule": hyper.rule,
            "source": hyper.source,
            "notes": list(hyper.notes),
        },
        "memory": _memory(d),
        "scaling": [
            {
                "factor": g.factor,
                "parameters": g.design.parameters,
                "config": g.design.config.to_dict(),
                "tokens": g.design.tokens,
                "flops": g.design.flops,
                "memory": _memory(g.design),
                "changes": list(g.changes),
            }
            for g in grow(d)
        ],
        "breaks_first": [{"factor": factor, "limit": text} for factor, text in breaks_first(d)],
    }


def _memory(d: Design) -> dict[str, Any]:
    return {
        "states_bytes": states(d),
        "devices_of_80_gb": devices(states(d)),
        "class": memory_class(devices(states(d))),
        "cache_bytes_per_token": cache_bytes(d.config),
    }


def scaling_rows(d: Design, grown: list[Grown]) -> list[list[str]]:
    """Rows of the scaling table: a name, then the value at each size; the first row is the head."""
    sizes = [d, *(g.design for g in grown)]
    rows = [["", "this", *(f"{g.factor} x" for g in grown)]]
    cells = {
        "parameters": lambda s: f"{s.parameters['total']:,}",
        "used by a token": lambda s: f"{s.parameters['active']:,}",
        "layers x width": lambda s: f"{s.config.n_layers} x {s.config.d_model:,}",
        "heads (kv) x width": lambda s: f"{s.config.n_heads} ({s.config.n_kv_heads}) x {s.config.head_dim}",
        "d_ff": lambda s: f"{s.config.d_ff:,}",
        "experts": lambda s: f"{s.config.moe.top_k} of {s.config.moe.n_experts} x {s.config.moe.d_expert:,}",
        "vocabulary": lambda s: f"{s.config.vocab_size:,} ({'tied' if s.config.tied else 'untied'})",
        "context": lambda s: f"{s.config.context:,}",
        "tokens": lambda s: short(s.tokens),
        "FLOPs": lambda s: f"{s.flops:.3g}",
        "cache, KiB a token": lambda s: f"{cache_bytes(s.config) / 1024:,.1f}",
        "training states, GB": lambda s: f"{states(s) / 1e9:,.3g}",
        "80 GB devices, at least": lambda s: f"{devices(states(s)):,}",
    }
    without = {"d_ff"} if d.config.moe else {"experts", "used by a token"}
    return rows + [[name, *(cell(s) for s in sizes)] for name, cell in cells.items() if name not in without]


def limit_lines(d: Design) -> list[str]:
    """What breaks first, in the order it is met."""
    met = breaks_first(d)
    lines = [f"{'already' if f == 1 else f'from {short(f)} x'}: {text}" for f, text in met]
    return lines if met[0][0] <= max(FACTORS) else [f"nothing within {max(FACTORS)} x", *lines]


def markdown(d: Design, command: str) -> str:
    """The architecture specification, for people."""
    counted, hyper, grown = d.parameters, hyperparameters(d), grow(d)
    total = counted["total"]
    out = [f"# {short(total)} parameters: the architecture", "", f"    {command}", ""]
    out += [f"{total:,} parameters, {total / d.target - 1:+.2%} of the {d.target:,} aimed at."]
    if d.changes:
        out += ["", "## What was changed", "", *(f"- {change}" for change in d.changes)]
    fields = {key: value for key, value in d.config.to_dict().items() if value is not None}
    out += ["", "## Configuration", "", "```yaml", *(f"{k}: {json.dumps(v)}" for k, v in fields.items()), "```"]
    out += ["", "## Why each component", ""]
    out += _table(["component", "choice", "why", "source"], [_cells(r) for r in reasons(d)])
    out += ["", "## Parameters", ""]
    rows = [[name, f"{counted[name]:,}", f"{counted[name] / total:.1%}"] for name in PARTS]
    rows += [["total", f"{total:,}", "100.0%"], ["used by a token", f"{counted['active']:,}", _share(d)]]
    out += _table(["part", "parameters", "share"], rows)
    out += ["", "## Compute", "", *(f"- {line}" for line in compute_lines(d)), f"- {hyper.source}"]
    out += [f"- note: {note}" for note in hyper.notes]
    head, *rest = scaling_rows(d, grown)
    out += ["", "## Scaling notes", "", *_table(head, rest)]
    for g in grown:
        out += ["", f"At {g.factor} times the size:", "", *(f"- {change}" for change in g.changes)]
    out += ["", "What breaks first as it grows, tokens in proportion:", "", *(f"- {x}" for x in limit_lines(d))]
    return "\n".join(out) + "\n"


def compute_lines(d: Design) -> list[str]:
    """Tokens, FLOPs, batch and rate in words."""
    hyper, ratio = hyperparameters(d), d.tokens / d.parameters["active"]
    if d.ask.tokens:
        why = "given"
    elif d.ask.budget:
        why = f"what the budget of {d.ask.budget:.3g} FLOPs buys"
    else:
        why = "compute-optimal, arXiv 2203.15556 refitted in 2404.10102"
    return [
        f"{d.tokens:,} tokens ({why}), {ratio:.3g} a parameter that a token uses",
        f"{d.flops:.4g} FLOPs to train, {d.flops / d.tokens:.4g} a token",
        f"batch {hyper.batch_size:,} x {d.config.context:,} = {hyper.batch_tokens:,} tokens, "
        f"learning rate {hyper.learning_rate:.2g} (AdamW)",
        f"{states(d) / 1e9:,.3g} GB of weights, gradients and optimizer state: {memory_class(devices(states(d)))}",
    ]


def _share(d: Design) -> str:
    return f"{d.parameters['active'] / d.parameters['total']:.1%}"


def _cells(r: Reason) -> list[str]:
    return [r.component, r.value, r.reason, r.source]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
