"""The API as a client sees it: OpenAI's shapes, and answers that are right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from groundup.serve.app import ServedModel, create_app
from groundup.serve.feedback import FeedbackStore
from groundup.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")
CHAT = "/v1/chat/completions"
QUESTION = "Where does Anna live?"


@pytest.fixture
def client(app: Any) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def ask(content: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": "sft", "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


def stream(client: TestClient, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed response; checks how it is framed."""
    with client.stream("POST", url, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = "".join(response.iter_text()).split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices)


def test_served_ids_are_the_ids_of_training(client: TestClient, lesson: tuple[str, str]) -> None:
    """Bug: another template, a doubled BOS, a missing generation prompt or stop id: the learned answer is lost."""
    question, learned = lesson
    body = client.post(CHAT, json=ask(question)).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": learned}
    assert body["choices"][0]["finish_reason"] == "stop"


def test_streamed_text_is_the_whole_text(client: TestClient, lesson: tuple[str, str]) -> None:
    """Bug: a multi-byte character cut between chunks, a lost first or last token, ids that change midway."""
    question, learned = lesson
    chunks = stream(client, CHAT, ask(question))
    assert text_of(chunks) == learned
    assert len(chunks) > 4, "it came in one piece"
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_completion_continues_the_text(client: TestClient, story: str, tokenizer: Tokenizer) -> None:
    """Bug: a completion without the BOS that training documents had, or one wrapped in the chat template."""
    start, rest = story[:29], story[29:]
    body = {"model": "base", "prompt": start, "temperature": 0}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == rest
    assert answer["usage"]["prompt_tokens"] == 1 + len(tokenizer.encode(start))
    chunks = stream(client, "/v1/completions", body)
    assert text_of(chunks) == rest
    assert {chunk["id"] for chunk in chunks} != {answer["id"]}
    assert (
        client.post("/v1/completions", json={"model": "base", "temperature": 0}).json()["choices"][0]["text"] == story
    )


def test_completion_takes_ids_and_lists(client: TestClient, tokenizer: Tokenizer, story: str) -> None:
    """Bug: a list of ids read as texts, choices of several prompts in the wrong order, an id past the vocabulary."""
    ids = [tokenizer.bos, *tokenizer.encode(story[:29])]
    body = {"model": "base", "temperature": 0}
    for prompt in (ids, [ids]):
        answer = client.post("/v1/completions", json={**body, "prompt": prompt}).json()
        assert answer["choices"][0]["text"] == story[29:]
    two = client.post("/v1/completions", json={**body, "prompt": [story[:29], story[:41]], "n": 2}).json()
    texts = [story[29:], story[29:], story[41:], story[41:]]
    assert [(c["index"], c["text"]) for c in two["choices"]] == list(enumerate(texts))
    bad = client.post("/v1/completions", json={**body, "prompt": [0, 10**6]})
    assert bad.status_code == 400 and "1000000" in bad.json()["error"]["message"]


def test_usage_counts_prompt_and_answer(client: TestClient, models: dict[str, ServedModel], answer: str) -> None:
    """Bug: usage off by the template's tokens, missing in a stream, or there without being asked for."""
    n_prompt = len(models["sft"].engine.chat_prompt([{"role": "user", "content": QUESTION}]))
    used = client.post(CHAT, json=ask()).json()["usage"]
    n_answer = len(models["sft"].engine.tokenizer.encode(answer)) + 1  # and <|end|>
    assert used == {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}
    chunks = stream(client, CHAT, ask(stream_options={"include_usage": True}))
    assert chunks[-1]["usage"] == used and chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert all("usage" not in chunk for chunk in stream(client, CHAT, ask()))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_and_says_so(client: TestClient, field: str, answer: str) -> None:
    """Bug: the newer name of the limit is ignored; finish_reason says "stop" of a cut answer."""
    body = client.post(CHAT, json=ask(**{field: 5})).json()
    assert body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"
    chunks = stream(client, CHAT, ask(**{field: 5}))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert answer.startswith(text_of(chunks)) and text_of(chunks)


@pytest.mark.parametrize("stop", ["brook. She b", ["never said", "e village"], "Anna", "."])
def test_a_stop_string_is_found_across_tokens_and_never_shown(client: TestClient, stop: Any, answer: str) -> None:
    """Bug: a stop string that spans tokens is missed, or its first half leaks into the stream."""
    first = min(answer.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in answer)
    choice = client.post(CHAT, json=ask(stop=stop)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (answer[:first], "stop")
    assert text_of(stream(client, CHAT, ask(stop=stop))) == answer[:first]


def test_temperature_zero_is_greedy_and_seeds_repeat(client: TestClient) -> None:
    """Bug: `temperature or 1.0` turns 0 into the default; a seed that is not used; n samples that are all one."""
    hot = ask("Tell me", temperature=3.0, max_tokens=24)

    def contents(**fields: Any) -> list[str]:
        choices = client.post(CHAT, json={**hot, **fields}).json()["choices"]
        return [choice["message"]["content"] for choice in choices]

    assert len({contents(temperature=0)[0] for _ in range(3)}) == 1
    assert contents(seed=7) == contents(seed=7) != contents(seed=8)
    assert contents(seed=-7) == contents(seed=-7)
    assert len({contents()[0] for _ in range(4)}) > 1, "requests without a seed must differ"
    four = contents(n=4, seed=7)
    assert len(set(four)) == 4 and four[0] == contents(seed=7)[0]
    assert contents(seed=7, top_k=1) == contents(temperature=0)
    assert contents(seed=7, top_p=1e-6) == contents(temperature=0)


def test_several_answers_stream_side_by_side(client: TestClient) -> None:
    """Bug: choices of one stream mixed up, or the stream that ends with the first of them."""
    body = ask("Tell me", temperature=2.0, max_tokens=24, n=3, seed=3)
    chunks = stream(client, CHAT, body)
    whole = client.post(CHAT, json=body).json()["choices"]
    assert [text_of(chunks, i) for i in range(3)] == [choice["message"]["content"] for choice in whole]
    ends = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


def test_harmless_fields_and_text_parts_are_taken(client: TestClient, answer: str) -> None:
    """Bug: a client that sends `user`, or content as parts, is refused, though OpenAI's own takes it."""
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    body = ask(
        parts,
        user="me",
        store=False,
        logprobs=False,
        presence_penalty=0,
        tools=[],
        metadata={"a": 1},
        min_p=0,
        ignore_eos=False,
        tool_choice="none",
        repetition_penalty=1,
    )
    headers = {"Authorization": "Bearer anything"}
    said = client.post(CHAT, json=body, headers=headers).json()
    assert said["choices"][0]["message"]["content"] == answer


@pytest.mark.parametrize(
    "fields",
    [{"logprobs": True}, {"logprobs": 0}, {"tools": [{"type": "function"}]}, {"presence_penalty": 0.5},
     {"response_format": {"type": "json_object"}}, {"logit_bias": {"5": -100}}, {"min_p": 0.1}, {"min_tokens": 4},
     {"repetition_penalty": 1.2}, {"ignore_eos": True}, {"stop_token_ids": [7]}, {"tool_choice": "required"},
     {"guided_regex": "[0-9]+"}],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_not_ignored(client: TestClient, fields: dict[str, Any]) -> None:
    """Bug: a knob that does nothing: the client believes it has log-probs, tools or JSON."""
    refused = client.post(CHAT, json=ask(**fields))
    assert refused.status_code == 400
    assert next(iter(fields)) in refused.json()["error"]["message"]


def test_a_call_of_a_tool_is_refused_not_dropped(client: TestClient) -> None:
    """Bug: the history holds a call that the prompt never shows, and the model answers to half of the talk."""
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]
    refused = client.post(CHAT, json={**ask(), "messages": turns})
    assert refused.status_code == 400 and "tool_calls" in str(refused.json()["error"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"temperature": -1}, "temperature"), ({"messages": []}, "messages"), ({"n": 99}, "n"),
     ({"top_p": 0}, "top_p"), ({"max_tokens": 0}, "max_tokens"), ({"seed": "x"}, "seed")],
)  # fmt: skip
def test_bad_values_come_back_as_openai_errors(client: TestClient, fields: dict[str, Any], param: str) -> None:
    """Bug: FastAPI's own 422 with "detail", which OpenAI clients cannot read."""
    response = client.post(CHAT, json=ask(**fields))
    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_other_errors_have_the_same_shape(client: TestClient) -> None:
    """Bug: a wrong address, method or broken JSON answered in another shape than every other error."""
    for response, status in [
        (client.get("/v1/nothing"), 404), (client.get(CHAT), 405), (client.get("/static/nothing.js"), 404),
        (client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"}), 400),
        (client.post(CHAT, json=ask(messages=[{"role": "wizard", "content": "x"}])), 400),
    ]:  # fmt: skip
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_an_unknown_model_is_404_and_named(client: TestClient) -> None:
    """Bug: an unknown name silently served by the first model."""
    response = client.post(CHAT, json=ask(model="sftt"))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "sftt" in error["message"] and '"sft"' in error["message"]


def test_a_model_without_template_refuses_chat(client: TestClient) -> None:
    """Bug: a base model shown special tokens it never saw, and blamed for the babble."""
    response = client.post(CHAT, json=ask(model="base"))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"
    assert "/v1/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_past_the_context_names_both_numbers(
    client: TestClient, streamed: bool, models: dict[str, ServedModel]
) -> None:
    """Bug: a crash in the cache, a cut prompt that nobody hears of, or a 200 whose stream then fails."""
    context = models["sft"].context
    response = client.post(CHAT, json=ask("bread " * 300, stream=streamed))
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    numbers = [int(word) for word in error["message"].split() if word.isdigit()]
    assert context in numbers and any(n > context for n in numbers)


def test_the_answer_ends_with_the_context(
    client: TestClient, tokenizer: Tokenizer, models: dict[str, ServedModel]
) -> None:
    """Bug: prompt plus max_tokens past the last position: an index error, or a wrapped cache."""
    context = models["base"].context
    prompt = [tokenizer.bos] * (context - 3)
    body = {"model": "base", "prompt": prompt, "max_tokens": 1000, "temperature": 1, "seed": 1}
    answer = client.post("/v1/completions", json=body).json()
    assert 1 <= answer["usage"]["completion_tokens"] <= 3
    full = client.post("/v1/completions", json={**body, "prompt": [tokenizer.bos] * context})
    assert full.status_code == 400


def test_models_and_health(client: TestClient, models: dict[str, ServedModel]) -> None:
    """Bug: models in another order than served, or a card without what the page and Open WebUI read."""
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["base", "sft", "dpo", "grpo"]
    assert [m["chat_template"] for m in listed["data"]] == [False, True, True, True]
    assert listed["data"][0] == client.get("/v1/models/base").json()
    assert listed["data"][0]["context_length"] == models["base"].context
    assert client.get("/v1/models/none").status_code == 404
    assert client.get("/health").json() == {
        "status": "ok", "models": ["base", "sft", "dpo", "grpo"], "feedback": True, "decoding": 0, "waiting": 0,
    }  # fmt: skip


def test_feedback_is_stored_counted_and_exported(client: TestClient, store: FeedbackStore) -> None:
    """Bug: a thumb that is answered "ok" and never written."""
    body = {"model": "sft", "messages": ask()["messages"], "answer": "In Oldbrook.", "rating": 1}
    kept = client.post("/v1/feedback", json=body).json()
    assert [row["id"] for row in store.rows()] == [kept["id"]]
    changed = client.post("/v1/feedback", json={**body, "rating": -1, "id": kept["id"]}).json()
    assert changed["id"] == kept["id"]
    client.post("/v1/feedback", json={**body, "answer": "Anna lives in Oldbrook."})
    assert client.get("/v1/feedback").json() == {
        "object": "feedback.counts", "total": 2, "models": {"sft": {"up": 1, "down": 1}},
    }  # fmt: skip

    def lines(query: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in client.get(f"/v1/feedback?format=jsonl{query}").text.splitlines()]

    assert [(row["answer"], row["rating"]) for row in lines("")] == [
        ("In Oldbrook.", -1), ("Anna lives in Oldbrook.", 1),
    ]  # fmt: skip
    assert len(lines("&layout=sft")) == len(lines("&layout=preference")) == 1
    assert client.get("/v1/feedback?format=csv").status_code == 400


@pytest.mark.parametrize("change", [{"rating": 0}, {"rating": 5}, {"model": "none"}, {"messages": []}])
def test_bad_feedback_is_refused(client: TestClient, store: FeedbackStore, change: dict[str, Any]) -> None:
    """Bug: rows that training would later trip over."""
    body = {"model": "sft", "messages": ask()["messages"], "answer": "yes", "rating": 1, **change}
    assert client.post("/v1/feedback", json=body).status_code in (400, 404)
    assert list(store.rows()) == []


def test_without_a_store_feedback_is_off_everywhere(models: dict[str, ServedModel]) -> None:
    """Bug: a page with thumbs that cannot be kept."""
    client = TestClient(create_app(models, None))
    assert client.get("/v1/feedback").status_code == 404
    assert client.get("/health").json()["feedback"] is False
    assert '"feedback": false' in client.get("/").text


def test_browsers_elsewhere_may_ask_the_models_but_not_read_conversations(client: TestClient) -> None:
    """Bug: browser clients are blocked, or any web page one visits can read the rated conversations."""
    headers = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    assert client.options(CHAT, headers=headers).headers["access-control-allow-origin"] == "*"
    assert client.get("/v1/models", headers=headers).headers["access-control-allow-origin"] == "*"
    for response in (client.options("/v1/feedback", headers=headers), client.get("/v1/feedback", headers=headers)):
        assert "access-control-allow-origin" not in response.headers


def test_the_page_is_self_contained_and_escaped(client: TestClient) -> None:
    """Bug: a script from elsewhere (dead without a network); a run's name or example that ends up as HTML."""
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "town &lt;b&gt;" in page.text and "town <b>" not in page.text
    assert "{{" not in page.text
    block = page.text.split('id="settings">')[1].split("</script>")[0]
    assert json.loads(block)["examples"] == ["Where does Anna live?", "</script>"]
    for name in ("app.js", "api.js", "dom.js", "app.css", "icon.svg"):
        asset = client.get(f"/static/{name}")
        assert asset.status_code == 200
        elsewhere = asset.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in elsewhere and "https://" not in elsewhere
        assert "innerHTML" not in elsewhere
