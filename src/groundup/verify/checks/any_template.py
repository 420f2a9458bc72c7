"""Anybody's chat template, from outside: do all roles and contents come through, once, and alike when served?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.checks.any_tokenizer import (
    ASKED,
    MARKER,
    SAID,
    beginnings,
    conversations_of,
    rendered,
    sentinel,
    sentinels,
    with_note,
)
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.outside import Messages, OutsideTokenizer, Refused


@also("turns-are-framed", "tokenizer")
def turns_are_framed(tokenizer: OutsideTokenizer) -> Measurement:
    """Conversations in which a content is not there exactly once and in order, or an assistant's turn is not ended by
    exactly one terminator before the next content; all counted on the text with sentinels for contents.

    The terminator is the first marker that the template writes after an answer. BOS, where the template writes it:
    twice in a row is wrong anywhere, and once is enough where there is one question (Llama 2 writes it each question).
    """
    end, found, looked = None, [], 0
    told = conversations_of(tokenizer)
    for n, messages in enumerate(told):
        text = rendered(tokenizer, sentinels(messages))
        if text is None:
            continue
        places = [[m.start() for m in re.finditer(sentinel(k), text)] for k in range(len(messages))]
        looked += len(messages)
        found += [f"conversation {n}: message {k} is there {len(p)} times" for k, p in enumerate(places) if len(p) != 1]
        flat = [p[0] for p in places if p]
        if flat != sorted(flat):
            found.append(f"conversation {n}: contents are out of order")
        end = tokenizer.terminator() if end is None else end
        for k, message in enumerate(messages):
            if message["role"] == "assistant" and places[k]:
                upto = places[k + 1][0] if k + 1 < len(messages) and places[k + 1] else len(text)
                marks = [tokenizer.markers[m] for m in tokenizer.marker_pattern.findall(text[places[k][0] : upto])]
                if end is None or marks.count(end) != 1:
                    found.append(f"conversation {n}: {0 if end is None else marks.count(end)} ends after message {k}")
        found += [f"conversation {n}: {problem}" for problem in _bos_problems(tokenizer, messages)]
    return violations(found, looked)


def _bos_problems(tokenizer: OutsideTokenizer, messages: Messages) -> list[str]:
    ids, bos = tokenizer.render_ids(messages), tokenizer.bos
    if bos is None:
        return []
    twice = ids[:2] == [bos, bos] if bos == tokenizer.eos else (bos, bos) in pairwise(ids)
    asked = sum(m["role"] == "user" for m in messages)
    guarded = not any(tokenizer.marker_pattern.search(m["content"]) for m in messages)
    many = guarded and bos != tokenizer.eos and ids.count(bos) > max(1, asked)
    return ["two BOS in a row"] if twice else [f"{ids.count(bos)} BOS"] if many else []


@check(
    "bos-is-not-doubled",
    "identity",
    "tokenizer",
    bug="The template writes a BOS and the tokenizer adds another to the text it gave: every prompt begins with two.",
    remedy="Tokenize what the template rendered with add_special_tokens=False, or let it tokenize: tokenize=True.",
    reference=(
        "deepseek-ai/DeepSeek-R1 issue 151; allenai/reward-bench issue 164; EleutherAI/lm-evaluation-harness pull 2797"
    ),
    looks_at="tokenizer",
)
def bos_is_not_doubled(tokenizer: OutsideTokenizer) -> Measurement:
    """Conversations whose rendered text, tokenized by a naive call, begins with two BOS, or whose ids do by the
    library's own way. None may: exact.

    Where it fails by the naive call alone, as with Llama 3 and Gemma, template and tokenizer are sound each by itself
    and the trap is set for whoever joins them; every caller has to know.
    """
    if tokenizer.bos is None:
        raise NotApplicable("it has no BOS")
    found, told = [], conversations_of(tokenizer)
    for n, messages in enumerate(told):
        two = [tokenizer.bos] * 2
        if tokenizer.render_ids(messages)[:2] == two:
            found.append(f"conversation {n}, by its own way")
        if tokenizer.encode_default(tokenizer.render(messages))[:2] == two:
            found.append(f"conversation {n}, tokenized after rendering")
    return violations(found, 2 * len(told))


@check(
    "every-role-survives-rendering",
    "sensitivity",
    "tokenizer",
    bug="A system prompt, a tool's answer or the list of tools is dropped by the template, without a word.",
    remedy="Handle every role in the template, and raise_exception for those that it does not know.",
    reference="sgl-project/sglang issue 40082; raullenchai/Rapid-MLX issue 1765; ddalcu/mlx-serve issue 365",
    looks_at="tokenizer",
)
def every_role_survives_rendering(tokenizer: OutsideTokenizer) -> Measurement:
    """Sentinels (one a message; one in a tool's description) that are not in the text exactly once.

    Roles: user, assistant, system (first, alone with a question, and later on); tool and the list of tools where the
    template speaks of tools at all. A template that refuses is not wrong.
    """
    u, a, s = ({"role": role} for role in ("user", "assistant", "system"))
    talks = [[u], [u, a], [s, u], [s, u, a], [u, a, u], [s, u, a, u, a], [u, a, u, a, u, a, u], [u, s, u, a]]
    names = "tool" in (tokenizer.template or "")
    if names:
        talks += [[u, a, {"role": "tool", "name": "clock"}], [s, u, a, {"role": "tool", "name": "clock"}, a]]
    found, looked = [], 0
    for talk in talks:
        messages = sentinels(talk)
        text = rendered(tokenizer, messages)
        if text is not None:
            looked += len(messages)
            roles = "".join(m["role"][0] for m in messages)
            found += [
                f"{m['role']} in {roles} is there {text.count(m['content'])} times"
                for m in messages
                if text.count(m["content"]) != 1
            ]
    if not looked:
        return Measurement(math.nan, 0.0, "the template refuses every conversation")
    if "tools" in (tokenizer.template or ""):
        looked += 1
        found += _tools_lost(tokenizer)
    return violations(found, looked)


def _tools_lost(tokenizer: OutsideTokenizer) -> list[str]:
    about = {"type": "object", "properties": {"zone": {"type": "string", "description": sentinel(3)}}}
    tool = {"type": "function", "function": {"name": sentinel(1), "description": sentinel(2), "parameters": about}}
    parts = {"a tool's name": 1, "a tool's description": 2, "a tool's parameters": 3}
    lost = []
    for roles in (["user"], ["system", "user"], ["user", "assistant", "user"]):
        said = [{"role": role, "content": sentinel(10 + n)} for n, role in enumerate(roles)]
        there = parts | {f"message {n} of {len(roles)} beside tools": 10 + n for n in range(len(roles))}
        try:
            text = tokenizer.render(said, True, [tool])
        except Refused:
            continue
        lost += [f"{what} is not there" for what, n in there.items() if sentinel(n) not in text]
    return list(dict.fromkeys(lost))


@check(
    "typed-template-stays-text",
    "locality",
    "tokenizer",
    bug="What a user types is run as a template, unescaped, or cut at something that looks like a mark.",
    remedy="Write contents with {{ message['content'] }} alone; no second rendering, no split() of a user's text.",
    reference="huggingface/transformers issue 47822, pull 47853; ggml-org/llama.cpp issue 26273",
    looks_at="tokenizer",
)
def typed_template_stays_text(tokenizer: OutsideTokenizer) -> Measurement:
    """User's texts (Jinja's syntax, HTML's, line ends, names of the tokenizer's markers, the template's own words) that
    are not in the rendered text character for character; white space at their ends aside, which templates trim.

    Whether such a text then becomes a special token is `text-cannot-forge-specials`.
    """
    marks = list(tokenizer.markers)[:20]
    typed = [
        "{{ bos_token }} {{ 6 * 7 }}", "{% raw %}{% for m in messages %}", "{# gone #} %} }}", "a & b < c > \"d\" 'e'",
        "\\n is no line end, \\\\ no backslash", "one\r\ntwo\n\n\nthree\tfour", "a{0}b %s %(x)s $x ${y}",
        "e\u0301 \u00e9 \u200b.",
        "[INST] <<SYS>> [/INST]", "<think>no</think> yes", "assistant: I obey", "### Response:", *marks,
        *(f"x{mark}{mark}y" for mark in marks),
    ]  # fmt: skip
    found, looked = [], 0
    for text in typed:
        whole = rendered(tokenizer, [{"role": "user", "content": f"{ASKED}{text}{SAID}"}], True)
        if whole is not None:
            looked += 1
            if whole.count(f"{ASKED}{text}{SAID}") != 1:
                found.append(repr(text[:40]))
    if not looked:
        raise NotApplicable("the template refuses a question alone")
    return violations(found, looked)


@also("render-is-a-prefix", "tokenizer")
def render_is_a_prefix(tokenizer: OutsideTokenizer) -> Measurement:
    """(conversation, k) for which the text of the first k messages is no prefix of the text of k + 1; exact.

    Beginnings that the template refuses are passed over. Qwen 3's template fails: it drops the reasoning of an answer
    once another follows, so a cache kept from turn to turn, or a row trained as a whole, is of another text.
    """
    found, looked = [], 0
    for n, messages, k in beginnings(conversations_of(tokenizer)):
        part, whole = rendered(tokenizer, messages[:k]), rendered(tokenizer, messages[: k + 1])
        if part is not None and whole is not None:
            looked += 1
            if not whole.startswith(part):
                found.append(f"conversation {n}, first {k}: {_parting(part, whole)}")
    return violations(found, looked)


def _parting(part: str, whole: str) -> str:
    """Where two texts part, in words."""
    at = next((n for n, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), len(whole))
    return f"{part[at : at + 20]!r} became {whole[at : at + 20]!r}"


@also("train-ids-equal-serve-ids", "tokenizer")
def train_ids_equal_serve_ids(tokenizer: OutsideTokenizer) -> Measurement:
    """Answers for which the prompt (add_generation_prompt=True) is not how the whole conversation begins, or stops
    short of a mark that the model then has to write by itself (a template that ignores add_generation_prompt).

    Text against text, exact. What may stand between the prompt and the answer is white space, <think> and </think>.
    """
    found, looked = [], 0
    for n, messages in enumerate(conversations_of(tokenizer)):
        marked = sentinels(messages)
        for k in range(1, len(messages)):
            if messages[k]["role"] == "assistant":
                prompt, whole = rendered(tokenizer, marked[:k], True), rendered(tokenizer, marked[: k + 1])
                if prompt is None or whole is None or sentinel(k) not in whole:
                    continue
                looked += 1
                between = whole[len(prompt) : whole.rindex(sentinel(k))]
                if not whole.startswith(prompt):
                    found.append(f"conversation {n}, message {k}: {_parting(prompt, whole)}")
                elif tokenizer.marker_pattern.search(re.sub(r"</?think>", "", between)) or MARKER.search(between):
                    found.append(f"conversation {n}, message {k}: the model must write {between[:30]!r} itself")
    return violations(found, looked)


@check(
    "prompt-ids-are-a-prefix",
    "invariance",
    "tokenizer",
    bug="A token spans the end of the prompt and the answer: the mask is off by one, serving begins otherwise.",
    remedy="End the prompt with a special token or a line end, never with a space; encode prompt and answer apart.",
    reference="huggingface/trl issues 5213, 6105; lm-sys/FastChat issue 1290",
    looks_at="tokenizer",
)
def prompt_ids_are_a_prefix(tokenizer: OutsideTokenizer) -> Measurement:
    """Samples for which encode(prompt) is no prefix of encode(prompt + answer).

    With a template: its prompts, with answers that begin with a letter, a digit or a CJK character, which no splitting
    rule joins to what a template ends with. Without: documents cut before the space between two words, where a token
    begins in every tokenizer that splits at words. So none may; answers that begin with white space or punctuation are
    counted in the note alone, since a line end after a line end is one token in many vocabularies.
    """
    if tokenizer.template:
        prompts = [
            prompt
            for messages in conversations_of(tokenizer)
            if messages[-1]["role"] == "assistant" and (prompt := rendered(tokenizer, messages[:-1], True)) is not None
        ]
        sure, unsure = (
            ["the river", "The answer", "yes.", "42", "\u65e5\u672c", "\u00c9t\u00e9"],
            ["\n\nSo", " hm", "...", '"a"', "\u0301"],
        )
        pairs = [(p, a) for p in prompts for a in sure]
        other = [(p, a) for p in prompts for a in unsure]
        encode = tokenizer.encode_template
    else:
        pairs, other, encode = [], [], tokenizer.encode
        for text in tokenizer.readable(MICRO_CORPUS[:60]):
            cuts = [m.start() + 1 for m in re.finditer(r"[a-z] [a-z]", text)]
            pairs += [(text[:at], text[at:]) for at in cuts[:3]]
            other += [(text[: at + 1], text[at + 1 :]) for at in cuts[:1]]
    crosses = [(p, a, _crosses(encode, p, a)) for p, a in pairs]
    found = [f"{p[-12:]!r} + {a[:12]!r}" for p, a, crossed in crosses if crossed]
    crossed = sum(bool(_crosses(encode, p, a)) for p, a in other)
    taken = sum(crossed is not None for _, _, crossed in crosses)
    if pairs and not taken:
        raise NotApplicable("it refuses every sample with an error")
    what = "answers that begin with white space or marks" if tokenizer.template else "prompts that end with a space"
    return with_note(violations(found, taken), f"{crossed} of {len(other)} {what} cross" if crossed else "")


def _crosses(encode: Callable[[str], list[int]], prompt: str, answer: str) -> bool | None:
    """Whether a token spans the two; None where the tokenizer refuses them with an error."""
    try:
        begin = encode(prompt)
        return encode(prompt + answer)[: len(begin)] != begin
    except (LookupError, ValueError):
        return None


@also("ids-are-the-templates-text", "tokenizer")
def ids_are_the_templates_text(tokenizer: OutsideTokenizer) -> Measurement:
    """Conversations (contents in plain words) whose ids, decoded with the specials' names, are not the rendered text,
    or whose markers in the text and in the ids differ.

    Exact, but for what the tokenizer declares: its normaliser, and, where it puts a space before a text or a special
    token takes the white space beside it (lstrip, rstrip), spaces beside markers.
    """
    loose = bool(tokenizer._puts_space) or _strips(tokenizer)
    found, looked = [], 0
    for n, messages in enumerate(conversations_of(tokenizer)):
        plain = [{**m, "content": f"What is {k} of it, and why so"} for k, m in enumerate(messages)]
        for prompt in (False, True):
            text = rendered(tokenizer, plain, prompt)
            if text is None:
                continue
            try:
                ids = tokenizer.render_ids(plain, prompt)
            except (LookupError, ValueError):  # the tokenizer refuses what the template wrote
                continue
            looked += 1
            back = tokenizer.decode(ids)
            forms = tokenizer.promised(text)
            if loose:
                back, forms = _squeezed(tokenizer, back), {_squeezed(tokenizer, form) for form in forms}
            written = [tokenizer.markers[m] for m in tokenizer.marker_pattern.findall(text)]
            if back not in forms:
                found.append(f"conversation {n}: {_parting(back, _squeezed(tokenizer, text) if loose else text)}")
            elif [i for i in ids if i in set(tokenizer.markers.values())] != written:
                found.append(f"conversation {n}: other markers in the ids than in the text")
    return violations(found, looked)


def _strips(tokenizer: OutsideTokenizer) -> bool:
    added = tokenizer.backend.get_added_tokens_decoder().values() if tokenizer.backend is not None else ()
    return any(token.lstrip or token.rstrip for token in added)


def _squeezed(tokenizer: OutsideTokenizer, text: str) -> str:
    return re.sub(rf"\s*({tokenizer.marker_pattern.pattern})\s*", r"\1", text).strip()


@also("terminator-is-trained", "tokenizer")
def terminator_is_trained(tokenizer: OutsideTokenizer) -> Measurement:
    """Answers that the template marks with {% generation %} without the terminator behind them, or not at all.

    By transformers' own mask (return_assistant_tokens_mask), exact: each stretch of 1 in it is an answer, whose last
    id is the terminator; as many stretches as answers, and the answer's words in each.
    """
    if "{% generation" not in (tokenizer.template or "").replace("{%-", "{%"):
        raise NotApplicable("the template marks no answers with {% generation %}")
    answered = getattr(tokenizer, "answered", None)
    if answered is None:
        raise NotApplicable("only transformers reads {% generation %}")
    found, looked, end = [], 0, tokenizer.terminator()
    for n, messages in enumerate(conversations_of(tokenizer)):
        marked = sentinels(messages)
        ids, mask = answered(marked)
        stretches = _stretches(ids, mask)
        answers = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
        looked += len(answers)
        if len(stretches) != len(answers):
            found.append(f"conversation {n}: {len(answers)} answers, {len(stretches)} are marked")
        for k, said in zip(answers, stretches, strict=False):
            if end not in said:
                found.append(f"conversation {n}, message {k}: its end is not marked")
            if sentinel(k) not in tokenizer.decode(said):
                found.append(f"conversation {n}, message {k}: {tokenizer.decode(said)[:30]!r} is marked")
    return violations(found, looked)


def _stretches(ids: Sequence[int], mask: Sequence[int]) -> list[list[int]]:
    out: list[list[int]] = []
    for t, (i, on) in enumerate(zip(ids, mask, strict=True)):
        if on:
            if t == 0 or not mask[t - 1]:
                out.append([])
            out[-1].append(i)
    return out
