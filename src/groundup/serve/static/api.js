// Talking to the server: OpenAI's endpoints and the feedback store.

export class ApiError extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function request(path, body, signal) {
  let response;
  try {
    response = await fetch(path, body === undefined ? { signal } : {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?", "unreachable");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new ApiError(said?.error?.message ?? `The server answered ${response.status}.`, said?.error?.code);
}

export async function listModels() {
  return (await (await request("/v1/models")).json()).data;
}

export async function rate(rating) {
  return (await request("/v1/feedback", rating)).json();
}

// Server-sent events of a response, parsed; ends at [DONE]. A chunk from the network may hold half an event, or
// half a character: both wait in a buffer for their other half.
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The server stopped in the middle of the answer.", "cut");
      buffer += decoder.decode(value, { stream: true });
      const whole = buffer.split("\n\n");
      buffer = whole.pop();
      for (const event of whole) {
        const data = event.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const parsed = JSON.parse(data);
        if (parsed.error) throw new ApiError(parsed.error.message, parsed.error.code);
        yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Ask one model; onText is called with each new piece. Resolves to {finish, tokens}.
// A model without a chat template was never taught turns: it continues the last message as plain text.
export async function ask(model, messages, options, onText, signal) {
  const body = { model: model.id, ...options, stream: true, stream_options: { include_usage: true } };
  const response = model.chat_template
    ? await request("/v1/chat/completions", { ...body, messages }, signal)
    : await request("/v1/completions", { ...body, prompt: messages.at(-1).content }, signal);
  let finish = null;
  let tokens = 0;
  for await (const chunk of events(response)) {
    if (chunk.usage) tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const text = choice.delta ? choice.delta.content : choice.text;
    if (text) onText(text);
    finish = choice.finish_reason ?? finish;
  }
  return { finish, tokens };
}

// The same, leaving out the oldest turns until the conversation fits the model's context; also says which
// messages were sent in the end.
export async function askFitting(model, messages, options, onText, signal) {
  for (let from = 0; ; from += 2) {
    try {
      const kept = messages.slice(from);
      return { ...(await ask(model, kept, options, onText, signal)), messages: kept };
    } catch (error) {
      if (error.code !== "context_length_exceeded" || from + 2 >= messages.length) throw error;
    }
  }
}
