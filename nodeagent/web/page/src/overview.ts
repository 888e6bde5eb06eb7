/** The first view: how much bypasses the sidecars, why, whether it should, and who talks to whom. */

import { ask } from "./api.ts";
import { chosen, choice } from "./controls.ts";
import { append, attribute, h, keyed, replace, text, type Kept } from "./dom.ts";
import * as format from "./format.ts";
import { Picture } from "./picture.ts";
import { link, type Route } from "./route.ts";
import { Table } from "./table.ts";
import type { Amount, Band, Kind, Overview, Why } from "./types.ts";
import type { View } from "./view.ts";
import { KINDS, LABELS, SHOULD, advice, badge, means } from "./words.ts";

/** What left the app, once: the sidecar's own leg is the same traffic again. */
const EGRESS = KINDS.filter((kind) => kind !== "proxy");

export class OverviewPage implements View {
  readonly title = "Overview";
  readonly root: HTMLElement;
  private route: Route;
  private readonly sentence = h("p", { class: "sentence", role: "status" });
  private readonly troubles = h("ul", { class: "troubles", "aria-label": "What is wrong with the agent" });
  private readonly tiles = [tile(), tile(), tile()] as const;
  private readonly bar = h("div", { class: "shares", role: "img" });
  private readonly legend = h("ul", { class: "legend" });
  private readonly whys = whyTable("Egress that bypasses, by reason, leaks first", "Nothing bypasses the sidecars.");
  private readonly rest = whyTable("What the sidecars see, by reason", "Nothing goes to the sidecars yet.");
  private readonly picture = new Picture();
  private readonly bands = bandTable();
  private readonly nothing = h("p", { class: "none" }, "Nothing has left the pods yet.");
  private readonly choiceRoot = h("div", { class: "controls" });
  private namespaces = "";
  private control?: ReturnType<typeof choice>;
  private shownFor: Route | undefined;

  constructor(route: Route) {
    this.route = route;
    const frame = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Picture" });
    frame.append(this.picture.root);
    this.root = h(
      "section",
      { class: "overview" },
      h("h1", { class: "unseen" }, "Overview of this node"),
      this.sentence,
      this.troubles,
      h("div", { class: "tiles" }, ...this.tiles.map((each) => each.root)),
      h("div", { class: "card" }, this.bar, this.legend),
      h("h2", {}, "What bypasses the sidecars, and why"),
      this.whys.root,
      h("details", {}, h("summary", {}, "What goes to the sidecars, and their own legs"), this.rest.root),
      h("div", { class: "row" }, h("h2", {}, "Who talks to whom"), this.choiceRoot),
      h("div", { class: "card" }, this.nothing, frame, h("p", { class: "quiet" }, "Width: bytes sent; the thinnest are drawn wider than they are. The sidecars' own legs are left out. Follow a band or a name to its flows.")),
      h("details", {}, h("summary", {}, "The picture as a table"), this.bands.root),
    );
  }

  async refresh(route: Route): Promise<void> {
    this.route = route;
    const { value, isNew } = await ask<Overview>("overview", chosen(route, ["namespace"]));
    if (this.route !== route) return;
    this.offerNamespaces(value.namespaces);
    if (!isNew && this.bar.hasChildNodes() && this.shownFor === route) return;
    this.shownFor = route;
    this.showHead(value);
    this.showShares(value.sums.egress);
    const egress = [...value.sums.egress].sort(byKind);
    this.whys.show(egress.filter((why) => bypassing.includes(why.kind)), "");
    this.rest.show(egress.filter((why) => !bypassing.includes(why.kind)), "");
    this.picture.show(value.sums.links);
    this.bands.show(value.sums.links, "");
    this.nothing.hidden = value.sums.links.some((band) => band.bytes > 0);
    attribute(this.picture.root, "hidden", !this.nothing.hidden);
  }

  private offerNamespaces(names: string[]): void {
    if (this.namespaces !== names.join()) {
      this.namespaces = names.join();
      this.control = choice(() => this.route, "namespace", "Namespace", names.map((name) => [name, name] as const));
      replace(this.choiceRoot, this.control.root);
    }
    this.control?.show();
  }

  private showHead({ node, pods, sums }: Overview): void {
    const [share, leaks, sync] = this.tiles;
    const leaked = sum(sums.egress, ["leak"]);
    const [bypassed, all] = [sum(sums.egress, bypassing), sum(sums.egress, EGRESS)];
    text(this.sentence, judgement(node.leaks.recent_bytes, leaked, sum(sums.egress, ["unknown"]), pods.out_of_sync));
    attribute(this.sentence, "class", `sentence ${node.leaks.recent_bytes || pods.out_of_sync ? "bad" : leaked.bytes ? "warn" : "good"}`);
    share.show("of egress bytes bypassed the sidecars", format.share(bypassed.bytes, all.bytes), `${format.bytes(bypassed.bytes)} of ${format.bytes(all.bytes)}; ${format.share(bypassed.connections, all.connections)} of connections`, link(["flows"], { verdict: "bypassed" }), "plain");
    const recent = node.leaks.recent_bytes ? `${format.bytes(node.leaks.recent_bytes)} in the last 10 minutes` : "none in the last 10 minutes";
    leaks.show("leaked", format.bytes(leaked.bytes), `${format.several(leaked.connections, "connection")}; ${recent}`, link(["flows"], { kind: "leak" }), node.leaks.recent_bytes ? "bad" : leaked.bytes ? "warn" : "good");
    const states = Object.entries(pods.states).map(([state, number]) => `${number} ${state}`).join(", ");
    sync.show(pods.out_of_sync === 1 ? "pod out of sync" : "pods out of sync", String(pods.out_of_sync), `of ${format.count(pods.total)}: ${states || "none"}`, link(["pods"], { only: pods.out_of_sync ? "out_of_sync" : null }), pods.out_of_sync ? "bad" : "good");
    keyed(this.troubles, node.troubles, (each) => `${each.condition} ${each.message}`, (each) => {
      const element = h("li", { class: each.fatal ? "bad" : "warn" }, h("b", {}, each.condition), " ", each.message);
      return { element, update: () => undefined };
    });
    this.troubles.hidden = node.troubles.length === 0;
  }

  private showShares(egress: Why[]): void {
    const all = sum(egress, EGRESS).bytes;
    const parts = EGRESS.map((kind) => ({ kind, size: sum(egress, [kind]).bytes })).filter((part) => part.size > 0);
    keyed(this.bar, parts, (part) => part.kind, ({ kind }) => makeShare(kind));
    for (const [index, part] of parts.entries()) (this.bar.children[index] as HTMLElement).style.flexGrow = String(Math.max(part.size / all, 0.006));
    const words = parts.map((part) => `${LABELS[part.kind]} ${format.share(part.size, all)}`);
    attribute(this.bar, "aria-label", `Bytes sent: ${words.join(", ") || "none"}`);
    keyed(this.legend, parts, (part) => part.kind, ({ kind }) => {
      const number = h("span", { class: "quiet" });
      const element = h("li", {}, badge(kind), " ", number);
      return { element, update: (part) => text(number, `${format.bytes(part.size)}, ${format.share(part.size, all)}`) };
    });
    this.bar.hidden = parts.length === 0;
  }
}

const bypassing: readonly Kind[] = ["leak", "unknown", "observed", "configured"];

function judgement(recent: number, leaked: Amount, unknown: Amount, outOfSync: number): string {
  if (recent) return "Egress that should be intercepted leaks now, or did within the last 10 minutes.";
  if (outOfSync) return `${format.several(outOfSync, "pod")} should hold rules and ${outOfSync === 1 ? "does" : "do"} not.`;
  if (leaked.bytes) return "Some egress leaked, though none in the last 10 minutes.";
  if (unknown.bytes) return "Nothing leaks that could be attributed; some bypassing traffic could not.";
  return "Nothing leaks: what bypasses the sidecars does so as configured.";
}

function sum(egress: Why[], kinds: readonly Kind[]): Amount {
  const total = { connections: 0, bytes: 0, received_bytes: 0 };
  for (const why of egress.filter((each) => kinds.includes(each.kind))) {
    total.connections += why.connections;
    total.bytes += why.bytes;
    total.received_bytes += why.received_bytes;
  }
  return total;
}

function byKind(one: Why, other: Why): number {
  return KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind) || other.bytes - one.bytes;
}

function makeShare(kind: Kind): Kept<{ kind: Kind; size: number }> {
  return { element: h("div", { class: kind, title: LABELS[kind] }), update: () => undefined };
}

function tile() {
  const number = h("span", { class: "big" });
  const label = h("span", { class: "what" });
  const more = h("span", { class: "quiet" });
  const root = h("a", { class: "tile" }, number, label, more);
  const show = (what: string, value: string, detail: string, href: string, tone: string): void => {
    text(number, value);
    text(label, what);
    text(more, detail);
    attribute(root, "href", href);
    attribute(root, "class", `tile ${tone}`);
  };
  return { root, show };
}

function whyTable(caption: string, empty: string): Table<Why> {
  return new Table<Why>({
    caption,
    empty,
    key: (why) => `${why.verdict} ${why.reason}`,
    rowClass: (why) => (why.kind === "leak" ? "leaking" : ""),
    columns: [
      { name: "kind", label: "Should it?", value: (why) => why.kind, cell: (why) => [badge(why.kind)] },
      {
        name: "reason",
        label: "Why",
        value: (why) => why.reason,
        cell: (why) => [
          h("a", { href: link(["flows"], { verdict: why.verdict, reason: why.reason }), title: SHOULD[why.kind] }, why.reason),
          h("span", { class: "means" }, means(why.reason)),
          advice(why.reason) ? h("span", { class: "means advice" }, advice(why.reason)) : null,
        ],
      },
      { name: "bytes", label: "Sent", number: true, value: (why) => format.bytes(why.bytes) },
      { name: "connections", label: "Connections", number: true, value: (why) => format.count(why.connections) },
      {
        name: "who",
        label: "Who",
        value: (why) => JSON.stringify([why.pods, why.top_pods.map((each) => [each.namespace, each.pod])]),
        cell: (why) => listed(why.pods, why.top_pods.map(({ namespace, pod }) => h("a", { href: link(["pods", namespace, pod]) }, `${namespace}/${pod}`))),
      },
      {
        name: "whom",
        label: "To",
        value: (why) => JSON.stringify([why.destinations, why.top_destinations.map((each) => each.name)]),
        cell: (why) => listed(why.destinations, why.top_destinations.map(({ name }) => h("a", { href: link(["flows"], { destination: name, reason: why.reason }) }, name))),
      },
    ],
  });
}

/** Some names, and how many more there are. */
function listed(all: number, names: HTMLElement[]): Node[] {
  const list = h("span", { class: "names" });
  append(list, names.flatMap((name, index) => (index ? [", ", name] : [name])));
  if (all > names.length) append(list, [h("span", { class: "quiet" }, ` and ${format.count(all - names.length)} more`)]);
  return [list];
}

function bandTable(): Table<Band> {
  const who = (band: Band): string => (band.pod === null ? "other pods" : `${band.namespace}/${band.pod}`);
  return new Table<Band>({
    caption: "Who talks to whom",
    empty: "Nothing has left the pods yet.",
    key: (band) => JSON.stringify([band.namespace, band.pod, band.destination, band.kind]),
    columns: [
      { name: "pod", label: "Pod", value: who },
      {
        name: "destination",
        label: "Destination",
        value: (band) => band.destination ?? "other destinations",
        cell: (band) => {
          const { namespace, pod, destination, kind } = band;
          return [h("a", { href: link(["flows"], { namespace, pod, destination, kind }) }, destination ?? "other destinations")];
        },
      },
      { name: "kind", label: "What", value: (band) => band.kind, cell: (band) => [badge(band.kind)] },
      { name: "connections", label: "Connections", number: true, value: (band) => format.count(band.connections) },
      { name: "bytes", label: "Sent", number: true, value: (band) => format.bytes(band.bytes) },
    ],
  });
}
