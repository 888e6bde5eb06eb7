/** The page's words for kinds; what reasons mean, and the precedence table, the agent says (api/v1/words). */

import { ask } from "./api.ts";
import { h } from "./dom.ts";
import type { Kind, Words } from "./types.ts";

/** From what needs a look to what does not: the order everywhere. */
export const KINDS: readonly Kind[] = ["leak", "unknown", "observed", "configured", "intercepted", "proxy"];

export const LABELS: Record<Kind, string> = {
  leak: "leak",
  unknown: "not attributed",
  observed: "only watched",
  configured: "as configured",
  intercepted: "intercepted",
  proxy: "sidecar's own leg",
};

export const SHOULD: Record<Kind, string> = {
  leak: "It bypassed the sidecar, and should not have.",
  unknown: "It bypassed the sidecar; nobody knows why.",
  observed: "It bypassed the sidecar, in a pod that no policy of ours is in force in.",
  configured: "It bypassed the sidecar, and the policy says that it should.",
  intercepted: "It went to the sidecar.",
  proxy: "The sidecar's own upstream connections: the same traffic on its second leg.",
};

let known: Words = { reasons: {}, rows: {} };

export async function learnWords(): Promise<void> {
  if (Object.keys(known.rows).length === 0) known = (await ask<Words>("words")).value;
}

export function means(reason: string): string {
  return known.reasons[reason]?.means ?? "";
}

export function advice(reason: string): string {
  return known.reasons[reason]?.advice ?? "";
}

/** The precedence table, row by row. */
export function rows(): [number, string][] {
  return Object.entries(known.rows).map(([number, text]) => [Number(number), text]);
}

export function reasons(): string[] {
  return Object.keys(known.reasons).sort();
}

/** The kind of a flow: the agent's rule, for a single row. */
export function kindOf(verdict: string, reason: string): Kind {
  if (verdict !== "bypassed") return verdict === "proxy" ? "proxy" : "intercepted";
  if (known.reasons[reason]?.leak) return "leak";
  if (reason === "overflow" || reason === "unknown") return "unknown";
  return reason === "observed" ? "observed" : "configured";
}

/** A mark that says a kind, in words as well as in colour. */
export function badge(kind: Kind, words: string = LABELS[kind]): HTMLElement {
  return h("span", { class: `badge ${kind}`, title: SHOULD[kind] }, words);
}
