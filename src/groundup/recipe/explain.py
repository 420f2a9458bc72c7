"""What pydantic finds wrong with a recipe, in the recipe's own terms: at which key, what, and what would be right."""

from __future__ import annotations

import re
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from groundup.errors import did_you_mean, nearest
from groundup.recipe.schema import LETTERS, NAME, Recipe

Place = tuple[Any, ...]  # ("data", "sources", 0, "path")

_SWITCH = ("true", "false", "yes", "no", "on", "off")
_SECTION = "should be a section, key: value lines below it"
_SAID = {
    "model_type": _SECTION,
    "list_type": "should be a list, as [a, b]",
    "tuple_type": "should be two numbers, as [0.9, 0.95]",
    "string_type": "should be text",
    "string_too_short": "should not be empty",
    "int_parsing_size": "should be a smaller number",
}
_PATTERNS = {
    NAME: "should be letters, digits, dots, dashes and underscores, at most 100, the first a letter or digit",
    LETTERS["window_pattern"]: "should be of the letters L and G alone, as LLG",
    LETTERS["rope_pattern"]: "should be of the letters R and N alone, as RRN",
}


def explain(error: ValidationError, tree: dict[str, Any]) -> list[tuple[Place, str]]:
    """(where, what) of everything wrong in `tree`; a union, which complains once for each of its branches, once."""
    wrong: dict[Place, list[Any]] = {}
    for each in error.errors():
        wrong.setdefault(_place(each, tree), []).append(each)
    within = {place[:i] for place in wrong for i in range(len(place))}
    out = []
    for place, errors in wrong.items():
        # A section was given, and it is its keys that are wrong: that it is no text is not worth telling.
        kept = [e for e in errors if not (place in within and e["type"] == "string_type" and _is_section(e["input"]))]
        if kept:
            out.append((place, _what(kept, place)))
    return out


def dotted(place: Place) -> str:
    """data.sources[0].path; keys that a terminal would not show are quoted."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = str(part)
            shown = shown if shown.isprintable() and shown == shown.strip() != "" else ascii(shown)
            text += f".{shown}" if text else shown
    return text or "recipe"


def _place(error: Any, tree: Any) -> Place:
    # pydantic puts the tried branch of a union ("int", "constrained-str", "TaskSource") into the location: such a part
    # leads nowhere in what was given. A key that is unknown or missing is always a location's last part.
    here, place, last = tree, [], len(error["loc"]) - 1
    for i, part in enumerate(error["loc"]):
        if i == last and error["type"] in ("missing", "extra_forbidden"):
            place.append(part)
        elif _leads(here, part):
            here = here[part]
            place.append(part)
    return tuple(place)


def _leads(here: Any, part: Any) -> bool:
    if isinstance(here, dict):
        return part in here
    return isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


def _what(errors: list[Any], place: Place) -> str:
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return f"unknown key{_nearest_key(place)}"
    if error["type"] == "missing":
        return "required, but not given"
    value = error.get("input")
    if value is None and error["type"] == "model_type":
        return "is empty: give keys below it, or leave it out"
    said = [_said(e) for e in errors]
    message = " or ".join(dict.fromkeys(said)).replace(" or should be ", " or ")
    return message if isinstance(value, dict | list) else f"{message} (got {_shown(value)}){_hint(errors, value)}"


def _said(error: Any) -> str:
    if error["type"] == "string_pattern_mismatch":
        return _PATTERNS[error["ctx"]["pattern"]]
    if error["type"] in _SAID:
        return _SAID[error["type"]]
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return re.sub(r", unable to .*| after validation, .*", "", message[0].lower() + message[1:])


def _hint(errors: list[Any], value: Any) -> str:
    """The choice that was probably meant, or how a text is written that YAML reads as something else."""
    if isinstance(value, str):
        choices = [c for e in errors if e["type"] == "literal_error" for c in re.findall("'([^']+)'", e["msg"])]
        choices += [c for e in errors if e["type"] in ("bool_parsing", "bool_type") for c in _SWITCH]
        return nearest(value, choices)
    wants_text = any(e["type"] == "string_type" for e in errors)
    return "; put it in quotes" if wants_text and value is not None else ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not spell out numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... of {len(text):,} characters"


def _nearest_key(place: Place) -> str:
    key = str(place[-1])
    first, _, rest = key.partition(".")
    if rest and first in _keys_at(place[:-1]):
        return f" (a file has no dotted keys: write {rest}: below {first}:)"
    return did_you_mean(key, _keys_at(place[:-1]))


def _keys_at(place: Place) -> list[str]:
    """The keys that the schema knows at a place."""
    here: type[BaseModel] | None = Recipe
    for part in place:
        if isinstance(part, int) or here is None:
            continue
        field = here.model_fields.get(part)
        here = _section_in(field.annotation) if field else None
    return list(here.model_fields) if here else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        inner = _section_in(argument)
        if inner is not None:
            return inner
    return None
