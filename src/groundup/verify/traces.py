"""What broken tools leave in text: wrong decodings, marks of templates, remains of pages, answers that are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# UTF-8 read as Latin-1 or Windows-1252: a lead byte, and what the bytes 80 to BF look like there. Of three bytes, the
# last two can be quotes and dashes behind a word in French or Portuguese ("passé…»", "café”—"): one such is no sign.
_AFTER = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ\u2018\u2019\u201c\u201d•–—˜™š›œžŸ"
_TYPE = "\u00a0\u00ab\u00bb\u2018\u2019\u201c\u201d‚„‹›•–—…"
_MOJIBAKE = re.compile(
    f"[ÂÃ][{_AFTER}]|â[{_AFTER}]{{2}}|[ãäåæçèé](?!\u00a0|[{_TYPE}]{{2}})[{_AFTER}]{{2}}|(?:[ãäåæçèé][{_AFTER}]{{2}}){{2}}"
    f"|(?:[ÐÑ][{_AFTER}]){{2}}|ðŸ[{_AFTER}]{{2}}|ï»¿|ï¿½"
    "|(?:([À-ÖØ-öø-ÿ])(?!\\1)){5}[À-ÖØ-öø-ÿ]"  # Cyrillic in Windows-1251 read as Latin-1
    "|锟斤|斤拷|烫烫烫|屯屯屯"  # U+FFFD in UTF-8 read as GBK; memory that was never written, read as GBK
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# U+200B parts words in scripts that write no spaces, U+200C and U+200D shape letters that are not ASCII.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff"
_INVISIBLE = re.compile(
    f"[\ufeff\u2060]|(?<![{_UNSPACED}])\u200b(?![{_UNSPACED}])|(?<![^\x00-\x7f])[\u200c\u200d](?![^\x00-\x7f])"
)
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_DAMAGE = {
    "text decoded wrongly": _MOJIBAKE,
    "a control character": _CONTROL,
    "half a surrogate pair": _SURROGATE,
    "a replacement character": re.compile("\ufffd"),
    "an invisible character": _INVISIBLE,
}
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,6});")
_TAG = re.compile(
    r"<(?:br|hr)\s*/?>|</?(?:p|div|span|font|b|i|em|strong|ul|ol|li|table|tr|td|h[1-6])(?:\s+[\w-]+\s*=[^<>]*)?\s*>",
    re.I,
)
_MARKUP = re.compile(r"<!doctype|<\?php|\b(?:html|xml|css|javascript|jquery)\b|classname=|;\s*\n|```", re.I)
_TEMPLATE = re.compile(
    r"<\|\w{2,40}\|>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>|\[/?INST\]|\[/?SYSTEM_PROMPT\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|</?s>|\[(?:PAD|UNK|CLS|SEP|EOS|BOS)\]|<(?:pad|unk|eos|bos|eot)>|\{\{\s*[A-Za-z_]\w*\s*\}\}"
    r"|### ?(?:Human|Assistant|Response|Instruction|Input|User|System):|\n\nHuman:.*\n\nAssistant:|\n\nHuman:\s*$",
    re.S,
)
_CURLY = re.compile(r"\{\{\s*[A-Za-z_]\w*\s*\}\}")
_CLOSING = re.compile(
    r"<\|\w+\|>|</s>|<end_of_turn>|\[(?:PAD|EOS)\]|<(?:pad|eos|eot)>|<\uff5c.*\uff5c>"
)  # what ends a turn
_STRUCK = re.compile(r"</?s>")  # HTML's too
# The next question, in an answer that ran on: a speaker at the beginning of a line, or in capitals behind a sentence.
_NEXT_TURN = re.compile(
    r"\n[ \t*]*(?:User|Human|USER|HUMAN|Question|Q)[ *]*:[ *]*\S|(?<=[.!?])\s+(?:USER|HUMAN):\s*\S"
    r"|\nuser[ \t]*\n+(?!assistant\b)\S.*?\nassistant[ \t]*(?:\n|$)|(?<=[.!?])assistant\n\n",  # without their marks
    re.S,
)
_DIALOGUE = re.compile(
    r"\b(?:dialog(?:ue)?s?|conversations?|chats?|transcripts?|interviews?|scripts?|scenes?|plays?|role-?play\w*|faqs?"
    r"|q ?& ?a|quiz\w*|trivia|exchanges?|screenplay|humans?|users?|questions?|q)\b",
    re.I,
)
# How people speak of marks as such: in quotes, beside a word for them, or in a question with one standing by itself.
_ANY_MARK = (
    r"(?:<[|/]?\w[^<>\n]{0,30}>|<</?SYS>>|\[/?[A-Z]{2,}\]|&[#\w]{2,8};|\{\{[^{}\n]{0,40}\}\}|\{%[^{}\n]{0,40}%\})"
)
_NOUN = (
    r"(?:tokens?|tags?|marks?|markers?|strings?|symbols?|delimiters?|placeholders?|syntax|notations?|sequences?"
    r"|elements?|entit(?:y|ies)|braces|brackets)"
)
_SPOKEN_OF = re.compile(
    rf"[`\"'\u2018\u201c\u00ab] ?{_ANY_MARK} ?[`\"'\u2019\u201d\u00bb]|\b{_NOUN}[ :(]+(?:\w+ ){{0,3}}{_ANY_MARK}"
    rf"|{_ANY_MARK},? (?:\w+ ){{0,2}}{_NOUN}\b"
    rf"|\b(?:what|why|when|where|how)\b[^.?!\n]{{0,60}} (?!\{{\{{){_ANY_MARK}(?![\w<#])[^.!\n]{{0,80}}\?",
    re.I,
)
_TEMPLATING = re.compile(
    r"\b(?:jinja2?|mustache|handlebars|liquid|django|helm|ansible|vue|angular|templates?|placeholders?)\b", re.I
)
_NO_ANSWER = frozenset(
    ["n/a", "na", "none", "null", "nan", "undefined", "noinput", "no input", "nooutput", "no output", "no answer",
     "todo", "tbd", "tba", "deleted", "removed"]
)  # fmt: skip
_SAID_TOO = frozenset(["none", "null", "nan", "undefined"])  # what people and programs answer as well
_OPEN_TO_NONE = re.compile(
    r"\b(?:any|how many|which|who|returns?|prints?|printed|"
    r"output|evaluates?|values?|results?|variables?|python|sql|code"
    r"|functions?|exists?|missing|left|remain\w*|in common|both|extract|identify|list|find|is there|are there)\b",
    re.I,
)
_WORD = re.compile(r"\w+")
_ENDS = re.compile(r"[.!?。！？…]['\"\u2019\u201d)\]]*\s")  # Chinese sentences end too


def _at(match: re.Match[str]) -> str:
    """What was found, with a little of what stands around it, printable."""
    return repr(match.string[max(0, match.start() - 12) : min(match.end(), match.start() + 40) + 12])


def about_markup(texts: Iterable[str]) -> bool:
    """Whether code or markup is what these texts, of one row, are about: there entities, tags and {{x}} are right."""
    return any(_MARKUP.search(text) for text in texts)


def about_marks(asked: str) -> bool:
    """Whether who asks speaks of marks as such (`<b>` tags, the token [INST], fields of Jinja): then they are right."""
    return bool(_SPOKEN_OF.search(asked))


def broken(text: str, markup: bool = False) -> Iterator[str]:
    """Kinds of damage to `text`: wrong decodings, control characters, halves, and (but for markup) remains of HTML."""
    for what, pattern in _DAMAGE.items():
        if found := pattern.search(text):
            yield f"{what} in {_at(found)}"
    if (found := _DIRECTION.search(text)) and not _RIGHT_TO_LEFT.search(text):
        yield f"an invisible character in {_at(found)}"
    if not markup and (found := _ENTITY.search(text) or _TAG.search(text)):
        yield f"HTML in {_at(found)}"


def template(text: str, markup: bool = False, asked: str = "") -> str:
    """The mark of a chat template, or (but for markup) the empty field of one, in `text`; "" where none is.

    asked: what the row's user says. Where it speaks of marks, marks are what the row is about, but for one that ends
    the text and that nobody spoke of.
    """
    found = list(_TEMPLATE.finditer(text))
    marks, fields = bool(found) and about_marks(asked), markup or bool(found and _TEMPLATING.search(asked))
    for match in found:
        mark = match[0].strip()
        ends = not text[match.end() :].strip()
        if _CURLY.fullmatch(mark) and (fields or marks):
            continue
        if markup and _STRUCK.fullmatch(mark) and not ends and text[: match.start()].strip():
            continue
        left = ends and _CLOSING.fullmatch(mark) and mark not in asked
        if (marks and not left) or _quoted(match):
            continue
        return repr(mark if len(mark) <= 40 else mark[:37] + "...")
    return ""


def _quoted(match: re.Match[str]) -> bool:
    """Whether the mark stands in quotes of its own, as a word that is spoken of."""
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return (before, after) in {("`", "`"), ('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019")}


def runs_on(answer: str, asked: str) -> str:
    """Where an answer goes on with the next question, "User: ..."; "" where it does not, or a dialogue was asked."""
    found = _NEXT_TURN.search(answer)
    if found is None or not answer[: found.start()].strip() or about_markup([answer]) or _DIALOGUE.search(asked):
        return ""
    return f"the next turn in {_at(found)}"


def is_no_answer(text: str) -> bool:
    """Nothing, white space, or a word that tables write where a field has no value."""
    bare = " ".join(text.casefold().split())
    return not bare or bare.strip("<>[](){}.!\"'*_-") in _NO_ANSWER or bare in ("-", "--", "...", "\u2026")


def is_unanswered(answer: str, asked: str) -> bool:
    """`is_no_answer`, where it is not what was asked for: "None" to "How many are left?", "n/a" where that was told."""
    if not is_no_answer(answer):
        return False
    bare = " ".join(answer.casefold().split()).strip("<>[](){}.!\"'*_-")
    told = bool(bare) and re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", asked.casefold()) is not None
    return not told and not (bare in _SAID_TOO and _OPEN_TO_NONE.search(asked) is not None)


def unfinished(text: str) -> bool:
    """Prose of at least two sentences that stops within one: as an answer does that was cut at a length."""
    text = text.rstrip()
    if not text or "```" in text or not (text[-1].isalnum() or text[-1] in ",(-\u2013\u2014"):
        return False
    last = _ENDS.split(text.rpartition("\n")[2])[-1]
    return bool(_ENDS.search(text)) and len(last.split()) >= 3 and not re.match(r"\s*(?:[-*•]|\(?\w{1,2}[.)]\s)", last)


# ---- words ----


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
