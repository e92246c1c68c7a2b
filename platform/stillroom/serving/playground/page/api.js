// Asks the server that the page came from. The key, where one is needed, lives in this module alone.

let key = null;

export function useKey(given) {
  key = given;
}

export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The answer's JSON; with a body it is a POST. Throws Refused, or AbortError once `signal` says so. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`playground/${path}`, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
    });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Refused(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => null);
  throw new Refused(
    answer.status,
    told?.error?.message ?? `The server answered ${answer.status}.`,
    answer.headers.get("Retry-After"),
  );
}
