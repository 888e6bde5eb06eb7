/** All flows: filtered, sorted and paged by the agent, so that ten thousand cost as little as a hundred. */

import { address, ask } from "./api.ts";
import { chips, choice, chosen, downloads, pageOf, pager, searchField } from "./controls.ts";
import { h } from "./dom.ts";
import { flowTable } from "./flowtable.ts";
import { altered, type Route } from "./route.ts";
import type { FlowPage } from "./types.ts";
import type { View } from "./view.ts";
import { KINDS, LABELS, reasons } from "./words.ts";

export const PAGE = 100;

const CONTROLS = ["search", "kind", "reason", "protocol"];
const LINKED = ["namespace", "pod", "container", "destination", "address", "verdict", "leaks"];

export class Flows implements View {
  readonly title = "Flows";
  readonly root: HTMLElement;
  private route: Route;
  private readonly here = (): Route => this.route;
  private readonly table = flowTable("Flows of this node", "No flow is like that.", (sort) => altered(this.route, { sort, page: null }));
  private readonly pages = pager(this.here, PAGE, "flow");
  private readonly controls;

  constructor(route: Route) {
    this.route = route;
    const protocols = ["tcp", "udp", "icmp", "icmpv6", "sctp", "other"].map((name) => [name, name] as const);
    this.controls = [
      searchField(this.here, "Search", "pod, container, destination, address:port"),
      choice(this.here, "kind", "What", KINDS.map((kind) => [kind, LABELS[kind]] as const)),
      choice(this.here, "reason", "Reason", reasons().map((name) => [name, name] as const)),
      choice(this.here, "protocol", "Protocol", protocols),
      downloads((kind) => address("flows", { ...this.asked(), download: kind })),
      chips(this.here, LINKED),
    ];
    const [dropped, ...others] = [...this.controls].reverse();
    const form = h("div", { class: "controls", role: "search", "aria-label": "Filter flows" }, ...others.reverse().map((each) => each.root));
    this.root = h("section", {}, h("h1", {}, "Flows"), form, dropped?.root, this.table.root, this.pages.root);
  }

  async refresh(route: Route): Promise<void> {
    this.route = route;
    for (const control of this.controls) control.show();
    const offset = String((pageOf(route) - 1) * PAGE);
    const found = await ask<FlowPage>("flows", { ...this.asked(), offset, limit: String(PAGE) });
    if (this.route !== route) return; // somebody typed on meanwhile
    this.table.show(found.value.flows, this.sort());
    this.pages.show(found.value.total);
  }

  private sort(): string {
    return this.route.query.get("sort") ?? "-bytes";
  }

  private asked(): Record<string, string> {
    return { ...chosen(this.route, [...CONTROLS, ...LINKED]), sort: this.sort() };
  }
}

