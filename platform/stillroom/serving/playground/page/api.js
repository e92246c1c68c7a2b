// Requests to the server that the page came from. The API key, where needed, stays in this module.

let apiKey = null;

export function setApiKey(key) {
  apiKey = key;
}

/** The server's error answer, or status 0 where it does not answer. */
export class ServerError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/**
 * The response's JSON; a POST where a body is given.
 * Throws ServerError, or AbortError after `signal` was aborted.
 */
export async function request(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`playground/${path}`, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it still running?");
  }
  if (response.ok) return response.json();
  const content = await response.json().catch(() => null);
  throw new ServerError(
    response.status,
    content?.error?.message ?? `The server answered with status ${response.status}.`,
    response.headers.get("Retry-After"),
  );
}
