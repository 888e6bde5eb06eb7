/** One pod: what it is, what its policy says and from where, its rules, and what it did. */

import { Refused, address, ask } from "./api.ts";
import { downloads, pageOf, pager } from "./controls.ts";
import { attribute, h, keyed, replace, text } from "./dom.ts";
import { PAGE } from "./flows.ts";
import { flowTable } from "./flowtable.ts";
import * as format from "./format.ts";
import { grown, syncBadge } from "./podlist.ts";
import { altered, link, type Route } from "./route.ts";
import { Sidecar } from "./sidecar.ts";
import { Table } from "./table.ts";
import type { FlowPage, Overview, PodInFull, PolicyField, Why } from "./types.ts";
import type { View } from "./view.ts";
import { KINDS, badge, means } from "./words.ts";

export class PodPage implements View {
  readonly title: string;
  readonly root: HTMLElement;
  private readonly namespace: string;
  private readonly name: string;
  private route: Route;
  private readonly here = (): Route => this.route;
  private readonly gone = h("p", { class: "sentence warn", role: "status", hidden: true });
  private readonly facts = h("dl", { class: "facts card" });
  private readonly notes = h("ul", { class: "troubles", "aria-label": "What is wrong with this pod" });
  private readonly policy = policyTable();
  private readonly why = whyTable();
  private readonly sidecar: Sidecar;
  private readonly rules = h("pre", { tabindex: 0, role: "region", "aria-label": "Rules as text" });
  private readonly cut = h("p", { class: "quiet", hidden: true }, "There are more lines; nodeagent render prints all.");
  private readonly known: HTMLElement;
  private readonly table = flowTable("Flows of this pod", "Nothing has left this pod yet.", (sort) => altered(this.route, { sort, page: null }), ["pod"]);
  private readonly pages = pager(this.here, PAGE, "flow");
  private readonly files = downloads((kind) => address("flows", { ...this.asked(), download: kind }));

  constructor(route: Route) {
    const [, namespace = "", name = ""] = route.path;
    [this.namespace, this.name, this.route] = [namespace, name, route];
    this.title = `${namespace}/${name}`;
    this.sidecar = new Sidecar(namespace, name, async () => (await this.sums(0)).sums.egress);
    this.known = h(
      "div",
      {},
      this.facts,
      this.notes,
      h("h2", {}, "Policy, and where each value comes from"),
      this.policy.root,
      h("details", {}, h("summary", {}, "The rule set as text"), this.rules, this.cut),
    );
    const explain = h("a", { class: "button", href: link(["explain"], { pod: this.title }) }, "Explain a destination");
    this.root = h(
      "section",
      {},
      h("div", { class: "row" }, h("h1", {}, h("a", { href: link(["pods"]) }, "Pods"), " / ", this.title), explain),
      this.gone,
      this.known,
      h("h2", {}, "What left it, and why"),
      this.why.root,
      h("h2", {}, "Beside its Envoy"),
      this.sidecar.root,
      h("div", { class: "row" }, h("h2", {}, "Flows"), this.files.root),
      this.table.root,
      this.pages.root,
    );
  }

  async refresh(route: Route): Promise<void> {
    this.route = route;
    this.files.show();
    const offset = String((pageOf(route) - 1) * PAGE);
    const [found, sums] = await Promise.all([
      ask<FlowPage>("flows", { ...this.asked(), offset, limit: String(PAGE) }),
      this.sums(),
      this.refreshPod(),
    ]);
    if (this.route !== route) return;
    this.table.show(found.value.flows, this.sort());
    this.pages.show(found.value.total);
    this.why.show([...sums.sums.egress].sort((one, other) => KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind)), "");
    this.sidecar.show(sums.sums.egress);
  }

  private async sums(maxAge?: number): Promise<Overview> {
    return (await ask<Overview>("overview", { namespace: this.namespace, pod: this.name }, maxAge)).value;
  }

  private async refreshPod(): Promise<void> {
    try {
      const { value, at } = await ask<PodInFull>(`pods/${encodeURIComponent(this.namespace)}/${encodeURIComponent(this.name)}`);
      this.show(grown(value, at));
      this.gone.hidden = true;
      this.known.hidden = false;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      text(this.gone, `${error.message}. Flows of a pod that has ended are kept for 10 minutes.`);
      this.gone.hidden = false;
      this.known.hidden = true;
    }
  }

  private show(pod: PodInFull): void {
    keyed(this.facts, facts(pod), ([name]) => name, ([name]) => {
      const value = h("dd");
      let shown: unknown;
      const update = ([, now]: Fact): void => {
        if (now instanceof Node ? (now.textContent ?? "") === shown : now === shown) return;
        shown = now instanceof Node ? now.textContent : now;
        replace(value, now);
      };
      return { element: h("div", {}, h("dt", {}, name), value), update };
    });
    const notes = [
      ...pod.rejected.map((each) => ({ bad: true, words: `${each.key}: ${each.message}` })),
      ...(pod.rejected.length ? [{ bad: false, words: "While a value is refused, the pod keeps its last good annotations, or the configuration's values if it has none." }] : []),
      ...pod.foreign.map((each) => ({ bad: false, words: `another tool redirects here: ${each}` })),
      ...pod.warnings.map((words) => ({ bad: false, words })),
      ...(pod.detail ? [{ bad: pod.state === "refused", words: pod.detail }] : []),
    ];
    keyed(this.notes, notes, (note) => note.words, (note) => ({ element: h("li", { class: note.bad ? "bad" : "warn" }, note.words), update: () => undefined }));
    this.notes.hidden = notes.length === 0;
    this.policy.show(pod.policy, "");
    this.sidecar.name(pod.containers);
    text(this.rules, pod.rules.join("\n") || `Mode ${pod.mode}: nothing is programmed.`);
    attribute(this.cut, "hidden", !pod.rules_cut);
  }

  private sort(): string {
    return this.route.query.get("sort") ?? "-bytes";
  }

  private asked(): Record<string, string> {
    return { namespace: this.namespace, pod: this.name, sort: this.sort() };
  }
}

type Fact = [string, string | Node];

function facts(pod: PodInFull): Fact[] {
  const sync = syncBadge(pod);
  const leaks = `${format.bytes(pod.leaks.bytes)} in ${format.several(pod.leaks.connections, "connection")}`;
  return [
    ["Mode", pod.mode],
    ["State", pod.state],
    ["Rules", sync],
    ["Rule set", h("code", {}, pod.ruleset_id ?? "–")],
    ["Backend", pod.backend ?? "–"],
    ["Epoch", pod.epoch === null ? "–" : format.count(pod.epoch)],
    ["In force", format.age(pod.age_seconds)],
    ["Repairs", format.count(pod.repairs)],
    ["Leaked since the agent's start", leaks],
    ["In the last 10 minutes", format.bytes(pod.leaks.recent_bytes)],
    ["Counted by", pod.counted_by ?? "not counted"],
    ["Wire guard", pod.guard ? [pod.guard.state, pod.guard.why].filter(Boolean).join(": ") : "–"],
    ["Containers", pod.containers.join(", ") || "–"],
    ["Addresses", pod.addresses.join(", ") || "–"],
    ["Known from", pod.source],
    ["UID", h("code", {}, pod.uid || "–")],
  ];
}

function policyTable(): Table<PolicyField> {
  return new Table<PolicyField>({
    caption: "Policy",
    empty: "There is no policy.",
    key: (field) => field.field,
    columns: [
      { name: "field", label: "Field", value: (field) => field.field, cell: (field) => [h("code", {}, field.field)] },
      {
        name: "values",
        label: "Value, and its source",
        value: (field) => JSON.stringify([field.values, field.count]),
        cell: (field) => [
          h(
            "ul",
            { class: "values" },
            ...(field.values.length ? field.values : [{ value: "none", source: field.source }]).map(({ value, source }) => h("li", {}, h("code", {}, value), h("span", { class: "quiet" }, ` ${source}`))),
            field.count > field.values.length ? h("li", { class: "quiet" }, `and ${format.count(field.count - field.values.length)} more`) : null,
          ),
        ],
      },
    ],
  });
}

function whyTable(): Table<Why> {
  return new Table<Why>({
    caption: "This pod's egress by reason",
    empty: "Nothing has left this pod yet.",
    key: (why) => `${why.verdict} ${why.reason}`,
    rowClass: (why) => (why.kind === "leak" ? "leaking" : ""),
    columns: [
      { name: "kind", label: "Should it?", value: (why) => why.kind, cell: (why) => [badge(why.kind)] },
      { name: "reason", label: "Why", value: (why) => why.reason, cell: (why) => [why.reason, h("span", { class: "means" }, means(why.reason))] },
      { name: "destinations", label: "Destinations", number: true, value: (why) => format.count(why.destinations) },
      { name: "connections", label: "Connections", number: true, value: (why) => format.count(why.connections) },
      { name: "bytes", label: "Sent", number: true, value: (why) => format.bytes(why.bytes) },
      { name: "received", label: "Received", number: true, value: (why) => format.bytes(why.received_bytes) },
    ],
  });
}
