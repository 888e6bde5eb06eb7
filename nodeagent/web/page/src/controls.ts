/** Controls above tables: what they are set to is in the address, never here. */

import { attribute, h, replace, text } from "./dom.ts";
import * as format from "./format.ts";
import { altered, go, type Route } from "./route.ts";

/** Where a control finds the view's present state. */
export type Here = () => Route;

/** A field that filters as one types. */
export function searchField(here: Here, label: string, hint: string): { root: HTMLElement; show(): void } {
  const input = h("input", { type: "search", placeholder: hint, spellcheck: "false", autocomplete: "off" });
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = window.setTimeout(() => go(altered(here(), { search: input.value.trim(), page: null }), true), 200);
  });
  const show = (): void => {
    if (document.activeElement !== input) input.value = here().query.get("search") ?? "";
  };
  return { root: h("label", { class: "field wide" }, h("span", {}, label), input), show };
}

/** A choice of one value or all. */
export function choice(here: Here, name: string, label: string, values: readonly (readonly [string, string])[]): { root: HTMLElement; show(): void } {
  const select = h("select", {}, ...[["", "all"] as const, ...values].map(([value, words]) => h("option", { value }, words)));
  select.addEventListener("change", () => go(altered(here(), { [name]: select.value, page: null })));
  const show = (): void => {
    select.value = here().query.get(name) ?? "";
  };
  return { root: h("label", { class: "field" }, h("span", {}, label), select), show };
}

/** Filters that came with a link and have no control of their own, each with a way to drop it. */
export function chips(here: Here, names: readonly string[]): { root: HTMLElement; show(): void } {
  const root = h("p", { class: "chips" });
  let shown = "";
  const show = (): void => {
    const found = names.flatMap((name) => here().query.getAll(name).map((value) => [name, value] as const));
    if (JSON.stringify(found) === shown) return;
    shown = JSON.stringify(found);
    const made = found.map(([name, value]) => {
      const words = `${name}: ${value}`;
      return h("a", { class: "chip", href: altered(here(), { [name]: null, page: null }), title: "Drop this filter" }, words, h("span", { "aria-hidden": "true" }, " ×"), h("span", { class: "unseen" }, " (drop this filter)"));
    });
    replace(root, ...made);
    root.hidden = found.length === 0;
  };
  return { root, show };
}

/** "101–200 of 10,000", and the ways on. */
export function pager(here: Here, size: number, what: string): { root: HTMLElement; show(total: number): void } {
  const status = h("span", { role: "status" });
  const button = (words: string): HTMLElement => h("a", { class: "button" }, words);
  const [first, back, on, last] = [button("First"), button("Previous"), button("Next"), button("Last")];
  const root = h("nav", { class: "pager", "aria-label": `Pages of ${what}s` }, status, first, back, on, last);
  const show = (total: number): void => {
    const pages = Math.max(1, Math.ceil(total / size));
    const page = pageOf(here());
    const from = (page - 1) * size;
    text(status, total > size ? `${format.count(Math.min(from + 1, total))}–${format.count(Math.min(from + size, total))} of ${format.several(total, what)}` : format.several(total, what));
    const targets: [HTMLElement, number][] = [[first, 1], [back, page - 1], [on, page + 1], [last, pages]];
    for (const [element, target] of targets) {
      const can = target >= 1 && target <= pages && target !== page;
      attribute(element, "href", can ? altered(here(), { page: target === 1 ? null : target }) : null);
      attribute(element, "aria-disabled", can ? null : "true");
      attribute(element, "role", can ? null : "link");
      element.hidden = pages === 1;
    }
  };
  return { root, show };
}

export function pageOf(route: Route): number {
  const page = Number(route.query.get("page") ?? 1);
  return Number.isInteger(page) && page > 0 ? page : 1;
}

/** Links to the whole table as a file. */
export function downloads(target: (kind: string) => string): { root: HTMLElement; show(): void } {
  const links = ["csv", "json"].map((kind) => h("a", { class: "button", download: "" }, kind.toUpperCase()));
  const root = h("span", { class: "downloads" }, h("span", { class: "quiet" }, "Download"), ...links);
  const show = (): void => links.forEach((element, index) => attribute(element, "href", target(index === 0 ? "csv" : "json")));
  return { root, show };
}

/** Return those values of a query that are in *names*: what is passed on to the agent. */
export function chosen(route: Route, names: readonly string[]): Record<string, string> {
  return Object.fromEntries([...route.query].filter(([name, value]) => names.includes(name) && value !== ""));
}
