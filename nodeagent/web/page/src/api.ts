/** Asks the agent.  What has not changed since the last time is not sent again (ETag). */

export interface Answer<T> {
  value: T;
  /** When it came, by performance.now(): ages in it have grown since. */
  at: number;
  isNew: boolean;
}

/** The agent did not understand the question; the message is the agent's. */
export class Refused extends Error {}

/** Nobody answers; the message is for people. */
export class Away extends Error {}

interface Remembered {
  tag: string;
  value: unknown;
  at: number;
}

const MOST_REMEMBERED = 16;
const PATIENCE = 15_000;
const remembered = new Map<string, Remembered>();

/**
 * Return the answer to a GET of `api/v1/PATH`.  One that the agent made for somebody else is good enough if it is not
 * older than *maxAge* seconds.
 */
export async function ask<T>(path: string, query: Record<string, string> = {}, maxAge = 1): Promise<Answer<T>> {
  const url = address(path, query);
  const before = remembered.get(url);
  const response = await send(url, maxAge, before?.tag);
  if (response.status === 304 && before) return { value: before.value as T, at: before.at, isNew: false };
  const value: unknown = await response.json().catch(() => null);
  if (response.status === 400) throw new Refused(String((value as { error?: unknown } | null)?.error ?? "bad request"));
  if (!response.ok || value === null) throw new Away(`The answer makes no sense (${response.status}).`);
  const at = performance.now();
  remember(url, { tag: response.headers.get("ETag") ?? "", value, at });
  return { value: value as T, at, isNew: true };
}

/** Return the address of an answer, relative to the page: it may be behind somebody's prefix. */
export function address(path: string, query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `api/v1/${path}${search ? `?${search}` : ""}`;
}

async function send(url: string, maxAge: number, tag: string | undefined): Promise<Response> {
  const headers: Record<string, string> = { "Cache-Control": `max-age=${maxAge}`, ...(tag ? { "If-None-Match": tag } : {}) };
  try {
    return await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    throw new Away("The agent does not answer.");
  }
}

function remember(url: string, answer: Remembered): void {
  remembered.delete(url);
  remembered.set(url, answer);
  for (const oldest of remembered.keys()) {
    if (remembered.size <= MOST_REMEMBERED) break;
    remembered.delete(oldest);
  }
}
