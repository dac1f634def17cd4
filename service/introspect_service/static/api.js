// Requests to the service that served this page, and the Server-Sent Events it answers with.

let key = "";

export function setKey(value) {
  key = value.trim();
}

export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let message = `The service answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // No error object: something between here and the service answered.
  }
  throw new ServiceError(response.status, message);
}

export const getJson = async (path, signal) => (await request(path, { signal })).json();

export const postJson = (path, body, signal) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

// EventSource can neither post nor send a key, so the events are read from the response's body.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let current = {};
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (current.data !== undefined) yield current;
          current = {};
        } else if (!line.startsWith(":")) {
          const colon = line.indexOf(":");
          current[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function* answer(body, signal) {
  for await (const event of events(await postJson("/v1/chat/completions", body, signal))) {
    if (event.data === "[DONE]") return;
    const chunk = JSON.parse(event.data);
    if (chunk.error) throw new ServiceError(200, chunk.error.message);
    yield chunk;
  }
}
