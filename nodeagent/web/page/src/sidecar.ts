/**
 * A pod's numbers beside its Envoy's.  The agent has no way into a pod's network, and none is made for this: who may
 * ask Envoy does so, and gives what it says to this page, where it stays.
 */

import { attribute, h, keyed, text } from "./dom.ts";
import { NotEnvoys, read, type EnvoyCounts } from "./envoy.ts";
import * as format from "./format.ts";
import { Table } from "./table.ts";
import type { Kind, Why } from "./types.ts";
import { KINDS, badge, means } from "./words.ts";

/** What the two of them had counted at one moment. */
interface Reading {
  ours: Why[];
  theirs: EnvoyCounts;
}

interface Row {
  what: string;
  more: string;
  kind: Kind;
  ours: number | null;
  /** The name of Envoy's counter; null where it has none. */
  counter: string | null;
  theirs: number | null;
}

const NOTHING: Reading = { ours: [], theirs: { listeners: [], dialled: 0, failed: 0 } };
const MOST_LISTENERS = 50;
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

export class Sidecar {
  private readonly said = h("p", { class: "sentence", role: "status", hidden: true });
  private readonly table = comparison();
  private readonly input = h("textarea", { rows: 5, spellcheck: "false", placeholder: "listener.0.0.0.0_15001.downstream_cx_total: 2220\ncluster.PassthroughCluster.upstream_cx_total: 2220\n…" });
  private readonly file = h("input", { type: "file", change: () => void this.take() });
  private readonly error = h("p", { class: "sentence bad", role: "alert", hidden: true });
  private readonly command = h("code");
  private readonly listeners = h("ul", { class: "values" });
  private readonly choice = h("details", { hidden: true }, h("summary", {}, "Which of Envoy's listeners take the app's egress"), this.listeners);
  private readonly start = h("button", { type: "button", class: "button", hidden: true, click: () => this.begin() }, "Count from here on");
  private readonly forget = h("button", { type: "button", class: "button", hidden: true, click: () => this.drop() }, "Forget Envoy's numbers");
  readonly root = h(
    "div",
    {},
    h("p", { class: "quiet" }, "Envoy counts what reaches it. What passes it by has no counter there, however it is configured."),
    this.said,
    this.table.root,
    h(
      "details",
      {},
      h("summary", {}, "Put Envoy's own numbers beside ours"),
      h("p", { class: "quiet" }, "This page has no way into the pod, and the agent makes none: ask its Envoy yourself, and give here what it prints. It stays in this browser."),
      h("pre", { tabindex: 0, role: "region", "aria-label": "Command that asks Envoy" }, this.command),
      h(
        "form",
        { class: "controls", submit: (event) => this.submit(event) },
        h("label", { class: "field full" }, h("span", {}, "What Envoy prints at /stats"), this.input),
        h("label", { class: "field" }, h("span", {}, "or as a file"), this.file),
        h("button", { type: "submit", class: "button main" }, "Compare"),
        this.start,
        this.forget,
      ),
      this.error,
    ),
    this.choice,
  );
  private live: Why[] = [];
  private now: Reading | undefined;
  private from: Reading = NOTHING;
  private at = "";
  private readonly chosen = new Map<string, boolean>();

  /** *fresh* returns our numbers of this moment: those to hold against numbers that were just given. */
  constructor(namespace: string, name: string, private readonly fresh: () => Promise<Why[]>) {
    text(this.command, `kubectl exec --namespace ${namespace} ${name} --container SIDECAR -- curl --silent localhost:15000/stats`);
  }

  /** Follow what the agent says, until Envoy's numbers are there: those are of one moment, and so must ours be. */
  show(ours: Why[]): void {
    this.live = ours;
    if (!this.now) this.draw();
  }

  /** Say which container *containers* names as the sidecar's. */
  name(containers: readonly string[]): void {
    const sidecar = containers.find((each) => each === "istio-proxy" || each === "envoy");
    if (sidecar) text(this.command, (this.command.textContent ?? "").replace("SIDECAR", sidecar));
  }

  private submit(event: Event): void {
    event.preventDefault();
    void this.compare(this.input.value);
  }

  private async take(): Promise<void> {
    const file = this.file.files?.[0];
    if (file) await this.compare(await file.text());
  }

  private async compare(given: string): Promise<void> {
    try {
      const theirs = read(given);
      this.now = { ours: await this.fresh(), theirs };
      this.at = clock.format(new Date());
      this.error.hidden = true;
      for (const each of theirs.listeners) if (!this.chosen.has(each.name)) this.chosen.set(each.name, each.isOutbound);
    } catch (error) {
      text(this.error, error instanceof NotEnvoys ? error.message : `Nothing was compared: ${String(error)}`);
      this.error.hidden = false;
    }
    this.draw();
  }

  private begin(): void {
    if (this.now) this.from = this.now;
    this.input.value = "";
    this.draw();
  }

  private drop(): void {
    this.now = undefined;
    this.from = NOTHING;
    this.input.value = "";
    this.file.value = "";
    this.draw();
  }

  private draw(): void {
    const rows = compared(this.now?.ours ?? this.live, this.from.ours, this.now ? this.counted(this.now) : null, this.counted(this.from));
    this.table.show(rows, "");
    this.sum(rows);
    const listeners = (this.now?.theirs.listeners ?? []).slice(0, MOST_LISTENERS);
    keyed(this.listeners, listeners, (each) => each.name, (each) => this.listener(each.name));
    for (const element of [this.choice, this.start, this.forget]) element.hidden = !this.now;
  }

  /** Say in one sentence whether the two agree, and if they do not, what to do about it. */
  private sum(rows: Row[]): void {
    this.said.hidden = !this.now;
    const since = this.from === NOTHING ? "" : " since the start you chose";
    const unlike = rows.filter((row) => row.theirs !== null && row.ours !== null && row.theirs !== row.ours);
    const blind = rows.filter((row) => row.counter === null).reduce((total, row) => total + (row.ours ?? 0), 0);
    const isAnew = rows.some((row) => (row.theirs ?? 0) < 0 || (row.ours ?? 0) < 0);
    const words = isAnew
      ? "One of the two has begun anew since the start you chose: forget Envoy's numbers, and give them again."
      : unlike.length
        ? `They differ${since}. One of them began earlier, or there was traffic between the two readings: count from here on, and give Envoy's numbers again.`
        : `As of ${this.at} they agree${since}, connection for connection; ${format.several(blind, "connection")} Envoy has no counter for.`;
    text(this.said, words);
    attribute(this.said, "class", `sentence ${isAnew || unlike.length ? "warn" : "good"}`);
  }

  private counted({ theirs }: Reading): Sums {
    const taken = theirs.listeners.filter((each) => this.chosen.get(each.name)).reduce((total, each) => total + each.taken, 0);
    return { taken, dialled: theirs.dialled, failed: theirs.failed };
  }

  private listener(name: string) {
    const box = h("input", { type: "checkbox", checked: this.chosen.get(name) });
    box.addEventListener("change", () => {
      this.chosen.set(name, box.checked);
      this.draw();
    });
    const number = h("span", { class: "quiet" });
    const element = h("li", {}, h("label", {}, box, " ", h("code", {}, name), " ", number));
    return { element, update: (each: { taken: number }) => text(number, format.several(each.taken, "connection")) };
  }
}

interface Sums {
  taken: number;
  dialled: number;
  failed: number;
}

/** What goes to the sidecar's port for names is answered by a listener of UDP, or by another program. */
function reachesListener(why: Why): boolean {
  return why.verdict === "intercepted" && why.reason !== "dns_capture";
}

function compared(now: Why[], before: Why[], theirs: Sums | null, start: Sums): Row[] {
  const tcp = (whys: Why[], wanted: (why: Why) => boolean): number => whys.filter(wanted).reduce((total, why) => total + why.tcp_connections, 0);
  const grown = (wanted: (why: Why) => boolean): number => tcp(now, wanted) - tcp(before, wanted);
  const rest = now.filter((why) => !reachesListener(why) && why.kind !== "proxy").sort((one, other) => KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind));
  return [
    { what: "Sent to the sidecar", more: "the app's TCP connections that were intercepted", kind: "intercepted", ours: grown(reachesListener), counter: "listener.*.downstream_cx_total", theirs: theirs && theirs.taken - start.taken },
    { what: "Dialled by the sidecar", more: "TCP connections of its container; clusters that stay in the pod are left out", kind: "proxy", ours: grown((why) => why.kind === "proxy"), counter: "cluster.*.upstream_cx_total", theirs: theirs && theirs.dialled - start.dialled },
    { what: "Of these, in vain", more: "the far side refused, or did not answer: only Envoy can tell", kind: "proxy", ours: null, counter: "cluster.*.upstream_cx_connect_fail", theirs: theirs && theirs.failed - start.failed },
    ...rest.map((why) => {
      const earlier = before.find((each) => each.verdict === why.verdict && each.reason === why.reason);
      const what = why.verdict === "intercepted" ? `To the sidecar's DNS port: ${why.reason}` : `Past it: ${why.reason}`;
      return { what, more: means(why.reason), kind: why.kind, ours: why.connections - (earlier?.connections ?? 0), counter: null, theirs: null };
    }),
  ];
}

function comparison(): Table<Row> {
  return new Table<Row>({
    caption: "This pod's connections, and what its Envoy counts of them",
    empty: "Nothing has left this pod yet.",
    key: (row) => row.what,
    rowClass: (row) => (row.kind === "leak" ? "leaking" : ""),
    columns: [
      { name: "kind", label: "Kind", value: (row) => row.kind, cell: (row) => [badge(row.kind)] },
      { name: "what", label: "Connections", value: (row) => row.what, cell: (row) => [row.what, h("span", { class: "means" }, row.more)] },
      { name: "ours", label: "We count", number: true, value: (row) => (row.ours === null ? "–" : format.count(row.ours)) },
      { name: "counter", label: "Envoy's counter", value: (row) => row.counter ?? "none: it cannot see them", cell: (row) => [row.counter ? h("code", {}, row.counter) : h("b", {}, "none: it cannot see them")] },
      { name: "theirs", label: "Envoy counts", number: true, value: (row) => (row.theirs === null ? "–" : format.count(row.theirs)) },
      { name: "difference", label: "Difference", number: true, value: difference },
    ],
  });
}

function difference(row: Row): string {
  if (row.theirs === null || row.ours === null) return "–";
  const more = row.theirs - row.ours;
  return more === 0 ? "none" : `${more > 0 ? "+" : "−"}${format.count(Math.abs(more))}`;
}
