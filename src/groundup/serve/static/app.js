// The chat page. Whatever a person or a model wrote enters the page as text, never as HTML.

import { askFitting, listModels, rate } from "./api.js";
import { make, mark } from "./dom.js";

const settings = JSON.parse(document.getElementById("settings").textContent);
const $ = (id) => document.getElementById(id);
const NAMES = { base: "Base", sft: "SFT", dpo: "DPO", grpo: "GRPO" };
const nameOf = (model) => NAMES[model.id] ?? model.id;

let models = [];
let turns = []; // [{user, answers: {model id: text}}]
let running = null; // AbortController of the answers on their way

// ---- what is remembered between visits: choices, never conversations ----

const saved = { model: "", compare: false, temperature: 0.7, max_tokens: 256, ...read() };

function read() {
  try {
    return JSON.parse(localStorage.getItem("groundup")) ?? {};
  } catch {
    return {}; // storage is off, or holds something else
  }
}

function remember(change) {
  Object.assign(saved, change);
  try {
    localStorage.setItem("groundup", JSON.stringify(saved));
  } catch { /* storage is off: the choice holds for this visit */ }
}

// ---- top bar ----

function chosen() {
  return saved.compare ? models : models.filter((m) => m.id === saved.model);
}

function showChoices() {
  for (const button of $("models").children) {
    button.setAttribute("aria-checked", String(!saved.compare && button.dataset.model === saved.model));
    button.tabIndex = button.dataset.model === saved.model ? 0 : -1;
  }
  $("models").classList.toggle("all", saved.compare);
  $("compare").setAttribute("aria-pressed", String(saved.compare));
  $("temperature-value").textContent = Number(saved.temperature).toFixed(2);
  const continues = chosen().filter((m) => !m.chat_template).map(nameOf);
  const about = continues.length
    ? `${continues.join(", ")} continues your text: it was not taught to answer.`
    : "Small models are often wrong.";
  $("note").textContent = settings.feedback ? `${about} Thumbs are kept on the server, to learn from.` : about;
}

function buildModels() {
  for (const model of models) {
    const button = make("button", { type: "button", role: "radio", "data-model": model.id, "data-testid": `model-${model.id}` }, nameOf(model));
    button.title = model.chat_template ? nameOf(model) : `${nameOf(model)}: continues your text`;
    button.addEventListener("click", () => choose(model));
    $("models").append(button);
  }
  $("models").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = models.findIndex((m) => m.id === saved.model);
    choose(models[(at + step + models.length) % models.length]);
    $("models").querySelector('[tabindex="0"]').focus();
  });
}

function choose(model) {
  remember({ model: model.id, compare: false });
  showChoices();
}

$("compare").addEventListener("click", () => {
  remember({ compare: !saved.compare });
  showChoices();
});

function openControls(open) {
  $("controls").hidden = !open;
  $("tune").setAttribute("aria-expanded", String(open));
}

$("tune").addEventListener("click", () => openControls($("controls").hidden));
$("controls").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#controls, #tune")) openControls(false);
});
$("temperature").addEventListener("input", () => {
  remember({ temperature: Number($("temperature").value) });
  showChoices();
});
$("max-tokens").addEventListener("change", () => {
  const asked = Math.round(Number($("max-tokens").value));
  remember({ max_tokens: Number.isFinite(asked) && asked >= 1 ? asked : 256 });
  $("max-tokens").value = saved.max_tokens;
});

$("new-chat").addEventListener("click", () => {
  running?.abort();
  turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("prompt").focus();
});

// ---- conversation ----

// What a model is shown: its own answers where it has them, else those of the model that answered then.
function conversation(model, last) {
  const messages = [];
  for (const turn of model.chat_template ? turns : []) {
    const answer = turn.answers[model.id] ?? Object.values(turn.answers)[0];
    if (turn === last || !answer) continue; // no answer: it failed, or was stopped before the first word
    messages.push({ role: "user", content: turn.user }, { role: "assistant", content: answer });
  }
  messages.push({ role: "user", content: last.user });
  return messages;
}

async function send(text) {
  const asked = chosen();
  const turn = { user: text, answers: {} };
  turns.push(turn);
  $("welcome").hidden = true;
  const answers = make("div", { class: "answers" });
  $("turns").append(make("article", { class: asked.length > 1 ? "turn compared" : "turn", "data-testid": "turn" },
    make("p", { class: "mine", "data-testid": "user-message" }, text), answers));
  setRunning(new AbortController());
  const mine = running;
  const all = asked.map((model) => {
    const view = new AnswerView(model, conversation(model, turn));
    answers.append(view.root);
    return view.fill(mine.signal).then((answer) => { turn.answers[model.id] = answer; });
  });
  toBottom();
  await Promise.all(all);
  if (running === mine) setRunning(null);
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
  ready();
}

$("stop").addEventListener("click", () => running?.abort());

class AnswerView {
  constructor(model, messages) {
    this.model = model;
    this.messages = messages;
    this.node = document.createTextNode("");
    this.text = make("p", { class: "text" }, make("span", { "data-testid": "answer-text" }, this.node));
    this.foot = make("div", { class: "foot" });
    const who = make("h2", { class: "who" }, nameOf(model));
    if (!model.chat_template) { // the text and how it goes on are one text: show them as one
      who.append(make("small", {}, "continues your text"));
      this.text.prepend(make("span", { class: "given" }, messages.at(-1).content));
    }
    this.root = make("section", { class: "answer streaming", "aria-busy": "true", "aria-label": `Answer of ${nameOf(model)}`, "data-testid": "answer", "data-model": model.id },
      who, this.text, this.foot);
  }

  // Streams the answer in; resolves to its text, however far it got, and never rejects.
  async fill(signal) {
    let started = 0;
    const facts = [];
    try {
      const options = { temperature: Number(saved.temperature), max_tokens: saved.max_tokens };
      const end = await askFitting(this.model, this.messages, options, (piece) => {
        started ||= performance.now();
        const follow = atBottom();
        this.node.appendData(piece);
        if (follow) toBottom();
      }, signal);
      const seconds = (performance.now() - started) / 1000;
      facts.push(`${end.tokens} token${end.tokens === 1 ? "" : "s"}`);
      if (end.tokens > 4 && seconds > 0.05) facts.push(`${Math.round((end.tokens - 1) / seconds)}/s`);
      if (end.finish === "length") facts.push("cut at the limit");
      if (end.messages.length < this.messages.length) this.root.append(make("p", { class: "aside" }, "Earlier messages were left out: they no longer fit this model's context."));
      this.messages = end.messages; // what the answer was an answer to: a thumb must say the same
    } catch (error) {
      if (signal.aborted) facts.push("stopped");
      else this.problem(error.message);
    }
    const follow = atBottom();
    this.root.classList.remove("streaming");
    this.root.setAttribute("aria-busy", "false");
    if (!this.node.data && !this.root.querySelector(".problem")) this.text.append(make("span", { class: "silent" }, " (nothing)"));
    this.addFoot(facts);
    if (follow) toBottom();
    return this.node.data;
  }

  problem(message) {
    if (!this.node.data) this.text.hidden = true;
    this.foot.before(make("p", { class: "problem", role: "alert", "data-testid": "problem" }, message));
  }

  addFoot(facts) {
    if (this.node.data) {
      if (settings.feedback) {
        this.thumbs = { 1: this.thumb(1, "up", "Good answer"), [-1]: this.thumb(-1, "down", "Bad answer") };
        this.foot.append(this.thumbs[1], this.thumbs[-1]);
      }
      if (navigator.clipboard) {
        const copy = make("button", { type: "button", "aria-label": "Copy", title: "Copy" }, mark("copy"));
        copy.addEventListener("click", async () => {
          await navigator.clipboard.writeText(this.node.data);
          copy.replaceChildren(mark("done"));
          setTimeout(() => copy.replaceChildren(mark("copy")), 1200);
        });
        this.foot.append(copy);
      }
    }
    if (facts.length) this.foot.append(make("span", { class: "facts", "data-testid": "facts" }, facts.join(" · ")));
  }

  thumb(rating, kind, label) {
    const button = make("button", { type: "button", class: kind, "aria-label": label, title: label, "aria-pressed": "false", "data-testid": `thumb-${kind}` }, mark(kind));
    button.addEventListener("click", () => this.rate(rating));
    return button;
  }

  // The thumb is shown as pressed only once the server has kept it.
  async rate(rating) {
    for (const thumb of Object.values(this.thumbs)) thumb.disabled = true;
    this.root.querySelector(".problem")?.remove();
    try {
      const body = { model: this.model.id, messages: this.messages, answer: this.node.data, rating };
      const kept = await rate(this.kept === undefined ? body : { ...body, id: this.kept });
      this.kept = kept.id;
      for (const [value, thumb] of Object.entries(this.thumbs)) thumb.setAttribute("aria-pressed", String(Number(value) === kept.rating));
    } catch (error) {
      this.problem(`Not recorded: ${error.message}`);
    }
    for (const thumb of Object.values(this.thumbs)) thumb.disabled = false;
  }
}

// ---- scrolling: follow the answer, unless the reader has scrolled up ----

const atBottom = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;
const toBottom = () => { $("scroll").scrollTop = $("scroll").scrollHeight; };

// ---- composer ----

function ready() {
  $("send").disabled = !$("prompt").value.trim() || !models.length;
}

function grow() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

$("prompt").addEventListener("input", () => { ready(); grow(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if ($("controls").hidden) running?.abort();
  else openControls(false);
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running || !models.length) return;
  $("prompt").value = "";
  grow();
  send(text);
});

// ---- start ----

async function start() {
  $("temperature").value = saved.temperature;
  $("max-tokens").value = saved.max_tokens;
  try {
    models = await listModels();
  } catch (error) {
    $("welcome-text").replaceWith(make("p", { class: "problem", role: "alert" }, error.message));
    return;
  }
  if (!models.some((m) => m.id === saved.model)) saved.model = models.at(-1).id; // the last stage is the furthest taught
  $("compare").hidden = models.length < 2;
  if (models.length < 2) saved.compare = false;
  $("welcome-text").textContent = models.length > 1 ? "Pick a model above, or ask them all side by side." : "";
  for (const example of settings.examples) {
    const button = make("button", { type: "button", "data-testid": "example" }, example);
    button.addEventListener("click", () => { if (!running) send(example); });
    $("examples").append(button);
  }
  buildModels();
  showChoices();
  ready();
  if (matchMedia("(hover: hover)").matches) $("prompt").focus(); // on a phone this would open the keyboard
}

start();
