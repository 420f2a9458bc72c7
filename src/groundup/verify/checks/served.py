"""Does what goes over HTTP say what the engine says: of the model asked for, to the conversation as it was sent?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from groundup.serve import generate as serving
from groundup.serve.generate import ServedModel
from groundup.serve.protocol import ChatRequest, CompletionRequest
from groundup.verify import draw
from groundup.verify.check import Measurement, check, violations
from groundup.verify.checks.export import extra
from groundup.verify.checks.serve import ASKED, WAIT, alone, both_ways, finished, jobs_of, served
from groundup.verify.corpus import Message
from groundup.verify.subject import Subject

LONG = 24  # messages: more than a history of ten or twenty keeps
WIDE = 20_000  # characters: more than a limit of 4, 8 or 16 thousand keeps


def long_conversation() -> list[Message]:
    """Many turns under two system messages; some words are said twice, one answer is empty."""
    said: list[Message] = [{"role": "system", "content": "Be brief."}]
    for n in range(LONG // 2):
        said.append({"role": "user", "content": "again" if n % 3 else f"question {n}\n"})
        said.append({"role": "assistant", "content": "" if n == 5 else f"answer {n % 4}"})
        if n == 7:
            said.append({"role": "system", "content": "Be long."})
    return [*said, {"role": "user", "content": "and now?"}]


@check(
    "server-keeps-the-conversation",
    "invariance",
    "infer",
    bug="The server drops or reorders messages: a system turn, the middle of a long history, one that was said twice.",
    remedy="Hand all messages on, in order; refuse what does not fit (serve/generate.py, serve/protocol.py).",
    reference="InternLM/lmdeploy issue 464; ddalcu/mlx-serve issue 365; raullenchai/Rapid-MLX issue 1765",
)
def server_keeps_the_conversation(subject: Subject) -> Measurement:
    """Conversations whose prompt is not, id by id, what training makes of them: the last k messages of a long one for
    each k, with system messages at its head and in its middle, repeated and empty messages, and one of 20,000
    characters; and it alone in parts of one character and of many. Exact."""
    model, found, said = served(subject), [], long_conversation()
    asked = [n for n, message in enumerate(said) if message["role"] == "user"]
    wide: Message = {"role": "user", "content": "word " * (WIDE // 5) + "end"}
    sent = [[said[0], wide], *(said[: n + 1] for n in asked), *(said[n:] for n in asked[1:])]
    for messages in sent:
        got = serving.chat_prompts(model, ChatRequest(model="made", messages=messages))  # type: ignore[arg-type]
        if got != [subject.render(messages, True).ids]:
            found.append(f"{len(messages)} messages, the last of {len(messages[-1]['content']):,} characters")
    text = said[asked[-2]]["content"]
    for parts in ([*text], [text[:2], "", text[2:]], ["", text]):
        content: Any = [{"type": "text", "text": part} for part in parts]
        got = serving.chat_prompts(model, ChatRequest(model="made", messages=[{"role": "user", "content": content}]))
        if got != [subject.render([{"role": "user", "content": text}], True).ids]:
            found.append(f"a content in {len(parts)} parts")
    return violations(found, len(sent) + 3)


@check(
    "every-choice-is-its-own",
    "invariance",
    "infer",
    bug="With n above 1, or several prompts, choices change places, share a text, or are counted once.",
    remedy="Choice i is sample i % n of prompt i // n, under its own index; usage sums them (serve/generate.py).",
    reference="BerriAI/litellm issue 3276; vllm-project/vllm issue 8625; openai/openai-agents-python issue 3313",
)
def every_choice_is_its_own(subject: Subject) -> Measurement:
    """Of a chat request for three answers and of a completion request with three prompts of unlike length for two each:
    choices whose text or reason, whole or streamed under their index, are not what the engine makes of that job alone;
    and usage that is not the prompts' tokens, each prompt once, and all answers'. Draws as in
    `served-together-equals-alone`."""
    model = served(subject, max_batch=3)
    shared = {"model": "made", "seed": draw.shifted(11) % 2**31, "max_tokens": 9, "temperature": 1.2}
    chat = ChatRequest(messages=[{"role": "user", "content": ASKED[0]}], n=3, **shared)  # type: ignore[arg-type]
    text = CompletionRequest(prompt=["The river is", "a", "12 + 305 ="], n=2, **shared)
    bodies: list[ChatRequest | CompletionRequest] = [chat, text]
    pairs = both_ways(model, bodies)
    found, looked = [], 0
    for body, (whole, chunks) in zip(bodies, pairs, strict=True):
        jobs = jobs_of(model, body)
        expected = [model.engine.generate([job.prompt], [job.params])[0] for job in jobs]
        prompts = jobs[:: body.n]
        used = {"prompt_tokens": sum(len(job.prompt) for job in prompts)}
        used["completion_tokens"] = sum(len(one.ids) for one in expected)
        used["total_tokens"] = sum(used.values())
        looked += 2 * len(jobs) + 2
        kind = "chat" if body is chat else "completion"
        streamed: dict[int, list[str]] = {n: ["", ""] for n in range(len(jobs))}
        for choice in (chunk["choices"][0] for chunk in chunks[:-1]):
            heard = streamed.setdefault(choice["index"], ["", ""])
            heard[0] += choice["delta"].get("content", "") if body is chat else choice["text"]
            heard[1] += choice["finish_reason"] or ""
        told = {c["index"]: [_text(c), c["finish_reason"]] for c in whole["choices"]}
        wanted = {n: [one.text, one.finish_reason] for n, one in enumerate(expected)}
        for way, answers in (("whole", told), ("streamed", streamed)):
            found += [f"{kind}, {way}: choice {n} is {answers.get(n)}" for n in wanted if answers.get(n) != wanted[n]]
            found += [f"{kind}, {way}: choice {n} was not asked for" for n in answers.keys() - wanted.keys()]
        counts = (whole["usage"], chunks[-1]["usage"])
        found += [f"{kind}: usage {count}, it was {used}" for count in counts if count != used]
    return violations(found, looked)


def _text(choice: Mapping[str, Any]) -> str:
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


# ---- over HTTP ----


async def _post(app: Any, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """(status, body) of one request, handed to the application as a server would."""
    sent, status, got = False, 0, b""
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await left.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, got
        status = message.get("status", status)
        got += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"here")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await asyncio.wait_for(app(scope, receive, send), WAIT)
    left.set()
    return status, got


@check(
    "model-named-is-the-model-that-answers",
    "identity",
    "infer",
    bug="A request is answered by another model than it names, or a field is lost between the wire and the engine.",
    remedy="Look the model up by the request's name, 404 where there is none; see serve/app.py.",
    reference="huggingface/transformers pull 45443; anthony-chaudhary/fak issue 360; mnfst/llm-gateway issue 2620",
)
def model_named_is_the_model_that_answers(subject: Subject) -> Measurement:
    """Of two models of unlike weights, asked for the same through the application: answers (chat and completion, whole
    and streamed) that are not what the engine of the model named makes alone, that name another, whose usage is
    missing where it was asked for or there where not; and a name that nobody has which is not refused."""
    extra("fastapi", "serve")
    from groundup.serve.app import create_app

    engines = {name: subject.engine(subject.chat_model(seed)) for seed, name in enumerate(("first", "second"), 1)}
    models = {name: ServedModel(name, engine, engine.context) for name, engine in engines.items()}
    app, found, looked = create_app(models), [], 0
    fields: dict[str, Any] = {"seed": draw.shifted(12) % 2**31, "max_tokens": 6, "temperature": 0.9, "top_k": 40}
    chat = {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": ASKED[2]}]}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": "The river"}),
    ]
    ways: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]

    async def all_of_them() -> list[tuple[str, str, dict[str, Any], tuple[int, bytes]]]:
        done = []
        for path, body in asked:
            for name in ("second", "first", "third"):
                for more in ways if name != "third" else ways[:1]:
                    whole = {**body, **fields, **more, "model": name}
                    done.append((path, name, whole, await _post(app, path, whole)))
        return done

    try:
        answers = finished(all_of_them())
    finally:
        for model in models.values():
            model.batcher.close()
    for path, name, body, (status, got) in answers:
        looked += 1
        if name == "third":
            found += [f"{path}: a model that nobody has answers {status}"] if status != 404 else []
            continue
        where = f"{path}, {name}{', streamed' if 'stream' in body else ''}"
        if status != 200:
            found.append(f"{where}: {status} {got[:80]!r}")
            continue
        plain = {key: value for key, value in body.items() if not key.startswith("stream")}
        request = (ChatRequest if "messages" in body else CompletionRequest).model_validate(plain)
        expected = alone(models[name], request)
        found += [f"{where}: {what}" for what in _differs(got.decode(), body, name, expected)]
    return violations(found, looked)


def _differs(got: str, body: Mapping[str, Any], name: str, expected: Any) -> list[str]:
    """What of an answer, whole or streamed, is not what the engine made of it."""
    if "stream" not in body:
        chunks, counted = [json.loads(got)], True
        choice = chunks[0]["choices"][0]
        text, finish = _text(choice), choice["finish_reason"]
    else:
        lines = [line.removeprefix("data: ") for line in got.split("\n\n") if line]
        if lines[-1] != "[DONE]":
            return [f"it ends with {lines[-1][:40]!r}"]
        chunks, counted = [json.loads(line) for line in lines[:-1]], "stream_options" in body
        pieces = [choice for chunk in chunks for choice in chunk["choices"]]
        text = "".join(p["delta"].get("content", "") if "delta" in p else p["text"] for p in pieces)
        finish = "".join(p["finish_reason"] or "" for p in pieces)
    n = len(expected.ids)
    used = {"prompt_tokens": expected.n_prompt, "completion_tokens": n, "total_tokens": expected.n_prompt + n}
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    found = [] if (text, finish) == (expected.text, expected.finish_reason) else [f"{text!r}, alone {expected.text!r}"]
    found += [f"it names {chunk['model']}" for chunk in chunks[:1] if chunk["model"] != name]
    return found + ([] if told == ([used] if counted else []) else [f"usage {told}, it was {used}"])
