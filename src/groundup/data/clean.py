"""Mending of texts: wrong decoding, control characters, Unicode's normal form, boilerplate. Nothing is dropped here."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from groundup.data.document import Item
from groundup.recipe.corpus import CleanSection


class Clean:
    """Mends texts in this order: encoding, control characters and line ends, normal form, boilerplate.

    counts, in documents: clean.encoding, clean.control, clean.line_ends, clean.normalise, clean.gutenberg,
    clean.boilerplate_lines.
    """

    name = "clean"

    def __init__(self, section: CleanSection) -> None:
        self.section = section
        self.counts: Counter[str] = Counter()

    def __call__(self, items: Sequence[Item]) -> None:
        for item in items:
            if not item.rule:
                item.change(self._mended(item.text))

    def _mended(self, text: str) -> str:
        section = self.section
        if section.fix_encoding and not text.isascii():
            text = self._counted("encoding", fix_encoding, text)
        if section.control and has_control(text):
            text = self._counted("line_ends", line_ends, text)
            text = self._counted("control", without_control, text)
        if section.normalise != "none" and not text.isascii():
            text = self._counted("normalise", _normal(section.normalise), text)
        if section.boilerplate:
            text = self._counted("gutenberg", without_gutenberg, text)
            text = self._counted("boilerplate_lines", without_boilerplate_lines, text)
        return text

    def _counted(self, name: str, mend: Callable[[str], str], text: str) -> str:
        mended = mend(text)
        if mended is not text and mended != text:
            self.counts[f"clean.{name}"] += 1
        return mended


def _normal(form: Literal["NFC", "NFKC"]) -> Callable[[str], str]:
    def mend(text: str) -> str:
        return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)

    return mend


# ---- encoding ----


@cache
def _ftfy() -> tuple[Callable[[str], str], re.Pattern[str]]:
    """(ftfy with the options above, a fast search without which ftfy changes nothing)."""
    import ftfy
    from ftfy import badness

    # What it does here: undo wrong decoding, and join or replace surrogates. Its other fixes (entities, quotes,
    # ligatures, character width) change texts that were decoded well; FineWeb turns most of them off, too.
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    # Everything that ftfy's badness heuristic can find holds one of: two neighbours out of its categories, one of
    # them more than a common letter of Greek or Cyrillic; a C1 control; an oe ligature; A with a hat and a space;
    # two pairs of Cyrillic and Latin letters that it lists by name.
    categories = dict(badness.MOJIBAKE_CATEGORIES)
    letters = categories.pop("upper_common") + categories.pop("lower_common")
    marks = "".join(categories.values()) + "Ÿšž°»µ®©²³¹¼½¾±†≠≤≥¥øìîïûùàäêßåó´Ãâ‚√≈×ØÙà¡ø"
    # One class of characters first: the search then skips ASCII fast.
    suspicious = re.compile(
        f"[^\x00-\x7f](?:(?<=[{marks}])[{marks}{letters}]|(?<=[{letters}])[{marks}]"
        "|(?<=[\x80-\x9fŒœЂ\ud800-\udfff])|(?<=[ÃÂ])[ ]|(?<=β)€|(?<=ā)€)"
    )
    return (lambda text: ftfy.fix_text(text, config)), suspicious


def fix_encoding(text: str) -> str:
    """What ftfy makes of the text. It looks at lines one by one; those that it would not change are not shown to it."""
    if text.isascii():
        return text
    fix, suspicious = _ftfy()
    parts: list[str] = []
    at = 0
    while found := suspicious.search(text, at):
        begin = text.rfind("\n", at, found.start()) + 1 or at
        end = text.find("\n", found.start()) + 1 or len(text)
        parts += (text[at:begin], fix(text[begin:end]))
        at = end
    return "".join([*parts, text[at:]]) if parts else text


# ---- control characters ----

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Terminal colours; C0, DEL and C1; deprecated formatting of Arabic; annotation and object marks; byte order marks;
# and the two code points that are no characters.
_CONTROL = re.compile(
    "\x1b\\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc\ufffe\uffff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ANY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u206a-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc\ufffe\uffff]")
_ASCII = bytes([*range(9), *range(0x0B, 0x20), 0x7F])


def has_control(text: str) -> bool:
    """Would `line_ends` or `without_control` change it? In one pass."""
    if text.isascii():
        return len(text.encode("ascii").translate(None, _ASCII)) < len(text)
    return bool(_ANY.search(text))


def line_ends(text: str) -> str:
    """Every line end is \\n: \\r\\n, \\r, vertical tab, form feed, and Unicode's three."""
    return _LINE_ENDS.sub("\n", text)


def without_control(text: str) -> str:
    """Without control characters but \\n and \\t; half a surrogate pair, which no file can hold, becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", text))


# ---- boilerplate ----

_BOOK = r"(?:THE|THIS)? *PROJECT +GUTENBERG(?:'S)? +E-?(?:BOOK|TEXT)\b[^*]{0,400}"
_START = re.compile(rf"^[ \t]*\*\*\* ?START OF {_BOOK}\*\*\*[ \t]*\n?", re.MULTILINE | re.IGNORECASE)
_END = re.compile(
    r"^(?:[ \t]*End of (?:the |this )?Project Gutenberg(?:'s|’s)?(?: E-?(?:Book|text))?\b[^\n]*\n(?:[^\n]+\n){0,2}\s*)?"
    rf"[ \t]*\*\*\* ?END OF {_BOOK}\*\*\*",
    re.MULTILINE | re.IGNORECASE,
)


def without_gutenberg(text: str) -> str:
    """Without what Project Gutenberg puts around a book: up to its START line, and from its END line on.

    Both lines are looked for as they are printed; what goes must name Project Gutenberg, so that a text which quotes
    such a line in passing keeps what stands around it.
    """
    if "***" not in text:
        return text
    start = _START.search(text)
    if start and "project gutenberg" in text[: start.start()].lower():
        text = text[start.end() :].lstrip("\n")
    end = _END.search(text)
    if end and "project gutenberg" in text[end.end() :].lower():
        text = text[: end.start()].rstrip() + "\n"
    return text


# Lines that are nothing else: the whole line must match. A sentence about cookies or sharing stays.
_NETWORK = (
    r"(?:facebook|twitter|x|linkedin|pinterest|reddit|tumblr|whatsapp|telegram|pocket|google\+?|email|e-mail|skype)"
)
_LINES = re.compile(
    rf"""
    (?: share\ this(?:\ (?:article|post|page|story))?:? | share:
      | (?:click\ to\ )?(?:share|tweet|pin|print|email)(?:\ this)?(?:\ (?:on|to|via|by|with)\ {_NETWORK})+
            (?:\ \(opens\ in\ new\ window\))?\.?
      | click\ to\ (?:print|email\ (?:this|a\ link)\ to\ a\ friend)(?:\ \(opens\ in\ new\ window\))?
      | (?:{_NETWORK}[\ ,|•·]+){{2,}}{_NETWORK}
      | like\ this:(?:\ loading\.\.\.)? | like\ loading\.\.\.
      | (?:please\ )?(?:subscribe|sign\ up)\ (?:to|for)\ (?:our|the|my)\ (?:free\ )?
            (?:weekly\ |daily\ |monthly\ |email\ )?
            (?:newsletter|mailing\ list|rss\ feed|youtube\ channel)(?:\ (?:today|now|here|below))?[.!]?
      | enter\ your\ e-?mail\ address\ to\ (?:subscribe|follow)\b[^\n]{{0,120}}
      | skip\ to\ (?:main\ )?(?:content|navigation|search)
      | (?:accept|reject|allow|manage)(?:\ all)?\ cookies | cookie\ (?:settings|preferences)
      | (?:this|our)\ (?:web)?site\ uses\ cookies\b[^\n]{{0,80}}\b
            (?:experience|consent|agree|accept|opt[\ -]out|analytics|traffic|functionality)\b[^\n]{{0,160}}
      | we\ (?:and\ our\ partners\ )?use\ cookies\b[^\n]{{0,80}}\b
            (?:experience|consent|website|our\ site|this\ site|browser|analy[sz]e\ traffic)\b[^\n]{{0,200}}
      | by\ (?:continuing\ to\ (?:use|browse)|using)\ (?:this|our|the)\ (?:web)?site,?\ you\ (?:agree|consent|accept)\b
            [^\n]{{0,160}}\bcookies\b[^\n]{{0,80}}
    )\s*\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_BEGIN = re.compile(r"[ \t]*(?i:s[hiku]|t[hwe]|c[lo]|e[nm]|a[cl]|w[eh]|[bo][yu]|re|ma|p[ilor]|li|f|x|go)")
_LONGEST_LINE = 320


def without_boilerplate_lines(text: str) -> str:
    """Without lines that are a share button, a call to subscribe, or a cookie notice."""
    lines = text.split("\n")
    begins = _BEGIN.match  # asked here, of each line of a corpus: a call less
    kept = [line for line in lines if not (begins(line) and _is_boilerplate(line))]
    return text if len(kept) == len(lines) else "\n".join(kept)


def _is_boilerplate(line: str) -> bool:
    return len(line) <= _LONGEST_LINE and bool(_LINES.match(line.strip()))
