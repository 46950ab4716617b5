// The server's API. Paths are relative to the page, so that they also work behind a proxy with a path prefix.

const KEY = "duet-api-key";

export const readKey = () => sessionStorage.getItem(KEY) ?? "";
export const writeKey = (key) => sessionStorage.setItem(KEY, key);

/** A request failed, at the server or on the way to it. The message is a sentence for the visitor. */
export class RefusedError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const getInfo = async () => (await send("v1/compression")).json();

export const preview = async (body, signal) => (await send("v1/compression/preview", body, signal)).json();

/** The chunks of a streamed chat completion. The last one has the usage. */
export async function* chat(body, signal) {
  const streaming = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send("v1/chat/completions", streaming, signal);
  let done = false;
  for await (const data of events(response.body)) {
    done = data === "[DONE]";
    const chunk = done ? {} : JSON.parse(data);
    if (chunk.error) throw new RefusedError(chunk.error.message, chunk.error.code);
    if (!done) yield chunk;
  }
  if (!done) throw new RefusedError("The connection ended before the answer was complete.");
}

async function send(path, body, signal) {
  const response = await unlessUnreachable(() => fetch(path, request(body, signal)));
  if (!response.ok) throw await refusal(response);
  return response;
}

function request(body, signal) {
  const headers = readKey() ? { Authorization: `Bearer ${readKey()}` } : {};
  if (body === undefined) return { headers, signal };
  headers["Content-Type"] = "application/json";
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

async function refusal(response) {
  const { status } = response;
  const content = await response.json().catch(() => null);
  return new RefusedError(content?.error?.message ?? `The server answered with status ${status}.`, status);
}

/** The data of each server-sent event. vLLM sends one line of data per event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await unlessUnreachable(() => reader.read());
    if (done) return;
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) if (piece.startsWith("data: ")) yield piece.slice("data: ".length);
  }
}

async function unlessUnreachable(act) {
  try {
    return await act();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RefusedError("The server cannot be reached.");
  }
}
