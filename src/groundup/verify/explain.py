"""All about one check, in words: for `--list`, `--explain` and docs/silent-bugs.md."""

from __future__ import annotations

import inspect
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from groundup.verify.check import STAGES, Check
from groundup.verify.costs import measured

SYMPTOMS = Path(__file__).with_name("symptoms.yaml")
REMEDIES = Path(__file__).with_name("remedies.yaml")
OWN_FILES = re.compile(r"\b\w+/\w+\.py")  # in a remedy: a file of groundup's
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+) (?:issue|pull|discussion)s? \d")
_NUMBER = re.compile(r"(?<![\w.])(\d+)\b")
_PAPER = re.compile(r"\barXiv[: ](\d{4}\.\d{4,5})")


@cache
def symptoms() -> dict[str, str]:
    """Check id -> what people saw before they knew."""
    return yaml.safe_load(SYMPTOMS.read_text(encoding="utf-8")) or {}


@cache
def remedies() -> dict[str, str]:
    """Check id -> what to do in a model, tokenizer or file that is not groundup's own."""
    return yaml.safe_load(REMEDIES.read_text(encoding="utf-8")) or {}


def remedy(one: Check, kind: str) -> str:
    """Where to look first, in a target of this kind (see target.py): groundup's own files, or what anybody can do."""
    if kind not in ("model", "checkpoint", "tokenizer", "dataset"):
        return one.remedy
    ours = " (The files named are groundup's: look at what does this in yours.)" if OWN_FILES.search(one.remedy) else ""
    return remedies().get(one.id, one.remedy + ours)


def proofs(id: str) -> dict[str, str]:
    """Planted bugs that the check must catch: id -> the bug."""
    from groundup.verify import faults  # noqa: F401  (registers them)
    from groundup.verify.fault import FAULTS

    return {fault.id: " ".join(fault.bug.split()) for fault in FAULTS.values() if id in fault.caught_by}


def as_dict(one: Check) -> dict[str, Any]:
    """{"id", "family", "stage", "bug", "symptom", "how": {face: docstring}, "remedy", "elsewhere", ...}.

    elsewhere: the remedy for what is not groundup's own, where it is another.
    """
    return {
        "id": one.id,
        "family": one.family,
        "stage": one.stage,
        "bug": one.bug,
        "symptom": symptoms().get(one.id, ""),
        "how": {face: inspect.cleandoc(way.__doc__ or "") for face, way in one.ways().items()},
        "remedy": one.remedy,
        "elsewhere": remedies().get(one.id, ""),
        "reference": one.reference,
        "proofs": proofs(one.id),
        "false_alarm": one.false_alarm,
        "seconds": measured(one.id),
    }


def as_text(one: Check) -> str:
    """The same to read."""
    said = as_dict(one)
    lines = [f"{said['id']}   {said['family']}, {said['stage']}", "", said["bug"], ""]
    if said["symptom"]:
        lines += [f"Seen as    {said['symptom']}", ""]
    for face, how in said["how"].items():
        lines += [f"Measured on a {face}:", *("  " + line for line in how.splitlines()), ""]
    lines += [f"Remedy     {said['remedy']}"]
    lines += [f"Elsewhere  {said['elsewhere']}"] if said["elsewhere"] else []
    if said["reference"]:
        lines += [f"Reference  {said['reference']}"]
    lines += [f"Catches    {id}: {bug}" for id, bug in said["proofs"].items()]
    lines += [f"False alarm by chance: {_chance(one)}"]
    lines += [f"Seconds    {said['seconds']:g}, on the town recipe"] if said["seconds"] is not None else []
    return "\n".join(lines)


def as_markdown(one: Check) -> str:
    """The same as a section of a page."""
    said = as_dict(one)
    lines = [f"### {said['id']}", "", f"**{said['bug']}**", ""]
    if said["symptom"]:
        lines += [f"*Seen as.* {said['symptom']}", ""]
    for face, how in said["how"].items():
        on = "" if len(said["how"]) == 1 and face == "recipe" else f" on a {face}"
        lines += [f"*Measured{on}.* {_paragraphs(how)}", ""]
    lines += [f"*Fix.* {_escaped(said['elsewhere'] or said['remedy'])}", ""]
    if said["elsewhere"]:
        lines += [f"*In groundup.* {_escaped(said['remedy'])}", ""]
    if said["reference"]:
        lines += [f"*Read.* {linked(said['reference'])}.", ""]
    if said["proofs"]:
        planted = "; ".join(f"{bug.rstrip('.')} (`{id}`)" for id, bug in said["proofs"].items())
        lines += [f"*Planted and caught.* {_escaped(planted)}.", ""]
    return "\n".join(lines)


def linked(reference: str) -> str:
    """A reference with its threads and papers as links: "owner/name issues 1, 2, pull 3; arXiv 2305.18290"."""
    parts = []
    for part in reference.rstrip(".").split("; "):
        found = _REPOSITORY.match(part)
        if found:
            url = f"https://github.com/{found[1]}/issues/"  # which leads to a pull request too
            part = found[1] + _NUMBER.sub(rf"[\1]({url}\1)", part[found.end(1) :])
        parts.append(_PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", part))
    return "; ".join(parts)


def _chance(one: Check) -> str:
    return f"{one.false_alarm:.0e} a run at most" if one.false_alarm else "none: the bound is arithmetic"


def _paragraphs(how: str) -> str:
    return _escaped("\n\n".join(" ".join(part.split()) for part in how.split("\n\n")))


def _escaped(text: str) -> str:
    """Angle brackets and stars that Markdown would take for its own, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<|])", r"\\\1", p) for p in parts)


def list_text(chosen: list[Check], width: int = 80) -> str:
    """Checks below a heading for each stage: its id, family and what it looks at, then the bug, wrapped to `width`."""
    out: list[str] = []
    for stage in STAGES:
        of_stage = [one for one in chosen if one.stage == stage]
        if of_stage:
            out += ["", f"== {stage}: {len(of_stage)} checks" if len(of_stage) > 1 else f"== {stage}: 1 check"]
        for one in of_stage:
            head = f"{one.id}  {one.family}; looks at: {', '.join(one.ways())}"
            out += textwrap.wrap(head, width, subsequent_indent="    ", break_on_hyphens=False)
            out += textwrap.wrap(one.bug, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(out[1:])
