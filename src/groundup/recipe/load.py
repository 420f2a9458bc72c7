"""YAML file + overrides -> Recipe. Everything wrong is reported at once, with its line and the nearest right key."""

from __future__ import annotations

import os
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from groundup.errors import UserError, did_you_mean, problems
from groundup.recipe.schema import Recipe

PRESETS = Path(__file__).parent / "presets"

Lines = dict[tuple[Any, ...], str]  # path of a key -> "line 12", or "--set"


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file (or a preset's name) and apply `key.path=value` overrides.

    Raises UserError listing every problem: unknown keys (with the nearest right one), wrong types, bad values.
    """
    file = find_recipe(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: not UTF-8 text ({e.reason} at byte {e.start}); save the recipe as UTF-8") from e
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror or e})") from e
    try:
        lines = _line_numbers(yaml.compose(text, Loader=_Loader))
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise UserError(f"{where}: not valid YAML: {getattr(e, 'problem', None) or e}") from e
    except RecursionError as e:
        raise UserError(f"{file}: not a recipe: something in it holds itself (an &anchor inside its own value)") from e
    if not isinstance(tree, dict):
        raise UserError(f"{file}: a recipe is a mapping of sections (name:, data:, ...); see `groundup new`")
    found: list[str] = []
    for item in overrides or []:
        found += _override(tree, item)
        place = tuple(int(part) if part.isdigit() else part for part in item.partition("=")[0].split("."))
        lines = {at: line for at, line in lines.items() if at[: len(place)] != place} | {place: "--set"}
    problems("--set", found)
    return parse_recipe(tree, str(file), lines)


def parse_recipe(tree: dict[str, Any], where: str, lines: Lines | None = None) -> Recipe:
    """Validate a recipe given as nested dicts; `lines` says where each key came from."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as e:
        wrong: dict[tuple[Any, ...], list[Any]] = {}  # where -> what; a union complains once for each of its branches
        for error in e.errors():
            location = tuple(part for part in error["loc"] if not _is_union_tag(part))
            wrong.setdefault(location, []).append(error)
        found = []
        for location, errors in wrong.items():
            line = _nearest_line(lines or {}, location)
            found.append(f"{_dotted(location)}: {_explain(errors, location)}" + (f"  ({line})" if line else ""))
        problems(where, found)
        raise


def find_recipe(path: str | Path) -> Path:
    """A file, or a preset by name ('town', 'recipes/town.yaml' when that file is not there is an error)."""
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise UserError(f"{file} is a folder; give a recipe file (.yaml)")
    preset = PRESETS / f"{path}.yaml"
    if os.sep not in str(path) and preset.is_file():
        return preset
    names = [p.stem for p in PRESETS.glob("*.yaml")]
    word = file.name.removesuffix(".yaml")  # not the stem: llama-3.1-8b has a dot of its own
    near = did_you_mean(word, names) if did_you_mean(word, names).startswith(" (did") else ""
    few = "town, wikipedia, gpt2, llama-3.1-8b, ... (all of them: docs/presets.md)"
    raise UserError(f"no recipe at {path}{near}; `groundup new NAME` writes one, presets are {few}")


def dump_recipe(recipe: Recipe, comments: dict[str, str] | None = None) -> str:
    """YAML of a recipe, every value explicit; `comments` maps a dotted key to a note set beside it."""
    body = yaml.dump(
        recipe.model_dump(mode="json", exclude_none=True),
        Dumper=_Dumper,
        sort_keys=False,
        width=110,
        allow_unicode=True,
    )
    if not comments:
        return body
    out: list[str] = []
    path: list[str] = []
    for line in body.splitlines():
        key = line.strip().split(":")[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = [*path[:depth], key]
        note = comments.get(".".join(path))
        out.append(f"{line}  # {note}" if note else line)
    return "\n".join(out) + "\n"


def read_scalar(text: str) -> Any:
    """A value as the recipe's YAML reads it."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number (YAML 1.1 wants 3.0e-4) and refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key_node.value}" stands twice', key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would read as a number: the text "1e5" stays a text."""


for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(  # type: ignore[no-untyped-call]
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def _override(tree: dict[str, Any], item: str) -> list[str]:
    key, sep, raw = item.partition("=")
    if not sep or not key:
        return [f'"{item}" is not key.path=value']
    node: Any = tree
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            continue
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
            continue
        known = f"; it has {len(node)} entries, counted from 0" if isinstance(node, list) else ""
        return [f'"{key}": there is no "{part}" to go into{known}']
    try:
        value = read_scalar(raw) if raw else None
    except yaml.YAMLError:
        return [f'"{item}": the value is not valid YAML']
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        return [f'"{key}": cannot set "{last}" there']
    return []


def _line_numbers(node: Any, path: tuple[Any, ...] = ()) -> Lines:
    lines: Lines = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # the loader refuses it, with its line
            lines[(*path, key.value)] = f"line {key.start_mark.line + 1}"
            lines |= _line_numbers(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, i)] = f"line {value.start_mark.line + 1}"
            lines |= _line_numbers(value, (*path, i))
    return lines


def _nearest_line(lines: Lines, location: tuple[Any, ...]) -> str | None:
    while location:
        if location in lines:
            return lines[location]
        location = location[:-1]
    return None


def _is_union_tag(part: Any) -> bool:
    # pydantic puts the tried branch of a union ("int", "constrained-str", "literal['auto']") into the location
    return isinstance(part, str) and (
        "[" in part or "-" in part or part in {"int", "float", "str", "bool", "TaskSource"}
    )


def _dotted(location: tuple[Any, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text or "recipe"


def _explain(errors: list[Any], location: tuple[Any, ...]) -> str:
    """What is wrong at one place; the branches of a union are joined by "or"."""
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return f"unknown key{did_you_mean(str(location[-1]), _keys_at(location[:-1]))}"
    if error["type"] == "missing":
        return "required, but not given"
    messages = [error["msg"].removeprefix("Value error, ").removeprefix("Input ") for error in errors]
    messages = [
        re.sub(r", unable to .*| after validation, .*", "", message[0].lower() + message[1:]) for message in messages
    ]
    message = " or ".join(dict.fromkeys(messages)).replace(" or should be ", " or ")
    value = error.get("input")
    return message if isinstance(value, dict | list) else f"{message} (got {value!r})"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys that the schema knows at a location."""
    here: type[BaseModel] | None = Recipe
    for part in location:
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
