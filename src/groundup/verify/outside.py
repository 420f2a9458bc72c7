"""Anybody's tokenizer, as the checks see it, whichever library it comes from.

    OutsideTokenizer.of(AutoTokenizer.from_pretrained("my-model"))
    OutsideTokenizer.of(tokenizers.Tokenizer.from_file("tokenizer.json"))
    OutsideTokenizer.of(tiktoken.get_encoding("cl100k_base"))
    OutsideTokenizer.of(anything with encode(text) -> ids and decode(ids) -> str)

Two ways lead from text to ids, and the checks need both. `encode` takes text as text: nothing is added, and no name of
a special token in it becomes that token, as far as the library can be asked so. `encode_default` is what a naive call
gives.

Hugging Face folders are opened in folders.py.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer as Backend

from groundup.errors import UserError
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.check import Face, NotApplicable
from groundup.verify.target import Target

Messages = Sequence[Mapping[str, Any]]
SPACE = "\u2581"  # SentencePiece writes a space so
AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}  # to transformers


class Refused(Exception):
    """A template that says no to a conversation. That is loud, so it is no silent bug."""


def open_checkpoint(path: str | Path) -> Target:
    """A Hugging Face folder, or a tokenizer's folder or file, as a target. Errors: UserError for what is neither."""
    from groundup.verify.folders import opened

    return opened(Path(path))


class OutsideTokenizer:
    """A tokenizer under inspection, seen alike whatever it is made of.

    given       what it was made of
    library     "transformers", "tokenizers", "sentencepiece", "tiktoken", "groundup" or "" (any with encode and decode)
    encode      text -> ids as plain text: nothing added, no special token out of text where the library can
    decode      ids -> text, special tokens under their names
    size        the largest id + 1
    specials    {name: id} of the special tokens;  bos, eos, pad, unk: ids, or None
    added       {text: id} of all tokens that are cut out of text before the rest is split, specials or not
    template    the chat template's source, or None;  render, render_ids: NotApplicable without one
    token_bytes id -> the bytes that it stands for, or None where the library does not say
    """

    kind = "tokenizer"
    library = ""
    token_bytes: Callable[[int], bytes] | None = None
    template: str | None = None
    backend: Backend | None = None  # of the tokenizers library, where there is one: it says what it normalises

    def __init__(self, given: Any) -> None:
        self.given = given

    @classmethod
    def of(cls, anything: Any) -> OutsideTokenizer:
        """Any tokenizer. Errors: UserError for something without encode and decode."""
        from groundup.verify import libraries

        if isinstance(anything, OutsideTokenizer):
            return anything
        if isinstance(anything, Tokenizer):
            return libraries.Ours(anything)
        if isinstance(anything, Backend):
            return libraries.Tokenizers(anything)
        homes = {parent.__module__.partition(".")[0] for parent in type(anything).__mro__}
        if "transformers" in homes and hasattr(anything, "convert_tokens_to_ids"):
            return libraries.Transformers(anything)
        if "tiktoken" in homes or hasattr(anything, "encode_ordinary"):
            return libraries.Tiktoken(anything)
        if callable(getattr(anything, "encode", None)) and callable(getattr(anything, "decode", None)):
            return libraries.Plain(anything)
        raise UserError(
            f"a {type(anything).__name__} is no tokenizer that can be looked at: give transformers', tokenizers', "
            "tiktoken's, groundup's, or an object with encode(text) -> ids and decode(ids) -> text"
        )

    def face(self, name: Face) -> Any | None:
        return self if name == "tokenizer" else None

    # ---- what each library has in its own way ----

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_default(self, text: str) -> list[int]:
        """What a naive call gives, added special tokens, truncation and all."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_batch_default(self, texts: Sequence[str]) -> list[list[int]]:
        """What a naive call for many texts gives."""
        return [self.encode_default(text) for text in texts]

    def encode_template(self, text: str) -> list[int]:
        """Ids of text that a template wrote: names of specials are the specials, and nothing is added."""
        raise NotApplicable("this tokenizer cannot be asked to read special tokens in a text")

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def vocabulary(self) -> dict[str, int]:
        """{token as it is stored: id}; empty where the library does not tell."""
        return {}

    def saved(self, folder: Path) -> OutsideTokenizer:
        """Itself, written to a folder and read again. NotApplicable where it cannot be saved."""
        raise NotApplicable("this tokenizer cannot be saved")

    def _render(self, messages: Messages, prompt: bool, tools: list[Any] | None) -> str:
        raise NotApplicable("there is no chat template")

    def render_ids(self, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
        """Ids of a conversation as the library's own function for that gives them. Refused as `render`."""
        return self.encode_template(self.render(messages, add_generation_prompt))

    # ---- what all have ----

    refusal = ""  # what it said when it last refused a text

    def tried(self, text: str) -> list[int] | None:
        """`encode`, or None where the tokenizer refuses the text with an error: that is loud, so nothing is lost."""
        try:
            return self.encode(text)
        except (LookupError, ValueError) as error:
            self.refusal = f"{type(error).__name__}: {error}"[:120]
            return None

    def readable(self, texts: Sequence[str]) -> list[str]:
        """The texts, without the characters that it refuses; those that it refuses even so are left out.

        NotApplicable where nothing is left.
        """
        kept = []
        for text in texts:
            if self.tried(text) is None:
                text = "".join(c for c in text if self._knows(c))
                if not text or self.tried(text) is None:
                    continue
            kept.append(text)
        if not any(kept):
            raise NotApplicable(f"it refuses every text ({self.refusal})")
        return kept

    def _knows(self, character: str) -> bool:
        if character not in self._known:
            self._known[character] = self.tried(character) is not None
        return self._known[character]

    @cached_property
    def _known(self) -> dict[str, bool]:
        return {}

    @cached_property
    def size(self) -> int:
        return max([*self.vocabulary().values(), *self.added.values(), *self.specials.values()], default=-1) + 1

    @cached_property
    def specials(self) -> dict[str, int]:
        return {}

    @cached_property
    def added(self) -> dict[str, int]:
        return self.specials

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None

    def render(self, messages: Messages, add_generation_prompt: bool = False, tools: list[Any] | None = None) -> str:
        """The conversation's text. Raises Refused where the template does, NotApplicable where there is none."""
        if self.template is None:
            raise NotApplicable("there is no chat template")
        try:
            return self._render(messages, add_generation_prompt, tools)
        except (jinja2.TemplateError, UserError, TypeError, ValueError, KeyError) as error:
            raise Refused(str(error)) from error

    @cached_property
    def markers(self) -> dict[str, int]:
        """{text: id} of the tokens that structure a text: the special ones, and added ones that the template writes."""
        words = self.template or ""
        return {**self.specials, **{name: i for name, i in self.added.items() if name.strip() and name in words}}

    @cached_property
    def marker_pattern(self) -> re.Pattern[str]:
        longest = sorted((name for name in self.markers if name), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest)) or r"(?!)")

    def turn_marks(self) -> dict[str, int]:
        """{text: id} of the special tokens, and of the added ones that the template writes between an answer and the
        next question: who can make them, can end a turn and begin another. Not <think> and the like, inside a turn.
        """
        said = ["q7 asks", "q7 answers", "q7 asks again"]
        roles = ("user", "assistant", "user")
        try:
            text = self.render([{"role": r, "content": c} for r, c in zip(roles, said, strict=True)])
        except (Refused, NotApplicable):
            return self.specials
        between = text[text.find(said[1]) : text.find(said[2])] if all(one in text for one in said) else ""
        return {**self.specials, **{m: self.markers[m] for m in self.marker_pattern.findall(between)}}

    def terminator(self) -> int | None:
        """Id of the first marker that the template writes after an assistant's answer; None where there is none.

        Without a template it is eos. Raises Refused.
        """
        if self.template is None:
            return self.eos
        answer = "q7 answers"
        text = self.render([{"role": "user", "content": "q7 asks"}, {"role": "assistant", "content": answer}])
        found = self.marker_pattern.search(text, text.rindex(answer) + len(answer) if answer in text else len(text))
        return self.markers[found.group()] if found else None

    @cached_property
    def declared(self) -> str:
        """What the tokenizer's own file says that it does to text; "" for nothing."""
        if self.backend is None:
            return ""
        normal = type(self.backend.normalizer).__name__ if self.backend.normalizer is not None else ""
        parts = [re.sub(r"\s+", " ", repr(self.backend.normalizer))[:60] if normal else "", *self._puts_space]
        return ", ".join(part for part in parts if part)

    @cached_property
    def _puts_space(self) -> list[str]:
        """What in the file puts a space before a text: these tokenizers may give the text back with it or without."""
        if self.backend is None:
            return []
        said = f"{self.backend.normalizer!r} {self.backend.pre_tokenizer!r}"
        found = {
            "Prepend": f'Prepend(prepend="{SPACE}")' in said,
            "Metaspace": "Metaspace" in said and 'prepend_scheme="never"' not in said,
            "ByteLevel(add_prefix_space)": "ByteLevel(add_prefix_space=True" in said,
        }
        return [name for name, there in found.items() if there]

    def promised(self, text: str) -> set[str]:
        """What decode(encode(text)) may be: the text itself, or the normal form that the tokenizer declares.

        The normal form is computed by the tokenizer's own normaliser; U+2581 counts as a space where spaces are written
        so. Where the file says that a space is put before a text, the text may come back with one more or one less.
        """
        forms = {text}
        if self.backend is None:
            return forms
        normal = self.backend.normalizer.normalize_str(text) if self.backend.normalizer is not None else text
        forms.add(normal)
        if SPACE in f"{self.backend.normalizer!r} {self.backend.pre_tokenizer!r}":
            forms = {form.replace(SPACE, " ") for form in forms} | {text}
        if self._puts_space:
            forms |= {f" {form}" for form in forms} | {form.removeprefix(" ") for form in forms}
        return forms

    def comes_back(self, text: str) -> bool:
        """Whether text survives encode and decode as the tokenizer promises."""
        return self.decode(self.encode(text)) in self.promised(text)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes away by itself."""
    return tempfile.TemporaryDirectory(prefix="groundup-verify-")
