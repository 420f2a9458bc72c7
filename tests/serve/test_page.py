"""The chat page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from groundup.serve import batcher as batching
from groundup.serve.app import ServedModel
from groundup.serve.feedback import FeedbackStore

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGS = [
    "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
QUESTION = "Where does Anna live?"

# notes how long the text of an answer is each time that it changes
WATCH = """() => {
  window.lengths = {};
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      const answer = target.parentElement?.closest('[data-testid=answer]');
      const text = answer?.querySelector('[data-testid=answer-text]')?.textContent ?? '';
      if (text) (window.lengths[answer.dataset.model] ??= []).push(text.length);
    }
  }).observe(document.body, { subtree: true, characterData: true });
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="Chromium is not installed (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason='Playwright is not installed (pip install "groundup[dev]")')
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


class Chat:
    """The page as a person uses it. `faults` collects what a person would not see: errors, calls elsewhere."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.faults = page, []
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("request", lambda r: None if r.url.startswith((url, "data:")) else self.faults.append(r.url))
        page.goto(url)
        self.get("model-grpo").wait_for()

    def get(self, name: str) -> Any:
        return self.page.get_by_test_id(name)

    def greedy(self) -> Chat:
        self.get("tune").click()
        self.get("temperature").fill("0")
        self.get("tune").click()
        return self

    def say(self, text: str, wait: bool = True) -> None:
        self.get("prompt").fill(text)
        self.get("prompt").press("Enter")
        if wait:
            self.page.wait_for_selector("[data-testid=send]:visible")

    def answers(self) -> list[str]:
        return [str(text) for text in self.get("answer-text").all_text_contents()]


def wait_for(true: Callable[[], bool]) -> None:
    """Not Playwright's wait_for_function: the page's Content-Security-Policy forbids the eval it needs."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "waited for 20 seconds"
        time.sleep(0.02)


@pytest.fixture
def chat(browser: Any, serving: Any, app: FastAPI) -> Iterator[Chat]:
    with serving(app) as port:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        yield Chat(context.new_page(), f"http://127.0.0.1:{port}")
        context.close()


def shoot(page: Any) -> None:
    """A picture for the documentation, when GROUNDUP_SCREENSHOT says where to."""
    if path := os.environ.get("GROUNDUP_SCREENSHOT"):
        page.screenshot(path=path)


def test_an_answer_streams_in(chat: Chat, answer: str, slow: None) -> None:
    """Bug: the whole answer at once (a proxy or the page buffers), text twice, or a page that calls elsewhere."""
    chat.greedy().page.evaluate(WATCH)
    chat.say(QUESTION)
    assert chat.get("user-message").all_text_contents() == [QUESTION]
    assert chat.answers() == [answer]
    lengths = chat.page.evaluate("window.lengths.grpo")
    assert len(lengths) > 5 and lengths == sorted(lengths) and lengths[-1] == len(answer)
    assert "tokens" in chat.get("facts").text_content()
    assert chat.faults == []


def test_a_stream_cut_anywhere_is_put_together(chat: Chat) -> None:
    """Bug: half an event, or half a character, that ends with a network packet is lost or garbled."""
    found = chat.page.evaluate(r"""async () => {
      const { ask } = await import('/static/api.js');
      const events = ['Grüße ', '日本語', ' 🥐'].map((content) => ({ choices: [{ delta: { content } }] }));
      events.push({ choices: [{ delta: {}, finish_reason: 'stop' }] });
      events.push({ choices: [], usage: { completion_tokens: 7 } });
      const wire = events.map((e) => `data: ${JSON.stringify(e)}\n\n`).join('') + 'data: [DONE]\n\n';
      const bytes = new TextEncoder().encode(wire);
      const seen = new Set();
      for (let size = 1; size < 40; size++) {
        window.fetch = async () => new Response(new ReadableStream({ start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        } }));
        let text = '';
        const end = await ask({ id: 'x', chat_template: true }, [], {}, (piece) => { text += piece; });
        seen.add(`${text}|${end.finish}|${end.tokens}`);
      }
      return [...seen];
    }""")
    assert found == ["Grüße 日本語 🥐|stop|7"]


def test_side_by_side_asks_every_model_at_once(chat: Chat, answer: str, slow: None) -> None:
    """Bug: columns filled one after the other, a model left out, or an answer in its neighbour's column."""
    chat.greedy().get("compare").click()
    chat.page.evaluate(WATCH)
    chat.page.evaluate("""() => { window.most = 0; setInterval(() => { window.most = Math.max(window.most,
      document.querySelectorAll('.streaming').length) }, 5) }""")
    chat.say(QUESTION)
    models = chat.page.eval_on_selector_all("[data-testid=answer]", "all => all.map((a) => a.dataset.model)")
    assert models == ["base", "sft", "dpo", "grpo"]
    assert chat.answers()[1:] == [answer] * 3
    assert chat.answers()[0] and chat.answers()[0] != answer
    assert chat.page.evaluate("window.most") == 4
    assert all(len(seen) > 3 for seen in chat.page.evaluate("window.lengths").values())
    shoot(chat.page)
    assert chat.faults == []


def test_a_thumb_is_recorded_and_can_be_changed(chat: Chat, store: FeedbackStore, answer: str) -> None:
    """Bug: a thumb that lights up and is never written, or that counts twice after a change of mind."""
    chat.greedy().say(QUESTION)

    def rows() -> list[Any]:
        with sqlite3.connect(store.path) as database:
            return database.execute("select model, answer, rating from feedback").fetchall()

    assert rows() == []
    chat.get("thumb-up").click()
    chat.page.wait_for_selector("[data-testid=thumb-up][aria-pressed=true]")
    assert rows() == [("grpo", answer, 1)]
    chat.get("thumb-down").click()
    chat.page.wait_for_selector("[data-testid=thumb-down][aria-pressed=true]")
    assert chat.get("thumb-up").get_attribute("aria-pressed") == "false"
    assert rows() == [("grpo", answer, -1)]
    assert next(store.rows())["messages"] == [{"role": "user", "content": QUESTION}]


def test_html_in_an_answer_stays_text(chat: Chat) -> None:
    """Bug: a model that writes HTML runs it in its reader's browser."""
    title = chat.page.title()
    chat.greedy().say("Write some HTML.")
    assert "<img src=x" in chat.answers()[0] and "<script>" in chat.answers()[0]
    chat.say("<img src=x onerror=\"document.title='run'\">")
    assert chat.page.locator("#turns :is(img, b, script)").count() == 0
    chat.page.wait_for_timeout(100)
    assert chat.page.title() == title == "town <b>"


def test_stop_ends_the_answer_and_the_decoding(
    chat: Chat, models: dict[str, ServedModel], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a stop button that hides the answer while the server decodes on; a composer that stays blocked."""
    step = batching.Decoder.step
    with monkeypatch.context() as slowly:
        slowly.setattr(batching.Decoder, "step", lambda self: time.sleep(0.1) or step(self))
        chat.greedy().say(QUESTION, wait=False)
        wait_for(lambda: any(chat.answers()))
        chat.get("stop").click()
        chat.get("send").wait_for()
        assert chat.get("facts").text_content() == "stopped"
        kept = chat.answers()
        assert answer.startswith(kept[0]) and 0 < len(kept[0]) < len(answer)
        wait_for(lambda: models["grpo"].batcher.decoding == 0)
        assert chat.answers() == kept
    chat.say(QUESTION)
    assert len(chat.answers()) == 2


def test_a_conversation_goes_on_and_fits(chat: Chat, models: dict[str, ServedModel]) -> None:
    """Bug: earlier turns are not sent; or, once they no longer fit, every further message fails."""
    seen: list[int] = []
    engine = models["grpo"].engine
    prompt = engine.chat_prompt
    engine.chat_prompt = lambda messages: seen.append(len(messages)) or prompt(messages)  # type: ignore[method-assign]
    try:
        chat.greedy()
        for _ in range(5):
            chat.say(QUESTION)
    finally:
        del engine.chat_prompt  # type: ignore[method-assign]
    assert seen[:2] == [1, 3]
    assert max(seen) >= 5 and seen[-1] < 9, "the last request is the one that fitted"
    assert chat.page.locator(".aside").count() >= 1
    assert chat.get("problem").count() == 0 and all(chat.answers())


def test_an_error_is_shown_where_the_answer_would_be(chat: Chat) -> None:
    """Bug: a spinner for ever, or an alert box, when the server says no."""
    chat.say("bread " * 200)
    problem = chat.get("answer").get_by_test_id("problem")
    assert "tokens, but the context of 'grpo' is 128 tokens" in problem.text_content()
    assert chat.get("thumb-up").count() == 0
    chat.say(QUESTION)
    assert chat.get("answer").count() == 2 and chat.get("problem").count() == 1


def test_keyboard_and_new_chat(chat: Chat) -> None:
    """Bug: Shift+Enter that sends, Enter that does not, empty messages, a new chat that keeps the old turns."""
    box = chat.get("prompt")
    box.press("Enter")
    assert chat.get("turn").count() == 0 and chat.get("send").is_disabled()
    box.press_sequentially("Where does")
    box.press("Shift+Enter")
    box.press_sequentially("Anna live?")
    assert box.input_value() == "Where does\nAnna live?" and chat.get("turn").count() == 0
    box.press("Enter")
    chat.page.wait_for_selector("[data-testid=send]:visible")
    assert chat.get("user-message").all_text_contents() == ["Where does\nAnna live?"]
    assert box.input_value() == ""
    chat.get("new-chat").click()
    assert chat.get("turn").count() == 0 and chat.get("welcome").is_visible()
    chat.get("model-grpo").focus()
    chat.page.keyboard.press("ArrowRight")
    assert chat.get("model-base").get_attribute("aria-checked") == "true"
    chat.get("example").first.click()
    chat.page.wait_for_selector("[data-testid=send]:visible")
    assert chat.page.get_attribute("[data-testid=answer]", "data-model") == "base"


def test_it_fits_a_phone_and_the_dark(browser: Any, serving: Any, app: FastAPI) -> None:
    """Bug: a page wider than the phone; a dark mode that keeps the light page; a control without a name."""
    with serving(app) as port:
        context = browser.new_context(
            viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True, has_touch=True
        )
        chat = Chat(context.new_page(), f"http://127.0.0.1:{port}")
        chat.get("compare").click()
        chat.say(QUESTION)
        assert chat.page.evaluate("document.documentElement.scrollWidth") == 390
        background = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in background.strip("rgb()").split(",")) < 60
        nameless = chat.page.eval_on_selector_all(
            "button, input, textarea",
            "all => all.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.id)",
        )
        assert nameless == []
        context.close()
