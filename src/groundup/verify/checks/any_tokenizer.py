"""Anybody's tokenizer and chat template, from outside.

Each is handed an `OutsideTokenizer`. Nothing is known of how a tokenizer is made, so it is held to what it says of
itself: its normaliser, its special tokens, its template. A template that refuses a conversation is not
wrong: that is loud.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundup.tokenizer.audit import ADVERSARIAL
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.corpus import CONVERSATIONS, MICRO_CORPUS
from groundup.verify.outside import Messages, OutsideTokenizer, Refused, scratch

TEXTS = [*ADVERSARIAL, *MICRO_CORPUS[:20]]
LONG = " ".join(MICRO_CORPUS[:160])  # past every length that a tokenizer is cut at by mistake
TALKS: list[list[dict[str, str]]] = [[dict(m) for m in c] for c in CONVERSATIONS if all(m["content"] for m in c)]
# As a template's own words are written by convention: <|...|>, and what SentencePiece's and Gemma's are called.
MARKER = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_[a-z]{1,20}>|</?s>|<[be]os>")
ASKED, SAID = "7q3z", "z9w5"  # no template writes these


def conversations_of(tokenizer: OutsideTokenizer, talks: Sequence[Messages] = TALKS) -> list[Messages]:
    """The conversations that the template renders. NotApplicable without a template, or where it refuses all."""
    told, why = [], ""
    for messages in talks:
        try:
            tokenizer.render_ids(messages)
            told.append(messages)
        except (Refused, LookupError, ValueError) as error:  # the template, or the tokenizer what the template wrote
            why = str(error)
    if not told:
        raise NotApplicable(f"the template refuses every conversation ({why[:120]})")
    return told


def rendered(tokenizer: OutsideTokenizer, messages: Messages, prompt: bool = False) -> str | None:
    """The text, or None where the template refuses."""
    try:
        return tokenizer.render(messages, prompt)
    except Refused:
        return None


def beginnings(talks: Sequence[Messages]) -> Iterator[tuple[int, Messages, int]]:
    """(number, conversation, k) of every beginning of k messages that is not the whole."""
    for n, messages in enumerate(talks):
        for k in range(1, len(messages)):
            yield n, messages, k


def _refused(tokenizer: OutsideTokenizer) -> str:
    return f"characters that it refuses with an error are left out ({tokenizer.refusal})" if tokenizer.refusal else ""


def with_note(found: Measurement, note: str) -> Measurement:
    return Measurement(found.value, found.bound, f"{found.note}; {note}" if note else found.note)


def sentinels(messages: Messages) -> list[dict[str, Any]]:
    """The same conversation with contents that are found again, wherever they are put."""
    return [{**m, "content": f"{ASKED}{n}{SAID}"} for n, m in enumerate(messages)]


def sentinel(n: int) -> str:
    return f"{ASKED}{n}{SAID}"


@also("round-trip", "tokenizer")
def round_trip(tokenizer: OutsideTokenizer) -> Measurement:
    """Texts (adversarial Unicode, white space, look-alikes of specials) that come back neither as they went in nor in
    the normal form that the tokenizer declares; none may.

    The rule: decode(encode(x)) must be x, or N(x), where N is the tokenizer's own normaliser run by itself (NFC, NFKC,
    lower case, SentencePiece's table and its joining of spaces), with U+2581 read as a space where spaces are written
    so, and with one space more or less in front where the file says that one is put there. Whatever N does not account
    for is lost: unknown characters, decoders that guess spaces, clean-up of spaces before punctuation, a truncation.
    What came back in the declared form alone is counted in the note.
    """
    found, normalised, texts = [], 0, tokenizer.readable(TEXTS)
    for text in texts:
        back = tokenizer.decode(tokenizer.encode(text))
        if back not in tokenizer.promised(text):
            found.append(f"{text[:30]!r} comes back as {back[:30]!r}")
        normalised += back != text and back in tokenizer.promised(text)
    note = f"{normalised} come back as declared ({tokenizer.declared})" if normalised else ""
    return with_note(violations(found, len(texts)), note or _refused(tokenizer))


@also("text-cannot-forge-specials", "tokenizer")
def text_cannot_forge_specials(tokenizer: OutsideTokenizer) -> Measurement:
    """Texts that, asked to stay text, became a special token, or an added one that the template puts between two turns
    (a turn's mark that is not flagged special is not guarded by the libraries' switches).

    Asked: split_special_tokens=True in transformers, encode_special_tokens in tokenizers, disallowed_special=() in
    tiktoken. The texts: every marker's name alone, in the middle of words, twice, and the adversarial ones. The token
    for unknown characters may come. The note tells how many get through a naive call: transformers' own
    apply_chat_template is one, so user text must be split before it goes there, or encoded apart.
    """
    markers = {name: i for name, i in tokenizer.turn_marks().items() if i != tokenizer.unk}
    if not markers:
        raise NotApplicable("it has no special tokens")
    guarded = set(markers.values())
    texts = [*(t for name in markers for t in (name, f"x{name}y", f" {name} {name}{name}")), *ADVERSARIAL]
    taken = {text: ids for text in texts if (ids := tokenizer.tried(text)) is not None}
    if not taken:
        raise NotApplicable(f"it refuses every text with the name of a special token ({tokenizer.refusal})")
    found = [repr(text[:40]) for text, ids in taken.items() if guarded & set(ids)]
    naive = sum(_gets_through(tokenizer, name, i) for name, i in markers.items())
    note = f"a naive call lets {naive} of {len(markers)} through" if naive and not found else ""
    return with_note(violations(found, len(taken)), note)


def _gets_through(tokenizer: OutsideTokenizer, name: str, i: int) -> bool:
    try:
        return i in tokenizer.encode_default(f"x{name}y")[1:-1]
    except (LookupError, ValueError):  # refused
        return False


@also("ids-in-range", "tokenizer")
def ids_in_range(tokenizer: OutsideTokenizer) -> Measurement:
    """Ids outside [0, size) over the texts; special tokens of different names with one id; roles out of range.

    One token in several roles (GPT-2's <|endoftext|> is bos, eos and unk) is a choice, two names with one id is not.
    """
    if not tokenizer.size:
        raise NotApplicable("it does not tell how many ids it has")
    texts = tokenizer.readable(TEXTS)
    found = [f"{t[:30]!r}" for t in texts if any(not 0 <= i < tokenizer.size for i in tokenizer.encode(t))]
    names: dict[int, list[str]] = {}
    for name, i in {**tokenizer.added, **tokenizer.specials}.items():
        names.setdefault(i, []).append(name)
    found += [f"{' and '.join(sorted(one))} are both {i}" for i, one in sorted(names.items()) if len(one) > 1]
    roles = {role: getattr(tokenizer, role) for role in ("bos", "eos", "pad", "unk")}
    out = {**{n: i for i, ns in names.items() for n in ns}, **{r: i for r, i in roles.items() if i is not None}}
    found += [f"{name} is {i}, of {tokenizer.size} ids" for name, i in out.items() if not 0 <= i < tokenizer.size]
    return violations(found, len(texts) + len(out))


@also("batch-encodes-alike", "tokenizer")
def batch_encodes_alike(tokenizer: OutsideTokenizer) -> Measurement:
    """Texts whose ids differ between one call for each and one call for all: as plain text, and in a naive call.

    Exact: both are lists of ids. A padding that is stored in the file shows in the naive batch alone.
    """
    texts = tokenizer.readable([t for t in TEXTS if t and not tokenizer.marker_pattern.search(t)] + [LONG])
    found = []
    for way, one, many in (
        ("as text", tokenizer.encode, tokenizer.encode_batch),
        ("naively", tokenizer.encode_default, tokenizer.encode_batch_default),
    ):
        for text, ids in zip(texts, many(texts), strict=True):
            if ids != one(text):
                found.append(f"{way}: {text[:30]!r}")
    return violations(found, 2 * len(texts))


@also("token-bytes-add-up", "tokenizer")
def token_bytes_add_up(tokenizer: OutsideTokenizer) -> Measurement:
    """Texts whose UTF-8 size is not the sum of their tokens' bytes, in no form that the tokenizer declares.

    Also special tokens with bytes. Exact. Only of libraries that tell a token's bytes.
    """
    if tokenizer.token_bytes is None:
        raise NotApplicable("it does not tell a token's bytes")
    found, texts = [], tokenizer.readable(TEXTS)
    for text in texts:
        size = sum(len(tokenizer.token_bytes(i)) for i in tokenizer.encode(text))
        if size not in {len(form.encode()) for form in tokenizer.promised(text)}:
            found.append(f"{text[:30]!r}: {size} of {len(text.encode())}")
    specials = {name: i for name, i in tokenizer.specials.items() if i != tokenizer.unk}
    found += [name for name, i in specials.items() if tokenizer.token_bytes(i)]
    return violations(found, len(texts) + len(specials))


@check(
    "nothing-is-cut-off",
    "identity",
    "tokenizer",
    bug="The file stores a truncation or a padding: long texts end after so many tokens, and nobody is told.",
    remedy="Call no_truncation() and no_padding() before saving; look for truncation and padding in tokenizer.json.",
    reference="daulet/tokenizers issue 30; spiceai/spiceai pull 13416; deepjavalibrary/djl pull 2741",
    looks_at="tokenizer",
)
def nothing_is_cut_off(tokenizer: OutsideTokenizer) -> Measurement:
    """Texts, one of them of 20,000 characters, whose ids in a naive call are not their plain ids, specials around them
    aside. Exact: what a call may add is a special token before or after, nothing between, and nothing may be missing.
    """
    if type(tokenizer).encode_default is OutsideTokenizer.encode_default:
        raise NotApplicable("a naive call is the plain one")
    texts = tokenizer.readable([t for t in MICRO_CORPUS[:40] if not tokenizer.marker_pattern.search(t)] + [LONG])
    special = set(tokenizer.specials.values())
    found = []
    for text in texts:
        plain, naive = tokenizer.encode(text), tokenizer.encode_default(text)
        begin = next((n for n, i in enumerate(naive) if i not in special or i in plain[:1]), len(naive))
        end = len(naive)
        while end - begin > len(plain) and naive[end - 1] in special:
            end -= 1
        if naive[begin:end] != plain:
            found.append(f"{text[:20]!r}: {len(plain)} tokens, {end - begin} in a naive call")
    return violations(found, len(texts))


@check(
    "characters-are-covered",
    "sensitivity",
    "tokenizer",
    bug="Characters without a token become one unknown token: names, code and emoji are lost to the model.",
    remedy="Train with byte fallback or at byte level; add the 256 bytes to the vocabulary.",
    reference=(
        "huggingface/tokenizers issue 450; huggingface/swift-transformers issue 387; ggml-org/llama.cpp issue 28862"
    ),
    looks_at="tokenizer",
)
def characters_are_covered(tokenizer: OutsideTokenizer) -> Measurement:
    """Characters, of 1,000 drawn evenly from all of Unicode that is assigned for use and of all of ASCII, whose ids
    hold the token for unknown characters, or do not give them back as `round-trip` allows. A tokenizer of bytes loses
    none, so none may be.

    Characters that the tokenizer's own normaliser removes (control characters, in NFKC tables) are no loss, and those
    that it refuses with an error are not lost in silence: they are counted in the note.
    """
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    characters = [*map(chr, range(128)), *assigned[128 :: len(assigned) // 1000]]
    found, refused = [], 0
    for one in characters:
        ids = tokenizer.tried(one)
        if ids is None:
            refused += 1
        elif tokenizer.unk in ids or tokenizer.decode(ids) not in tokenizer.promised(one):
            found.append(f"U+{ord(one):04X}")
    if refused == len(characters):
        raise NotApplicable(f"it refuses every character ({tokenizer.refusal})")
    note = f"{refused:,} are refused with an error ({tokenizer.refusal})" if refused else ""
    return with_note(violations(found, len(characters) - refused), note)


@check(
    "tokens-are-reachable",
    "sensitivity",
    "tokenizer",
    bug="Tokens that no text becomes: their rows are never trained, and do anything when they are forced.",
    remedy="Train vocabulary and splitting rules together; look for merges or a normaliser changed since.",
    reference="cohere-ai/magikarp issues 8, 13; Land & Bartolo 2024, arXiv 2405.05417",
    looks_at="tokenizer",
)
def tokens_are_reachable(tokenizer: OutsideTokenizer) -> Measurement:
    """Share of the ordinary tokens whose text, encoded again, does not hold them, alone or beside other characters; the
    share among numbers of two digits and more, where the vocabulary has ten of them, if that is larger.

    As in "Fishing for Magikarp" (section 2.2). Left out: specials, added tokens, tokens that are only a part of a
    character, and those that spell out a byte. Of a large vocabulary 4,000 are drawn evenly, and of its numbers 1,000.
    The bound is 1%: what is drawn tells a share of 1% to sqrt(0.01 * 0.99 / 4000) = 0.16%, and exchanged splitting
    rules or merges lose every token that spans what is now split: tens of percent, or, where only digits are split
    otherwise, all numbers. Qwen 2.5 has 1.5%: words of letters and combining marks (Thai), which its own rule cuts at
    the marks.
    Ids without a token (gaps) are counted in the note.
    """
    vocabulary, added = tokenizer.vocabulary(), set(tokenizer.added.values())
    ordinary = [(i, t) for t, i in vocabulary.items() if i not in added and not re.fullmatch(r"<0x[0-9A-F]{2}>", t)]
    if not ordinary:
        raise NotApplicable("it does not tell its vocabulary")
    ids = [i for i, _ in sorted(ordinary)]
    numbers = [i for i, t in sorted(ordinary) if re.fullmatch(r"[^0-9A-Za-z]?[0-9]{2,}", t)]
    lost, looked = _unreachable(tokenizer, ids[:: max(1, len(ids) // 4000)])
    if not looked:
        return violations([], 0)
    gaps = tokenizer.size - len(set(vocabulary.values()) | added)
    note = f"{len(lost)} of {looked:,} drawn cannot be reached" + (f", {', '.join(lost[:4])}" if lost else "")
    share = len(lost) / looked
    if len(numbers) >= 10:
        gone, of = _unreachable(tokenizer, numbers[:: max(1, len(numbers) // 1000)])
        share = max(share, len(gone) / max(1, of))
        note += f"; {len(gone)} of {of:,} numbers" if gone else ""
    return Measurement(share, 0.01, note + (f"; {gaps} ids have no token" if gaps else ""))


def _unreachable(tokenizer: OutsideTokenizer, ids: Sequence[int]) -> tuple[list[str], int]:
    """(tokens, in words, that their own text does not become, number of tokens that have a text)."""
    lost, looked = [], 0
    for i in ids:
        text = tokenizer.decode([i])
        if "\ufffd" in text or not text:
            continue
        looked += 1
        ways = (text, f"a{text}", f"{text}a", f"a {text}", f" {text}", f"a{text}a", f"({text}", f"1{text}")
        if not any(i in (tokenizer.tried(way) or ()) for way in ways):
            lost.append(f"{text!r} ({i})")
    return lost, looked


@check(
    "specials-are-one-token",
    "identity",
    "tokenizer",
    bug="A template's mark is split into pieces, or is another's id: the model never sees the token it was trained on.",
    remedy="Add the token with special=True before training; compare the names in the template with added_tokens.",
    reference="huggingface/transformers issues 23818, 29774",
    looks_at="tokenizer",
)
def specials_are_one_token(tokenizer: OutsideTokenizer) -> Measurement:
    """Special tokens whose name, in a template's text, is not exactly their one id; and marks that the template writes
    (<|...|>, <start_of_...>, <s>) which are no token at all.

    Exact. The second kind can be meant (Zephyr's <|user|> is plain text): then it costs several tokens a turn, may
    merge with what stands beside it, and anybody can type it.
    """
    found, looked = [], 0
    for name, i in sorted(tokenizer.specials.items()):
        try:
            ids = tokenizer.encode_template(f"a{name}b")
        except (LookupError, ValueError):  # refused
            continue
        looked += 1
        if ids.count(i) != 1:
            found.append(f"{name} becomes {ids[1:-1]}, not {i}")
    if tokenizer.template:
        written = {
            m for talk in conversations_of(tokenizer) for m in MARKER.findall(tokenizer.render(sentinels(talk), False))
        }
        for name in sorted(written - set(tokenizer.specials)):
            looked += 1
            if name not in tokenizer.added:
                found.append(f"{name} is split into {len(tokenizer.encode_template(name))} tokens")
    if not looked:
        raise NotApplicable("it has no special tokens")
    return violations(found, looked)


@check(
    "pad-is-not-the-terminator",
    "identity",
    "tokenizer",
    bug="Padding is the token that ends an answer: whoever masks padding masks the end, and the model never stops.",
    remedy="Give padding a token of its own (or unk), or mask by position; see DataCollatorForLanguageModeling.",
    reference="huggingface/trl issue 976; huggingface/transformers issue 23530; mlabonne/llm-course issue 33",
    looks_at="tokenizer",
)
def pad_is_not_the_terminator(tokenizer: OutsideTokenizer) -> Measurement:
    """1 where pad's id is the id that ends an assistant's turn in the template (eos without one), else 0.

    Exact. transformers' collators set the labels of every pad id to -100, wherever it stands.
    """
    if tokenizer.pad is None:
        raise NotApplicable("it has no padding token")
    try:
        end = tokenizer.terminator()
    except Refused as error:
        raise NotApplicable(f"the template refuses a question and an answer ({error})") from error
    return violations([f"both are {end}"] if end is not None and end == tokenizer.pad else [], 1)


@check(
    "tokenizer-survives-saving",
    "invariance",
    "tokenizer",
    bug="A tokenizer saved and loaded gives other ids: what was set in Python is not in the file that is shipped.",
    remedy="Set normaliser, splitting and special tokens in tokenizer.json itself; compare ids after a reload.",
    reference="huggingface/transformers issues 26773, 26775, 28164",
    looks_at="tokenizer",
)
def tokenizer_survives_saving(tokenizer: OutsideTokenizer) -> Measurement:
    """Texts whose ids differ after save and load; also special ids, roles and the template. Exact."""
    with scratch() as folder:
        again, texts = tokenizer.saved(Path(folder)), tokenizer.readable(TEXTS)
        found = [repr(t[:40]) for t in texts if again.encode(t) != tokenizer.encode(t)]
        found += [
            f"naively: {t[:30]!r}"
            for t in tokenizer.readable(MICRO_CORPUS[:5])
            if again.encode_default(t) != tokenizer.encode_default(t)
        ]
        found += [
            f"{what}: {getattr(tokenizer, what)!r:.40} became {getattr(again, what)!r:.40}"
            for what in ("specials", "bos", "eos", "pad", "template")
            if getattr(again, what) != getattr(tokenizer, what)
        ]
    return violations(found, len(texts) + 10)
