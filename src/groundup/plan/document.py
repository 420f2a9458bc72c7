"""The plan as one document: six parts, in Markdown and in HTML, from the same sections."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from groundup.console import duration
from groundup.plan.advice import card_skeleton, data_plan, evaluation_schedule, export_plan, training_config
from groundup.plan.budget import Asked, compute_budget
from groundup.plan.devices import Device
from groundup.recipe.schema import Recipe
from groundup.record.files import atomic_write

NOT_KNOWN: dict[str, Any] = {
    "timing": None, "layout": None, "more_devices": [], "devices_asked": None, "does_not_fit": None,
}  # fmt: skip
PAGE = Path(__file__).parent / "document.html"


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Part:
    """A heading and what stands below it: paragraphs, lists and tables."""

    title: str
    blocks: list[str | list[str] | Table] = field(default_factory=list)


def planned(recipe: Recipe, found: dict[str, Any], device: Device, asked: Asked) -> dict[str, Any]:
    """`found` (of `budget` or `elsewhere`) with the other parts of the plan beside it. The keys are always the same."""
    compute = compute_budget(found, device, str(recipe.pretrain.precision), asked)
    if asked.mfu is not None:
        found = {**found, **_at_given_mfu(found, compute)}
    return {
        "name": recipe.name,
        **NOT_KNOWN,
        **found,
        "device": device.to_dict(),
        "compute": compute,
        "data": data_plan(recipe, found, asked.unique_tokens),
        "training": training_config(recipe, found),
        "evaluation": evaluation_schedule(recipe, found),
        "export": export_plan(recipe),
        "card": card_skeleton(recipe, found),
    }


def _at_given_mfu(found: dict[str, Any], compute: dict[str, Any]) -> dict[str, Any]:
    """Times at the MFU that was given: beside it, those of the layouts' own would be of another plan."""
    more = found.get("more_devices") or []
    steps = found["seconds"] / found["layout"]["step_seconds"] if found.get("layout") else 1.0
    rate = compute["peak_flops"] * compute["mfu"] * steps
    rows = [
        row | {"mfu": compute["mfu"], "step_seconds": compute["flops"] / (rate * row["devices"])} if row["mfu"] else row
        for row in more
    ]
    return {"seconds": compute["wall_clock_seconds"], "more_devices": rows}


def parts(plan: dict[str, Any]) -> list[Part]:
    """The document's parts, in order."""
    made = [
        Part("1. Architecture", _architecture(plan)),
        Part("2. Compute budget", _compute(plan)),
        Part("3. Data", _data(plan)),
        Part("4. Training configuration", _training(plan)),
        Part("5. Evaluation schedule", _evaluation(plan)),
        Part("6. Model card, as far as it is known", _card(plan)),
    ]
    if plan["resolved"]:
        rows = [(r["key"], _word(r["value"]), r["reason"], r["source"]) for r in plan["resolved"]]
        made.append(Part("Every auto, resolved", [Table(("key", "value", "reason", "source"), rows)]))
    return made


def write_document(plan: dict[str, Any], folder: Path) -> list[Path]:
    """Write plan.md and plan.html into `folder`; returns their paths."""
    made = {"plan.md": markdown(plan), "plan.html": page(plan)}
    for name, text in made.items():
        atomic_write(folder / name, text)
    return [folder / name for name in made]


# ---- the parts ----


def _architecture(p: dict[str, Any]) -> list[str | list[str] | Table]:
    parameters, config = p["parameters"], p["config"]
    rows = [(name, f"{n:,}", f"{n / parameters['total']:.1%}") for name, n in parameters.items()]
    shape = [(name, _word(value)) for name, value in config.items() if value is not None]
    return [
        f"**{parameters['total']:,} parameters**, of which a token uses {parameters['active']:,}.",
        Table(("part", "parameters", "share"), rows),
        Table(("field", "value"), shape),
        _export("Hugging Face", p["export"]["obstacles"]),
        _export("GGUF", p["export"]["gguf_obstacles"]),
    ]


def _export(to: str, obstacles: list[str]) -> str | list[str]:
    return [f"Does not export to {to} as it is. In the way:", *obstacles] if obstacles else f"Exports to {to}: yes."


def _compute(p: dict[str, Any]) -> list[str | list[str] | Table]:
    c, layout = p["compute"], p.get("layout")
    rows = [
        ("FLOPs", f"{c['flops']:.4g} ({c['flops_per_token']:.4g} a token)"),
        ("device", f"{c['devices']} x {c['device']}"),
        ("peak a device", f"{c['peak_flops'] / 1e12:,.4g} TFLOP/s ({p['device']['source']})"),
        ("MFU", f"{c['mfu']:.1%} ({c['mfu_source']})" if c["mfu"] else "not known"),
        ("device-hours", _number(c["device_hours"], "C / (peak x MFU x 3600)")),
        ("wall clock", long_duration(c["wall_clock_seconds"])),
        ("cost", f"{c['cost_usd']:,.0f} USD at {c['usd_per_device_hour']} a device-hour" if c["cost_usd"] is not None
         else "not priced: say --price"),
        ("energy", (f"{c['energy_kwh']:,.4g} kWh: " if c["energy_kwh"] else "") + c["energy_assumption"]),
    ]  # fmt: skip
    blocks: list[str | list[str] | Table] = [Table(("", ""), rows), *_memory(p)]
    timing = p.get("timing")
    if timing:
        named = [
            (k.removesuffix("_seconds").replace("_", " "), f"{v:,.4g} s") for k, v in timing.items() if k != "method"
        ]
        blocks += [f"Time, from {timing['method']}:", Table(("part", "seconds"), named)]
    if layout:
        blocks += ["Layout:", layout["reasons"]]
    if p.get("does_not_fit"):
        blocks.append(f"**Does not fit.** {p['does_not_fit']}")
    if p.get("more_devices"):
        more = [_more(row, p) for row in p["more_devices"]]
        blocks += ["On more devices:", Table(("devices", "MFU", "wall clock", "limited by"), more)]
    return blocks


def _more(row: dict[str, Any], p: dict[str, Any]) -> tuple[str, ...]:
    if row["mfu"] is None:
        return str(row["devices"]), "", "", row["limit"]
    clock = long_duration(row["step_seconds"] * p["training"]["steps"])
    return str(row["devices"]), f"{row['mfu']:.1%}", clock, row["limit"]


def _memory(p: dict[str, Any]) -> list[str | list[str] | Table]:
    if not p["memory"]:
        return []
    rows = [(name, _size(value)) for name, value in p["memory"].items()]
    fits = "fits" if p["memory_fits"] else "does **not** fit"
    return [
        f"Memory a device; it {fits}. The parts are not all at their largest at once: the total is the fullest moment "
        f"({p['memory_moment']}). While decoding, the cache takes {_size(p['cache_bytes_per_token'])} a token.",
        Table(("part", "bytes"), rows),
    ]


def _data(p: dict[str, Any]) -> list[str | list[str] | Table]:
    d = p["data"]
    blocks: list[str | list[str] | Table] = [
        f"{d['tokens']:,} tokens: {d['note']}." + (f" From {', '.join(d['sources'])}." if d["sources"] else ""),
    ]
    r = d.get("repetition")
    if r:
        blocks.append(
            f"{d['unique_tokens']:,.0f} unique tokens: {r['note']}. They are worth "
            f"{r['effective_tokens']:,.0f} new tokens ({r['worth']:.0%}; the last epoch {r['last_epoch_worth']:.0%}); "
            f"repetition costs {r['loss_penalty']:.4f} nats a token ({r['source']})."
        )
    else:
        blocks.append(
            f"Unique tokens are not known (say --unique-tokens); with {d['unique_for_free_epochs']:,.0f} of them or "
            "more, repetition costs next to nothing (arXiv 2305.16264)."
        )
    rows = [
        (
            f["law"], f"{f['optimal_parameters']:.3g}", f"{f['optimal_tokens']:.3g}",
            f"{f['tokens_per_parameter']:.3g}",
            f"{f['optimal_loss']:.4f}", f"{f['loss']:.4f}", f["source"],
        )
        for f in d["compute_optimal"]
    ]  # fmt: skip
    head = ("fit", "best N", "best D", "D / N", "its loss", "this plan's", "source")
    if not rows:
        return blocks
    return [
        *blocks,
        "What the same compute would best be spent on:",
        Table(head, rows),
        d["compute_optimal_note"] + ".",
    ]


def _training(p: dict[str, Any]) -> list[str | list[str] | Table]:
    t = p["training"]
    hidden = ("batch_ramp", "batch_ramp_note", "rules", "layout")
    rows = [
        (name.replace("_", " "), _word(value)) for name, value in t.items() if name not in hidden and value is not None
    ]
    degrees = ", ".join(f"{name} {n}" for name, n in t["layout"].items())
    ramp = [(f"{row['until_tokens']:,}", str(row["batch_size"])) for row in t["batch_ramp"]]
    rules = [
        (r["rule"], f"{r['batch_tokens']:,}", f"{r['learning_rate']:.3g}", r["source"], "; ".join(r["notes"]))
        for r in t["rules"]
    ]
    return [
        Table(("", ""), [*rows, ("parallel layout", degrees)]),
        f"Batch ramp: {t['batch_ramp_note']}.",
        Table(("until token", "batch, sequences"), ramp),
        "What published rules choose at this size and number of tokens; they disagree:",
        Table(("rule", "batch, tokens", "rate", "source", "mind"), rules),
    ]


def _evaluation(p: dict[str, Any]) -> list[str | list[str] | Table]:
    e = p["evaluation"]
    rows = [
        (f"{q['share']:.0%}", f"{q['step']:,}", f"{q['tokens']:,.0f}", f"{q['expected_loss']:.3f}") for q in e["points"]
    ]
    first = f"Perplexity every {e['perplexity_every_steps']:,} steps"
    first += f" (the recipe validates every {e['recipe_validates_every_steps']:,}: {e['set']})." if e["set"] else "."
    tasks = (
        f"Benchmarks at 25, 50, 75 and 100%: {', '.join(e['benchmarks'])}."
        if e["benchmarks"]
        else e["benchmarks_note"] + "."
    )
    return [
        first + " " + tasks,
        Table(("at", "step", "tokens", "loss, expected"), rows),
        e["expected_loss_note"] + ".",
        "Passed, when:",
        list(e["criteria"]),
    ]


def _card(p: dict[str, Any]) -> list[str | list[str] | Table]:
    c = p["card"]
    rows = [(name.replace("_", " "), _word(value)) for name, value in c.items() if name != "measured_later"]
    return [Table(("", ""), rows), "Measured when it is trained:", list(c["measured_later"])]


# ---- words ----


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_word(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: float | None, how: str) -> str:
    return f"{value:,.4g} ({how})" if value is not None else "not known"


def long_duration(seconds: float | None) -> str:
    """Like `duration`, with days and years."""
    if seconds is None:
        return "not known"
    days = seconds / 86400
    if days >= 730:
        return f"{days / 365.25:,.1f} years"
    return f"{days:,.1f} days" if days >= 2 else duration(seconds)


def _size(value: float) -> str:
    """Bytes: 3.2 GB, 41 MB, 512 bytes (10^9, 10^6)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= scale:
            return f"{value / scale:,.3g} {unit}" if value < 1e12 else f"{value / scale:,.0f} {unit}"
    return f"{value:,.0f} bytes"


# ---- two languages ----


def markdown(plan: dict[str, Any]) -> str:
    out = [f"# {plan['name']}: the plan", ""]
    for part in parts(plan):
        out += [f"## {part.title}", ""]
        for block in part.blocks:
            if isinstance(block, Table):
                rows = [block.head, ("---",) * len(block.head), *block.rows]
                out += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            elif isinstance(block, list):
                out += [f"- {item}" for item in block]
            else:
                out.append(block)
            out.append("")
    return "\n".join(out)


def page(plan: dict[str, Any]) -> str:
    """One self-contained HTML page."""
    body = []
    for part in parts(plan):
        body.append(f"<section><h2>{html.escape(part.title)}</h2>")
        for block in part.blocks:
            if isinstance(block, Table):
                body.append(_table(block))
            elif isinstance(block, list):
                body.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block) + "</ul>")
            else:
                body.append(f"<p>{_inline(block)}</p>")
        body.append("</section>")
    title = html.escape(f"{plan['name']}: the plan")
    return Template(PAGE.read_text(encoding="utf-8")).substitute(title=title, body="\n".join(body))


def _table(table: Table) -> str:
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _inline(text: str) -> str:
    """Escaped, with **bold** and arXiv numbers as links."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"\b(?:arXiv )?(\d{4}\.\d{5})\b", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', text)
