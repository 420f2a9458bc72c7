"""A ladder in pictures and words: loss against compute with the fitted law, IsoFLOP parabolas, a Markdown summary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.console import duration
from groundup.plan.isoflop import Parabola
from groundup.plan.ladder import short
from groundup.record.files import atomic_write
from groundup.report.svg import COLOURS, Canvas

SUMMARY, LOSS_PLOT, ISOFLOP_PLOT = "ladder.md", "loss.svg", "isoflop.svg"
# A file of its own has no page to take colours from: these are the page's light ones (style.css), on white.
INK = {
    "ink": "#1f2321", "quiet": "#666b67", "grid": "#e5e2da", "base": "#66758f", "sft": "#0072b2", "dpo": "#d55e00",
    "grpo": "#009e73", "bad": "#a5352b", "other": "#cc5a99", "plain": "#c6c3b9",
}  # fmt: skip

Law = Callable[[float, float, float], float]  # (parameters, tokens, flops) -> loss


def write(found: dict[str, Any], law: Law, folder: Path) -> list[Path]:
    """Summary and plots of what `Ladder.run` found, beside ladder.json; `law` is the fit to all rungs."""
    pictures = {LOSS_PLOT: loss_plot(found, law)}
    if found["isoflop"]:
        pictures[ISOFLOP_PLOT] = isoflop_plot(found)
    for name, svg in pictures.items():
        atomic_write(folder / name, svg)
    atomic_write(folder / SUMMARY, markdown(found, list(pictures)))
    return [folder / name for name in (SUMMARY, *pictures)]


# ---- pictures ----


def loss_plot(found: dict[str, Any], law: Law) -> str:
    """Loss against training FLOPs: rungs, the law along each row of rungs, the held-out rung and its prediction."""
    canvas = Canvas("ladder", height=300, width=520)
    with canvas as (_, axes):
        for row in _rows(found):
            compute, loss = curve(row, law, found)
            axes.plot(compute, loss, color=COLOURS["base"], linewidth=1.4, alpha=0.75)
        for rung in found["rungs"]:
            held = rung["held_out"]
            colour = COLOURS["other" if held else "base"]
            axes.plot(rung["flops"], rung["loss"], "o", color=colour, markersize=6, zorder=3,
                      markerfacecolor="none" if held else colour)  # fmt: skip
            axes.annotate(rung["name"], (rung["flops"], rung["loss"]), xytext=(5, 5), textcoords="offset points",
                          fontsize=8, color=COLOURS["quiet"])  # fmt: skip
            if held:
                _with_interval(axes, rung["flops"], rung["predicted"], COLOURS["other"], "x")
        for larger in found["predictions"]:
            _with_interval(axes, larger["flops"], larger, COLOURS["dpo"], "D")
        _log_axis(axes, lambda v: f"{v:.0e}".replace("e+", "e"), (1.0,))
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("validation loss, nats a token")
    return standalone(canvas.raw)


def _log_axis(axes: Any, as_text: Callable[[float], str], marks: tuple[float, ...]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: as_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _with_interval(axes: Any, flops: float, said: dict[str, Any], colour: str, marker: str) -> None:
    axes.plot(flops, said["loss"], marker, color=colour, markersize=6, zorder=4)
    if said["low"] is not None:
        axes.plot([flops, flops], [said["low"], said["high"]], color=colour, linewidth=1.3, marker="_", markersize=7)


def _rows(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Runs that lie on one curve: the same tokens a parameter. The law in compute alone is one curve through all."""
    everything = [*found["rungs"], *found["predictions"]]
    if found["fit"]["form"] == "L(C)":
        return [everything]
    rows: dict[float, list[dict[str, Any]]] = {}
    for run in everything:
        rows.setdefault(float(f"{run['tokens'] / run['parameters']:.1g}"), []).append(run)
    return [row for row in rows.values() if len(row) > 1]


def curve(row: Sequence[dict[str, Any]], law: Law, found: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(FLOPs, losses) of the law along a row of runs, from its smallest to its largest."""
    row = sorted(row, key=lambda run: run["flops"])
    keys = ("flops", "parameters", "tokens")
    logs = {key: np.log([run[key] for run in row]) for key in keys}
    along = np.linspace(logs["flops"][0], logs["flops"][-1], 100)
    at = {key: np.exp(np.interp(along, logs["flops"], logs[key])) for key in keys}
    losses = [law(n, d, c) for n, d, c in zip(at["parameters"], at["tokens"], at["flops"], strict=True)]
    return [float(c) for c in at["flops"]], losses


def isoflop_plot(found: dict[str, Any]) -> str:
    """Loss against size, a parabola a budget, its minimum marked."""
    canvas = Canvas("isoflop", height=300, width=520)
    colours = ("base", "other", "sft", "dpo", "grpo", "plain")
    with canvas as (_, axes):
        for i, said in enumerate(found["isoflop"]["parabolas"]):
            colour = COLOURS[colours[i % len(colours)]]
            bend = Parabola(said["flops"], tuple(said["coefficients"]), said["centre"], None, None, None, ())
            runs = [r for r in found["rungs"] if r["budget"] and abs(math.log(r["flops"] / said["flops"])) < 0.2]
            sizes = [r["parameters"] for r in runs]
            axes.plot(sizes, [r["loss"] for r in runs], "o", color=colour, markersize=6)
            smooth = np.geomspace(min(sizes), max(sizes), 60)
            axes.plot(smooth, [bend.at(float(n)) for n in smooth], color=colour, linewidth=1.4, alpha=0.75)
            axes.annotate(f"{said['flops']:.1e} FLOPs", (smooth[-1], bend.at(float(smooth[-1]))), xytext=(4, 4),
                          textcoords="offset points", fontsize=8, color=COLOURS["quiet"])  # fmt: skip
            if said["parameters"] is not None and min(sizes) <= said["parameters"] <= max(sizes):
                axes.plot(said["parameters"], said["loss"], "x", color=colour, markersize=8, markeredgewidth=2)
        _log_axis(axes, short, (1.0, 2.0, 5.0))
        axes.set_xlabel("parameters")
        axes.set_ylabel("validation loss, nats a token")
    return standalone(canvas.raw)


def standalone(svg: str) -> str:
    """A figure of the house as a file of its own: real colours, a white ground."""
    for name, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, INK[name])
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', svg, count=1)


# ---- words ----


def markdown(found: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """The summary, complete in itself."""
    lines = [
        f"# Ladder of {found['name']}",
        "",
        f"Vocabulary {found['vocab_size']:,}, context {found['context']}, {found['unique_tokens']:,} unique tokens; "
        f"batch and rate by `{found['rule']}`, optimizer `{found['optimizer']}`. All rungs share tokenizer, shards and "
        f"validation text. N: {found['parameters_are']}. Trained in {duration(found['seconds'])}.",
        "",
        "| rung | N | all parameters | tokens | FLOPs | loss | bits a byte | predicted | error | time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rungs"]:
        held = " (held out)" if r["held_out"] else ""
        said = interval(r["predicted"]) if r["held_out"] else f"{r['predicted']['loss']:.4f}"
        lines.append(
            f"| {r['name']}{held} | {r['parameters']:,} | {r['total']:,} | {r['tokens']:,} | {r['flops']:.2e} | "
            f"{r['loss']:.4f} | {r['bits_per_byte']:.4f} | {said} | {r['error_percent']:+.2f}% | "
            f"{duration(r['seconds'])} |"
        )
    lines += ["", *verdict(found), ""]
    lines += [f"![{name}]({name})" for name in pictures]
    if found["warnings"]:
        lines += ["", "## Notes", "", *(f"- {warning}" for warning in found["warnings"])]
    return "\n".join(lines) + "\n"


def verdict(found: dict[str, Any]) -> list[str]:
    """What was found, a sentence each: on the terminal and in the summary."""
    lines = []
    for r in found["rungs"]:
        if r["held_out"]:
            lines.append(
                f"Held out: {r['name']} was predicted at {interval(r['predicted'])} from the other rungs and reached "
                f"{r['loss']:.4f}: an error of {r['error_percent']:+.2f}% of the loss."
            )
    law = found["fit"]
    lines.append(
        f"Law, all {law['points']} rungs: {formula(law)}; residual {law['residual_percent']:.2f}% of the loss."
    )
    lines += [f"Caution: {warning}." for warning in law["warnings"]]
    if found["isoflop"]:
        lines += _valleys(found["isoflop"])
    for p in found["predictions"]:
        lines.append(
            f"Predicted: {p['parameters']:,} parameters on {p['tokens']:,.0f} tokens reach {interval(p)} nats a token "
            f"({p['times_largest']:,.1f} times the compute of the largest rung)."
        )
        lines += [f"Caution: {note}." for note in p["notes"]]
    return lines


def _valleys(isoflop: dict[str, Any]) -> list[str]:
    lines = []
    for p in isoflop["parabolas"]:
        if p["parameters"] is not None:
            span = f" ({p['interval'][0]:,.0f} to {p['interval'][1]:,.0f})" if p["interval"] else ""
            lines.append(f"At {p['flops']:.2e} FLOPs the best size is {p['parameters']:,.0f} parameters{span}.")
        lines += [f"Caution: at {p['flops']:.2e} FLOPs {warning}." for warning in p["warnings"]]
    law = isoflop["allocation"]
    if law:
        lines.append(f"Best size: N = {law['k']:.3g} C^{law['a']:.3f}, from {law['budgets']} budgets.")
    return lines


def interval(said: dict[str, Any]) -> str:
    """'3.412 (3.38 to 3.45)'."""
    span = f" ({said['low']:.3f} to {said['high']:.3f})" if said["low"] is not None else ""
    return f"{said['loss']:.4f}{span}"


def formula(law: dict[str, Any]) -> str:
    c = law["constants"]
    if law["form"] == "L(C)":
        return f"L = {c['E']:.3f} + {c['K']:.4g} / C^{c['gamma']:.3f}"
    return f"L = {c['E']:.3f} + {c['A']:.4g} / N^{c['alpha']:.3f} + {c['B']:.4g} / D^{c['beta']:.3f}"
