/** All pods of the node.  A node has a few hundred, so they are sorted and filtered here. */

import { address, ask } from "./api.ts";
import { choice, downloads, pageOf, pager, searchField } from "./controls.ts";
import { h } from "./dom.ts";
import * as format from "./format.ts";
import { altered, link, type Route } from "./route.ts";
import { Table, type Column } from "./table.ts";
import type { Pod, Pods } from "./types.ts";
import type { View } from "./view.ts";

export const PAGE = 100;

const STATES = ["intercepted", "observed", "pending", "refused", "skipped", "draining"];

type Sortable = string | number;

interface PodColumn extends Column<Pod> {
  by?(pod: Pod): Sortable;
}

const COLUMNS: PodColumn[] = [
  {
    name: "pod",
    label: "Pod",
    sortable: true,
    value: name,
    cell: (pod) => [h("a", { href: link(["pods", pod.namespace, pod.pod]) }, name(pod))],
  },
  { name: "state", label: "State", sortable: true, value: (pod) => pod.state },
  { name: "mode", label: "Mode", sortable: true, value: (pod) => pod.mode },
  { name: "in_sync", label: "Rules", sortable: true, value: inSync, cell: (pod) => [syncBadge(pod)], by: (pod) => (pod.out_of_sync ? 0 : pod.in_sync ? 1 : 2) },
  { name: "leaks", label: "Leaked", number: true, sortable: true, value: leaked, by: (pod) => pod.leaks.bytes },
  { name: "recent", label: "In 10 min", number: true, sortable: true, value: (pod) => amount(pod.leaks.recent_connections, pod.leaks.recent_bytes), by: (pod) => pod.leaks.recent_bytes },
  { name: "ruleset_id", label: "Rule set", sortable: true, value: (pod) => pod.ruleset_id ?? "–", cell: (pod) => [h("code", {}, pod.ruleset_id ?? "–")] },
  { name: "epoch", label: "Epoch", number: true, sortable: true, value: (pod) => pod.epoch ?? "–", by: (pod) => pod.epoch ?? -1 },
  { name: "age", label: "In force", number: true, sortable: true, value: (pod) => format.age(pod.age_seconds), by: (pod) => pod.age_seconds ?? -1 },
  { name: "repairs", label: "Repairs", number: true, sortable: true, value: (pod) => pod.repairs },
  { name: "detail", label: "Detail", value: detail },
];

function name(pod: Pod): string {
  return `${pod.namespace}/${pod.pod}`;
}

export function inSync(pod: Pod): string {
  return pod.out_of_sync ? "out of sync" : pod.in_sync ? "in sync" : "none";
}

export function syncBadge(pod: Pod): HTMLElement {
  const kind = pod.out_of_sync ? "leak" : pod.in_sync ? "intercepted" : "proxy";
  return h("span", { class: `badge ${kind}` }, inSync(pod));
}

function amount(connections: number, size: number): string {
  return connections || size ? `${format.bytes(size)} (${format.count(connections)})` : "0";
}

function leaked(pod: Pod): string {
  return amount(pod.leaks.connections, pod.leaks.bytes);
}

function detail(pod: Pod): string {
  return [...pod.rejected.map((each) => each.message), pod.detail].filter(Boolean).join("; ");
}

/** Return what the ages in *pods* are now, so long after the agent said it. */
export function grown<T extends { age_seconds: number | null }>(item: T, at: number): T {
  return item.age_seconds === null ? item : { ...item, age_seconds: item.age_seconds + (performance.now() - at) / 1000 };
}

export class PodList implements View {
  readonly title = "Pods";
  readonly root: HTMLElement;
  private route: Route;
  private readonly here = (): Route => this.route;
  private readonly pages = pager(this.here, PAGE, "pod");
  private readonly controls;
  private readonly table = new Table<Pod>({
    caption: "Pods of this node",
    columns: COLUMNS,
    empty: "No pod is like that.",
    key: (pod) => `${name(pod)} ${pod.uid}`,
    sortLink: (sort) => altered(this.route, { sort, page: null }),
    rowClass: (pod) => (pod.out_of_sync || pod.leaks.recent_bytes ? "leaking" : ""),
  });

  constructor(route: Route) {
    this.route = route;
    this.controls = [
      searchField(this.here, "Search", "namespace, pod, rule set, detail"),
      choice(this.here, "state", "State", STATES.map((state) => [state, state] as const)),
      choice(this.here, "only", "Only", [["out_of_sync", "out of sync"], ["leaking", "leaking"]]),
      downloads((kind) => address("pods", { download: kind })),
    ];
    const form = h("div", { class: "controls", role: "search", "aria-label": "Filter pods" }, ...this.controls.map((each) => each.root));
    this.root = h("section", {}, h("h1", {}, "Pods"), form, this.table.root, this.pages.root);
  }

  async refresh(route: Route): Promise<void> {
    this.route = route;
    for (const control of this.controls) control.show();
    const { value, at } = await ask<Pods>("pods");
    if (this.route !== route) return;
    const sort = route.query.get("sort") ?? "pod";
    const found = sorted(value.pods.filter((pod) => matches(pod, route)), sort).map((pod) => grown(pod, at));
    const from = (pageOf(route) - 1) * PAGE;
    this.table.show(found.slice(from, from + PAGE), sort);
    this.pages.show(found.length);
  }
}

function matches(pod: Pod, { query }: Route): boolean {
  const [search, state, only] = ["search", "state", "only"].map((each) => query.get(each) ?? "") as [string, string, string];
  const text = `${name(pod)} ${pod.ruleset_id ?? ""} ${detail(pod)}`.toLowerCase();
  if (!text.includes(search.toLowerCase()) || (state && pod.state !== state)) return false;
  return only === "" || (only === "leaking" ? pod.leaks.bytes > 0 : pod.out_of_sync);
}

function sorted(pods: Pod[], sort: string): Pod[] {
  const column = COLUMNS.find((each) => each.name === sort.replace(/^-/, "")) ?? COLUMNS[0]!;
  const by = column.by ?? column.value;
  const sign = sort.startsWith("-") ? -1 : 1;
  return [...pods].sort((one, other) => sign * compare(by(one), by(other)) || compare(name(one), name(other)));
}

function compare(one: Sortable, other: Sortable): number {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one) < String(other) ? -1 : Number(one !== other);
}
