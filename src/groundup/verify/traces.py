"""What broken tools leave in text: wrong decodings, marks of templates, remains of pages, answers that are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# UTF-8 read as Latin-1 or Windows-1252: a lead byte, and what the bytes 80 to BF look like there.
_AFTER = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ\u2018\u2019\u201c\u201d•–—˜™š›œžŸ"
_MOJIBAKE = re.compile(f"[ÂÃ][{_AFTER}]|[âãäåæçèé][{_AFTER}]{{2}}|(?:[ÐÑ][{_AFTER}]){{2}}|ðŸ[{_AFTER}]{{2}}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DAMAGE = {
    "text decoded wrongly": _MOJIBAKE,
    "a control character": _CONTROL,
    "half a surrogate pair": _SURROGATE,
    "a replacement character": re.compile("\ufffd"),
}
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,6});")
_TAG = re.compile(
    r"<(?:br|hr)\s*/?>|</?(?:p|div|span|font|b|i|em|strong|ul|ol|li|table|tr|td|h[1-6])(?:\s+[\w-]+\s*=[^<>]*)?\s*>",
    re.I,
)
_MARKUP = re.compile(r"<!doctype|<\?php|\b(?:html|xml|css|javascript|jquery)\b|classname=|;\s*\n|```", re.I)
_TEMPLATE = re.compile(
    r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|^<s>|</s>\s*$|\{\{\s*[A-Za-z_]\w*\s*\}\}"
    r"|### ?(?:Human|Assistant|Response|Instruction|Input|User|System):|\n\nHuman:.*\n\nAssistant:|\n\nHuman:\s*$",
    re.S,
)
_CURLY = re.compile(r"\{\{\s*[A-Za-z_]\w*\s*\}\}")
_NO_ANSWER = frozenset(
    ["n/a", "na", "none", "null", "nan", "undefined", "noinput", "no input", "nooutput", "no output", "no answer",
     "todo", "tbd", "tba", "deleted", "removed"]
)  # fmt: skip
_WORD = re.compile(r"\w+")
_ENDS = re.compile(r"[.!?。！？…]['\"\u2019\u201d)\]]*\s")  # Chinese sentences end too


def _at(match: re.Match[str]) -> str:
    """What was found, with a little of what stands around it, printable."""
    text = match.string[max(0, match.start() - 12) : match.end() + 12]
    return repr(text)


def about_markup(texts: Iterable[str]) -> bool:
    """Whether code or markup is what these texts, of one row, are about: there entities, tags and {{x}} are right."""
    return any(_MARKUP.search(text) for text in texts)


def broken(text: str, markup: bool = False) -> Iterator[str]:
    """Kinds of damage to `text`: wrong decodings, control characters, halves, and (but for markup) remains of HTML."""
    for what, pattern in _DAMAGE.items():
        if found := pattern.search(text):
            yield f"{what} in {_at(found)}"
    if not markup and (found := _ENTITY.search(text) or _TAG.search(text)):
        yield f"HTML in {_at(found)}"


def template(text: str, markup: bool = False) -> str:
    """The mark of a chat template, or (but for markup) the empty field of one, in `text`; "" where none is."""
    marks = (match[0].strip() for match in _TEMPLATE.finditer(text))
    found = next((mark for mark in marks if not (markup and _CURLY.fullmatch(mark))), "")
    return repr(found if len(found) <= 40 else found[:37] + "...") if found else ""


def is_no_answer(text: str) -> bool:
    """Nothing, white space, or a word that tables write where a field has no value."""
    bare = " ".join(text.casefold().split())
    return not bare or bare.strip("<>[](){}.!\"'*_-") in _NO_ANSWER or bare in ("-", "--", "...", "\u2026")


def unfinished(text: str) -> bool:
    """Prose of at least two sentences that stops within one: as an answer does that was cut at a length."""
    text = text.rstrip()
    if not text or "```" in text or not (text[-1].isalnum() or text[-1] in ",(-\u2013\u2014"):
        return False
    last = _ENDS.split(text.rpartition("\n")[2])[-1]
    return bool(_ENDS.search(text)) and len(last.split()) >= 3 and not re.match(r"\s*(?:[-*•]|\(?\w{1,2}[.)]\s)", last)


def words(text: str) -> list[str]:
    """Words as they are compared for overlap."""
    return [word.casefold() for word in _WORD.findall(text)]


def spans(text: str, n: int, different: int = 0) -> Iterator[tuple[str, ...]]:
    """Every n words in a row that hold so many different ones of two letters or more: no counting, no idiom of code."""
    every = words(text)
    for i in range(len(every) - n + 1):
        span = tuple(every[i : i + n])
        if not different or len({word for word in span if len(word) > 1 and not word.isdigit()}) >= different:
            yield span
