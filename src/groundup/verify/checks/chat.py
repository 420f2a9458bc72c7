"""Is a conversation the same ids in training and in use, and is what is trained the answers and their ends?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from groundup.model.batch import IGNORE
from groundup.tokenizer import chat
from groundup.tokenizer.audit import ADVERSARIAL
from groundup.tokenizer.chat import Message
from groundup.tokenizer.tokenizer import BOS, EOS, SPECIALS, Tokenizer
from groundup.tune import dpo, grpo, pack
from groundup.tune.formats import Problem
from groundup.verify.check import Measurement, check, violations
from groundup.verify.corpus import CONVERSATIONS
from groundup.verify.subject import Subject

# Conversations in which no content looks like template text: there the ids can be compared with the text's.
PLAIN = [c for c in CONVERSATIONS if not any(s in m["content"] or "{" in m["content"] for m in c for s in SPECIALS)]


def answers(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """What training must score of a conversation, worked out without rendering it: each answer and its end."""
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    return [i for content in said for i in [*tokenizer.encode(content), tokenizer.end]]


@check(
    "turns-are-framed",
    "identity",
    "chat",
    bug="A conversation has two BOS, a turn without its end, a role that vanishes, or a turn somebody typed.",
    remedy="See the template and _assemble in tokenizer/chat.py; BOS is written there and nowhere else.",
    reference="princeton-pli/retaining-by-doing issue 5; axolotl-ai-cloud/axolotl issues 1608, 1921",
)
def turns_are_framed(subject: Subject) -> Measurement:
    """Conversations whose special ids are not exactly BOS (role, end)*, or whose other ids do not decode to the
    contents in order; with and without the prompt for an answer."""
    tokenizer, found = subject.tokenizer, []
    special = set(tokenizer.special_ids.values())
    roles = {"user": tokenizer.user, "assistant": tokenizer.assistant, "system": tokenizer.system}
    for n, messages in enumerate(CONVERSATIONS):
        expected = [tokenizer.bos, *(i for m in messages for i in (roles[m["role"]], tokenizer.end))]
        for prompt in (False, True):
            ids = subject.render(messages, prompt).ids
            if [i for i in ids if i in special] != expected + [tokenizer.assistant] * prompt:
                found.append(f"conversation {n}: specials {[i for i in ids if i in special]}")
            if tokenizer.decode(ids) != "".join(m["content"] for m in messages):
                found.append(f"conversation {n}: its text is {tokenizer.decode(ids)[:40]!r}")
    return violations(found, 4 * len(CONVERSATIONS))


@check(
    "ids-are-the-templates-text",
    "invariance",
    "chat",
    bug="Ids and template disagree: transformers, vLLM or llama.cpp, which render the text, see another conversation.",
    remedy="No text may touch a content in the template, so that pieces encode as the whole does (tokenizer/chat.py).",
    reference="hiyouga/LlamaFactory issues 5232, 7238; QwenLM/Qwen3 issue 112",
)
def ids_are_the_templates_text(subject: Subject) -> Measurement:
    """Conversations whose ids, decoded with specials' names, are not the text that the stored template renders."""
    tokenizer = subject.tokenizer
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(tokenizer.chat_template)
    found = []
    for n, messages in enumerate(PLAIN):
        for prompt in (False, True):
            text = template.render(messages=messages, add_generation_prompt=prompt, bos_token=BOS, eos_token=EOS)
            if tokenizer.decode(subject.render(messages, prompt).ids, skip_specials=False) != text:
                found.append(f"conversation {n}")
    return violations(found, 2 * len(PLAIN))


@check(
    "render-is-a-prefix",
    "invariance",
    "chat",
    bug="A later turn changes how earlier ones are rendered: the cache is stale, and training saw other contexts.",
    remedy="The template may not look ahead (no loop.last, no trimming of earlier turns).",
    reference="verl-project/verl issue 6854; QwenLM/Qwen3.8 issues 48, 131",
)
def render_is_a_prefix(subject: Subject) -> Measurement:
    """(conversation, k) for which ids or mask of the first k messages are no prefix of those of all of them."""
    found, looked = [], 0
    for n, messages in enumerate(CONVERSATIONS):
        whole = subject.render(messages)
        for k in range(1, len(messages)):
            part = subject.render(messages[:k])
            looked += 1
            if whole.ids[: len(part.ids)] != part.ids or whole.mask[: len(part.mask)] != part.mask:
                found.append(f"conversation {n}, first {k}")
    return violations(found, looked)


@check(
    "train-ids-equal-serve-ids",
    "invariance",
    "chat",
    bug="The prompt at serving is not what the model was trained to answer: a space, a BOS or a role differs.",
    remedy="Both sides must call tokenizer/chat.py with the stored template; compare template hashes.",
    reference="hiyouga/LlamaFactory issues 5232, 2509; vllm-project/vllm issue 23988",
)
def train_ids_equal_serve_ids(subject: Subject) -> Measurement:
    """Answers whose context in training (ids before the first scored one, rendered in bulk) is not the prompt that
    the engine builds from the same messages."""
    engine = subject.engine(subject.chat_model())
    found, looked = [], 0
    for n, rendered in enumerate(chat.render_many(subject.tokenizer, CONVERSATIONS)):
        messages = CONVERSATIONS[n]
        edges = [t for t in range(1, len(rendered.mask)) if rendered.mask[t] and not rendered.mask[t - 1]]
        turns = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
        looked += len(turns)
        if len(edges) != len(turns):
            found.append(f"conversation {n}: {len(turns)} answers, {len(edges)} are scored")
        found += [
            f"conversation {n}, message {k}"
            for t, k in zip(edges, turns, strict=False)
            if engine.chat_prompt(messages[:k]) != rendered.ids[:t]
        ]
    return violations(found, looked)


@check(
    "answers-scored-prompts-not",
    "locality",
    "chat",
    bug="SFT learns to write the user's turns too, or misses a part of the answers.",
    remedy="The mask of tokenizer/chat.py, shifted once, must be the targets of tune/pack.py.",
    reference="huggingface/open-r1 issues 517, 652; huggingface/trl issue 3279",
)
def answers_scored_prompts_not(subject: Subject) -> Measurement:
    """Conversations of a packed SFT batch whose scored targets are not exactly the ids of their answers and ends.

    Also places where a target is not the token that follows in the same conversation.
    """
    tokenizer, source = subject.tokenizer, packed(subject)
    found = []
    for row in source.rows:
        batch = source.batch([row])
        for number, index in enumerate(row):
            here = batch.documents[0] == number
            targets, tokens = batch.targets[0][here].tolist(), batch.tokens[0][here].tolist()
            if [i for i in targets if i != IGNORE] != answers(tokenizer, CONVERSATIONS[index]):
                found.append(
                    f"conversation {index}: scored {tokenizer.decode([i for i in targets if i >= 0], False)[:60]!r}"
                )
            found += [
                f"conversation {index}: the target at {t} is not the next token"
                for t in range(len(tokens) - 1)
                if targets[t] not in (IGNORE, tokens[t + 1])
            ]
    return violations(found, len(source.chats))


def packed(subject: Subject) -> pack.PackedChats:
    """The sample conversations as SFT packs them, several a row."""
    chats = [subject.render(messages) for messages in CONVERSATIONS]
    longest = max(len(c.ids) for c in chats)
    return pack.PackedChats(chats, longest + 8, 2, 1, subject.tokenizer.eos, seed=0)


@check(
    "terminator-is-trained",
    "sensitivity",
    "chat",
    bug="The end of turn is masked (as padding often is): the model never stops talking.",
    remedy="Mask by position, never by id; the end belongs to the answer (tokenizer/chat.py, tune/pack.py).",
    reference="huggingface/trl issue 976; axolotl-ai-cloud/axolotl issue 3754; huggingface/transformers issue 23530",
)
def terminator_is_trained(subject: Subject) -> Measurement:
    """|answers - scored targets that are the end-of-turn id| over packed conversations; all answers count, the empty
    one too. Padding, whose id is EOS, must not be scored: each scored EOS counts as well."""
    source, tokenizer = packed(subject), subject.tokenizer
    targets = source.batch(source.rows).targets
    expected = sum(m["role"] == "assistant" for messages in CONVERSATIONS for m in messages)
    ends, paddings = int((targets == tokenizer.end).sum()), int((targets == tokenizer.eos).sum())
    return Measurement(float(abs(expected - ends) + paddings), 0.0, f"{expected} answers, {ends} ends scored")


@check(
    "terminator-stops",
    "sensitivity",
    "chat",
    bug="The trained terminator is not among the stop ids: answers run on to the token limit, litter included.",
    remedy="stop_ids=(tokenizer.end, tokenizer.eos) wherever a conversation is continued (tune/*.py).",
    reference="vllm-project/vllm issue 4180; Blaizzy/mlx-vlm pull 2112; huggingface/trl issue 734",
)
def terminator_stops(subject: Subject) -> Measurement:
    """Callers (GRPO's rollouts, sampled DPO pairs, held-out accuracy) that ask the engine for answers without the end
    of turn and the end of text as stop ids."""
    from groundup.infer.engine import Completion, Engine

    tokenizer = subject.tokenizer
    model = subject.chat_model()
    problems = [Problem([{"role": "user", "content": "1 + 1?"}], "2", "number")]
    asked: list[Any] = []

    def listen(self: Engine, prompts: Sequence[Any], params: Any, *_: Any, **__: Any) -> list[Completion]:
        asked.extend(params if isinstance(params, list) else [params])
        return [Completion([tokenizer.end], "2", "stop", [0.0], len(p)) for p in prompts]

    callers = {
        "rollouts": lambda: grpo.Rollouts(model, tokenizer, problems, grpo_section(subject), 0).sample(problems, 0),
        "sampled pairs": lambda: dpo.sample_pairs(model, tokenizer, problems, 2, 0),
        "held-out accuracy": lambda: grpo.held_out_accuracy(model, tokenizer, problems, 4),
    }
    found = []
    original = Engine.generate
    Engine.generate = listen  # type: ignore[method-assign,assignment]
    try:
        for name, call in callers.items():
            asked.clear()
            call()
            if not asked or any(not {tokenizer.end, tokenizer.eos} <= set(p.stop_ids) for p in asked):
                found.append(name)
    finally:
        Engine.generate = original  # type: ignore[method-assign]
    return violations(found, len(callers))


def grpo_section(subject: Subject) -> Any:
    """The recipe's GRPO section at micro size, or the default one."""
    from groundup.recipe.schema import ChatSource, GrpoSection

    section = subject.recipe.grpo or GrpoSection(sources=[ChatSource(builtin="town")])
    return section.model_copy(update={"group_size": 4, "max_new_tokens": 12, "batch_size": 2, "micro_batch_size": 3})


@check(
    "packing-keeps-every-chat",
    "identity",
    "chat",
    bug="Packing loses conversations, or cuts them: most of a data set can vanish, and the loss still falls.",
    remedy="See pack() in tune/pack.py; what does not fit must be counted in too_long.",
    reference="huggingface/trl pulls 4632, 5076, issues 4554, 5075",
)
def packing_keeps_every_chat(subject: Subject) -> Measurement:
    """Conversations that are not in exactly one row or counted as left out, rows over the context, and ids that do
    not come back from the rows; 60 conversations of many lengths, a context that the longest do not fit."""
    texts = [t for t in ADVERSARIAL if t] * 2
    talks = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": t}] for t in texts]
    chats = [subject.render(messages) for messages in talks]
    lengths = sorted(len(c.ids) - 1 for c in chats)
    context = lengths[int(0.9 * len(lengths))]
    source = pack.PackedChats(chats, context, 2, 2, subject.tokenizer.eos, seed=0)
    found = []
    if sorted(i for row in source.rows for i in row) != list(range(len(source.chats))):
        found.append("some conversation is in no row, or in two")
    if len(source.chats) + source.too_long + source.unscored != len(chats):
        found.append(f"{len(chats)} went in, {len(source.chats)} are packed, {source.too_long} are counted as too long")
    if source.too_long != sum(n > context for n in lengths):
        found.append(f"{source.too_long} are counted as too long, {sum(n > context for n in lengths)} are")
    for row in source.rows:
        batch = source.batch([row])
        for number, index in enumerate(row):
            if batch.tokens[0][batch.documents[0] == number].tolist() != source.chats[index].ids[:-1]:
                found.append(f"conversation {index} is cut")
    return violations(found, len(chats))
