"""Tokenizers of each library, in the one view that outside.py gives the checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from groundup.errors import UserError
from groundup.tokenizer import chat
from groundup.tokenizer.foreign import ForeignTokenizer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.check import NotApplicable
from groundup.verify.outside import AS_TEXT, Messages, OutsideTokenizer, Refused


class Transformers(OutsideTokenizer):
    """PreTrainedTokenizer and PreTrainedTokenizerFast, of transformers 4 and 5."""

    library = "transformers"

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.backend = getattr(given, "backend_tokenizer", None)
        template = getattr(given, "chat_template", None)
        self.template = template.get("default") if isinstance(template, dict) else template
        self.bos, self.eos, self.pad, self.unk = (
            getattr(given, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "unk")
        )
        if self.unk is None and self.backend is not None:
            self.unk = _unknown(self.backend)

    def encode(self, text: str) -> list[int]:
        return list(self.given(text, **AS_TEXT)["input_ids"])

    def encode_default(self, text: str) -> list[int]:
        return list(self.given(text, verbose=False)["input_ids"])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.given(list(texts), **AS_TEXT)["input_ids"]
        return [list(ids) for ids in found]

    def encode_batch_default(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in self.given(list(texts), verbose=False)["input_ids"]]

    def encode_template(self, text: str) -> list[int]:
        return list(self.given(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.given.decode(list(ids), skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        return dict(self.given.get_vocab())

    @cached_property
    def specials(self) -> dict[str, int]:
        named = dict(zip(self.given.all_special_tokens, self.given.all_special_ids, strict=False))
        flagged = {str(t): i for i, t in self.given.added_tokens_decoder.items() if getattr(t, "special", False)}
        return {str(name): i for name, i in {**flagged, **named}.items() if i is not None}

    @cached_property
    def added(self) -> dict[str, int]:
        return {**{str(t): i for i, t in self.given.added_tokens_decoder.items()}, **self.specials}

    def _render(self, messages: Messages, prompt: bool, tools: list[Any] | None) -> str:
        more = {"tools": tools} if tools is not None else {}
        given = [dict(message) for message in messages]
        return str(self.given.apply_chat_template(given, tokenize=False, add_generation_prompt=prompt, **more))

    def render_ids(self, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
        self.render(messages, add_generation_prompt)  # refuses
        given = [dict(message) for message in messages]
        found = self.given.apply_chat_template(
            given,
            tokenize=True,
            add_generation_prompt=add_generation_prompt,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
        )
        return list(found["input_ids"])

    def answered(self, messages: Messages) -> tuple[list[int], list[int]]:
        """(ids, mask of what the template marks as the assistant's with {% generation %})."""
        found = self.given.apply_chat_template(
            [dict(m) for m in messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), list(found["assistant_masks"])

    def saved(self, folder: Path) -> OutsideTokenizer:
        from transformers import AutoTokenizer

        self.given.save_pretrained(folder)
        return OutsideTokenizer.of(AutoTokenizer.from_pretrained(folder, local_files_only=True))


class Tokenizers(OutsideTokenizer):
    """tokenizers.Tokenizer, as tokenizer.json describes it."""

    library = "tokenizers"

    def __init__(self, given: Backend) -> None:
        super().__init__(given)
        self.backend = given
        names = {**self.specials}
        self.bos = next((names[n] for n in ("<s>", "<bos>", "<|begin_of_text|>") if n in names), None)
        self.eos = next((names[n] for n in ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>") if n in names), None)
        self.unk = _unknown(given)

    @cached_property
    def _plain(self) -> Backend:
        """A copy that takes text as text; `given` itself is left as it is."""
        one = _whole(self.given)
        one.encode_special_tokens = True
        return one

    @cached_property
    def _parsing(self) -> Backend:
        return _whole(self.given)

    def encode(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_default(self, text: str) -> list[int]:
        return list(self.given.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(one.ids) for one in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def encode_batch_default(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(one.ids) for one in self.given.encode_batch(list(texts))]

    def encode_template(self, text: str) -> list[int]:
        return list(self._parsing.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.given.decode(list(ids), skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        return dict(self.given.get_vocab(with_added_tokens=True))

    @cached_property
    def specials(self) -> dict[str, int]:
        return {t.content: i for i, t in self.given.get_added_tokens_decoder().items() if t.special}

    @cached_property
    def added(self) -> dict[str, int]:
        return {t.content: i for i, t in self.given.get_added_tokens_decoder().items()}

    def saved(self, folder: Path) -> OutsideTokenizer:
        self.given.save(str(folder / "tokenizer.json"))
        return OutsideTokenizer.of(Backend.from_file(str(folder / "tokenizer.json")))


class SentencePiece(Tokenizers):
    """A SentencePiece model file, read by sentencepiece.py. plain: the same, guarded against control pieces in text."""

    library = "sentencepiece"

    def __init__(self, given: Backend, plain: Backend) -> None:
        super().__init__(given)
        vars(self)["_plain"] = plain

    def saved(self, folder: Path) -> OutsideTokenizer:
        raise NotApplicable("a SentencePiece model is read here, not written")


def of_sentencepiece(path: Path) -> OutsideTokenizer:
    """The tokenizer of a .model file. Errors: UserError for a damaged one."""
    from groundup.verify import sentencepiece

    return SentencePiece(sentencepiece.read(path), sentencepiece.read(path, guarded=True))


class Tiktoken(OutsideTokenizer):
    """tiktoken.Encoding."""

    library = "tiktoken"

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.eos = self.specials.get("<|endoftext|>")
        self.token_bytes = lambda i: b"" if i in set(self.specials.values()) else given.decode_single_token_bytes(i)

    def encode(self, text: str) -> list[int]:
        return list(self.given.encode(text, disallowed_special=()))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in self.given.encode_batch(list(texts), disallowed_special=())]

    def encode_template(self, text: str) -> list[int]:
        return list(self.given.encode(text, allowed_special="all"))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.given.decode(list(ids)))

    @cached_property
    def specials(self) -> dict[str, int]:
        names = sorted(self.given.special_tokens_set)
        return {name: self.given.encode_single_token(name) for name in names}

    @cached_property
    def size(self) -> int:
        return int(self.given.n_vocab)


class Ours(OutsideTokenizer):
    """groundup's own Tokenizer, and the ForeignTokenizer that it makes of others'."""

    library = "groundup"

    def __init__(self, given: Tokenizer) -> None:
        super().__init__(given)
        self.backend = given.backend
        self.template = given.chat_template or None
        self.bos, self.eos = given.bos, given.eos
        self.token_bytes = given.token_bytes
        self.unk = given._unknown() if isinstance(given, ForeignTokenizer) and not given._bytewise else None

    def encode(self, text: str) -> list[int]:
        return self.given.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.given.encode_batch(texts)

    @cached_property
    def _parsing(self) -> Backend:
        return _whole(Backend.from_str(self.given.json))

    def encode_template(self, text: str) -> list[int]:
        return list(self._parsing.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self.given.decode(ids, skip_specials=False)

    def vocabulary(self) -> dict[str, int]:
        return dict(self.given.backend.get_vocab(with_added_tokens=True))

    @cached_property
    def specials(self) -> dict[str, int]:
        return dict(self.given.special_ids)

    @cached_property
    def added(self) -> dict[str, int]:
        return {t.content: i for i, t in self.given.backend.get_added_tokens_decoder().items()}

    def _render(self, messages: Messages, prompt: bool, tools: list[Any] | None) -> str:
        from groundup.tokenizer.template import compiled

        names = {"bos_token": self._name(self.bos), "eos_token": self._name(self.eos)}
        names["pad_token"] = names["eos_token"]
        given = [dict(message) for message in messages]
        return compiled(self.given.chat_template).render(
            messages=given,
            add_generation_prompt=prompt,
            tools=tools,
            documents=None,
            strftime_now=lambda form: datetime.now().strftime(form),
            **names,
        )

    def _name(self, i: int | None) -> str:
        return next((name for name, one in self.specials.items() if one == i), "")

    def render_ids(self, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
        try:
            return list(chat.render(self.given, messages, add_generation_prompt).ids)
        except UserError as error:
            raise Refused(str(error)) from error

    def saved(self, folder: Path) -> OutsideTokenizer:
        self.given.save(folder)
        return OutsideTokenizer.of(Tokenizer.load(folder))


class Plain(OutsideTokenizer):
    """Any object with encode(text) -> ids and decode(ids) -> text.

    Read where it has them: vocab_size or n_vocab; special_ids or special_tokens {name: id}; bos, eos, pad or bos_id,
    ... or bos_token_id, ...; encode_batch; token_bytes; apply_chat_template(messages, add_generation_prompt=...).
    """

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.bos, self.eos, self.pad, self.unk = (self._id(role) for role in ("bos", "eos", "pad", "unk"))
        if callable(getattr(given, "token_bytes", None)):
            self.token_bytes = given.token_bytes
        if callable(getattr(given, "apply_chat_template", None)):
            self.template = str(getattr(given, "chat_template", "") or "")

    def _id(self, role: str) -> int | None:
        found = (getattr(self.given, f"{role}{tail}", None) for tail in ("_token_id", "_id", ""))
        return next((int(i() if callable(i) else i) for i in found if i is not None and not isinstance(i, str)), None)

    def encode(self, text: str) -> list[int]:
        found = self.given.encode(text)
        return [int(i) for i in getattr(found, "ids", found)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        batch = getattr(self.given, "encode_batch", None)
        return [list(ids) for ids in batch(list(texts))] if callable(batch) else super().encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.given.decode(list(ids)))

    def encode_template(self, text: str) -> list[int]:
        return self.encode(text) if self.template is not None else super().encode_template(text)

    @cached_property
    def specials(self) -> dict[str, int]:
        found = (getattr(self.given, name, None) for name in ("special_ids", "special_tokens"))
        return next((dict(one) for one in found if isinstance(one, Mapping)), {})

    @cached_property
    def size(self) -> int:
        found = (getattr(self.given, name, None) for name in ("vocab_size", "n_vocab", "__len__"))
        told = next((one() if callable(one) else one for one in found if one is not None), None)
        return int(told) if told is not None else 0

    def _render(self, messages: Messages, prompt: bool, tools: list[Any] | None) -> str:
        return str(self.given.apply_chat_template([dict(m) for m in messages], add_generation_prompt=prompt))


def _whole(given: Backend) -> Backend:
    """A copy that neither cuts nor pads, and that reads special tokens in a text."""
    one = Backend.from_str(given.to_str())
    one.no_truncation()
    one.no_padding()
    return one


def _unknown(backend: Backend) -> int | None:
    """The id that text without a token of its own becomes; None where there is none, or bytes stand in."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None:
        return backend.token_to_id(name)
    if type(backend.model).__name__ != "Unigram":
        return None
    found = json.loads(backend.to_str())["model"].get("unk_id")
    return None if found is None else int(found)
