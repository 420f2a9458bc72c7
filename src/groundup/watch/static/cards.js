// The card of a run: how far it is, its newest numbers, its stages; and the lists of events and of samples.

import { bytes, duration, make, percent, short } from "./dom.js";

const FIGURES = [
  ["loss", "loss", (v) => v.toFixed(4)],
  ["validation_loss", "validation", (v) => v.toFixed(4)],
  ["bits_per_byte", "bits per byte", (v) => v.toFixed(4)],
  ["reward", "reward", (v) => v.toFixed(3)],
  ["held_out_accuracy", "held-out", percent],
  ["grad_norm", "gradient norm", short],
  ["tokens_per_second", "tokens/s", short],
  ["mfu", "MFU", percent],
  ["memory", "peak memory", bytes],
  ["tokens", "tokens", short],
];

export function card(run, stage, onToggle) {
  const { facts } = run, now = run.newest(stage), steps = facts.steps?.[stage];
  const broken = facts.stages?.some((one) => one.status === "stopped");
  const swatch = make("i", { class: "swatch" });
  swatch.style.color = run.colour;
  const name = make("button", { type: "button", "aria-pressed": String(run.shown), title: facts.folder, "data-testid": `toggle-${run.number}` },
    swatch, make("span", {}, facts.name));
  name.addEventListener("click", onToggle);
  const element = make("article", { class: run.shown ? "run" : "run off", "data-testid": `run-${run.number}` },
    make("div", { class: "who" }, name, make("span", { class: `state ${facts.state}${broken ? " bad" : ""}`, "data-testid": `state-${run.number}` }, facts.state)));
  if (now.step !== undefined) {
    const bar = make("i");
    bar.style.width = steps ? `${Math.min(100, (100 * now.step) / steps)}%` : "0";
    bar.style.color = run.colour;
    element.append(make("div", { class: "progress" }, bar),
      make("div", { class: "where" }, make("span", {}, `${stage}: step ${now.step.toLocaleString("en")}${steps ? ` of ${steps.toLocaleString("en")}` : ""}`),
        make("span", {}, ending(run, stage, now))),
      make("dl", { class: "figures" }, ...FIGURES.filter(([key]) => key in now)
        .map(([key, label, format]) => make("div", {}, make("dt", {}, label), make("dd", {}, format(now[key]))))));
  } else {
    element.append(make("p", { class: "where" }, facts.state === "waiting" ? "Waiting for this run to begin." : `No row of ${stage || "a training stage"} yet.`));
  }
  const wrong = Object.entries(run.unreadable).filter(([, lines]) => lines)
    .map(([file, lines]) => `${lines} line${lines > 1 ? "s" : ""} of ${file}.jsonl cannot be read`);
  if (wrong.length) element.append(make("p", { class: "warning", "data-testid": "unreadable" }, `${wrong.join("; ")}.`));
  element.append(make("ul", { class: "steps" }, ...(facts.stages ?? []).map(({ name: label, status, seconds }) =>
    make("li", { class: status, title: seconds === null ? status : `${status} in ${duration(seconds)}` }, status === "done" ? `✓ ${label}` : label))));
  return element;
}

// when it ends, or why it does not
function ending(run, stage, now) {
  const busy = run.facts.stages?.find((one) => one.status === "running")?.name;
  if (run.facts.state === "running" && busy === stage && now.eta !== undefined) {
    const quiet = run.silent > 60 ? ` · last row ${duration(run.silent)} ago` : "";
    return `ETA ${duration(Math.max(0, now.eta - Math.min(run.silent, now.eta)))}${quiet}`;
  }
  if (busy && busy !== stage) return `now in ${busy}`;
  return now.seconds === undefined ? "" : `${duration(now.seconds)} of training`;
}

// every event of guard.jsonl, and the skipped steps of each run in a line
export function troubles(run, stage) {
  const skipped = run.of(stage).filter((row) => row.skipped).map((row) => row.step);
  const shown = skipped.slice(-12).join(", ");
  return [
    ...(skipped.length ? [`${skipped.length} step${skipped.length > 1 ? "s" : ""} skipped (loss or gradient not finite): ${skipped.length > 12 ? "... " : ""}${shown}`] : []),
    ...run.of(stage, "guard").map(told),
  ];
}

export function told(event) {
  if (event.rollback === undefined) return Object.entries(event).map(([key, value]) => `${key.replaceAll("_", " ")} ${JSON.stringify(value)}`).join(", ");
  const passed = (event.passed_over ?? []).map(([first, last]) => `${first} to ${last}`).join(" and ");
  const lost = event.not_finite === "weights" ? "weights not finite" : `${event.steps_lost} steps not finite`;
  const trouble = event.not_finite ? lost : `loss ${short(event.usual_loss)} → ${short((event.losses ?? []).at(-1))}`;
  return `rollback ${event.rollback}: ${trouble} at steps ${event.onset} to ${event.seen}; `
    + `back to step ${event.back_to}, learning rate × ${event.rate_factor}, steps ${passed} passed over`;
}

const NEWEST = 4; // steps whose samples are shown

export function samples(run, stage) {
  const rows = run.of(stage, "samples"), steps = [...new Set(rows.map((row) => row.step))].slice(-NEWEST).reverse();
  const heading = make("h3", {}, run.facts.name);
  heading.style.color = run.colour;
  return make("article", { class: "sample" }, heading, ...steps.flatMap((step) => [
    make("h4", {}, `step ${step.toLocaleString("en")}`),
    ...rows.filter((row) => row.step === step).map((row) => make("p", {}, make("b", {}, String(row.prompt)), String(row.text))),
  ]));
}
