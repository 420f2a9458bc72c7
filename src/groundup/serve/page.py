"""The chat page: three static files, and the few settings that the page reads from its own HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

STATIC = Path(__file__).parent / "static"

# 'self' alone: no script, style or picture from elsewhere, and no inline script. A model that writes HTML
# cannot run it: the page inserts text as text, and this header holds if one day it did not.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def render(title: str, feedback: bool, examples: Sequence[str]) -> str:
    """index.html with its title and its settings, a JSON block that app.js reads."""
    settings = json.dumps({"title": title, "feedback": feedback, "examples": list(examples)})
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    # "</script>" inside the settings would end the block: \u003c is the same JSON without the "<"
    return html.replace("{{settings}}", settings.replace("<", "\\u003c")).replace("{{title}}", escape(title))
