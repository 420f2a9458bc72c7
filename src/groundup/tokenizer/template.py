"""Chat templates as transformers runs them: the same Jinja, the same helpers, the same sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.parser
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from groundup.errors import UserError


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which mark an answer for transformers: the block is what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """Compiled with the environment transformers uses: sandboxed, blocks trimmed, `raise_exception` known."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template, line {error.lineno}: {error.message}") from error


def run(template: str, messages: list[dict[str, str]], prompt: bool, names: dict[str, str], now: datetime) -> str:
    """The text of a conversation. `names` are the special tokens' (bos_token, ...), `now` is what the date is made of.

    Raises UserError with what the template complains of.
    """
    try:
        return compiled(template).render(
            messages=messages,
            add_generation_prompt=prompt,
            tools=None,
            documents=None,
            strftime_now=now.strftime,
            **names,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UserError(f"chat template: {error}") from error


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
