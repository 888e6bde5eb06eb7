/** Explain: what happens to a connection, the rule and the annotation behind it, and what was really seen of it. */

import { Refused, ask } from "./api.ts";
import { chosen } from "./controls.ts";
import { attribute, h, keyed, replace, text } from "./dom.ts";
import { flowTable } from "./flowtable.ts";
import * as format from "./format.ts";
import { go, link, type Route } from "./route.ts";
import type { Decision, Explained, Flow, Pods } from "./types.ts";
import type { View } from "./view.ts";
import { badge, kindOf, means, rows } from "./words.ts";

const FIELDS = ["pod", "to", "uid", "gid", "interface"] as const;
type Field = (typeof FIELDS)[number];

export class Explain implements View {
  readonly title = "Explain";
  readonly root: HTMLElement;
  private readonly inputs: Record<Field, HTMLInputElement>;
  private readonly pods = h("datalist", { id: "pods" });
  private readonly error = h("p", { class: "sentence bad", role: "alert", hidden: true });
  private readonly answer = h("div", { hidden: true });
  private readonly verdict = h("p", { class: "sentence", role: "status" });
  private readonly compared = h("p", { class: "sentence" });
  private readonly facts = h("dl", { class: "facts" });
  private readonly table = h("ol", { class: "precedence" });
  private readonly seen = flowTable("Seen of it so far", "Nothing was seen of it so far.", undefined, ["pod", "destination", "port", "protocol", "received_bytes", "explain"]);
  private readonly command = h("code");
  private shown = "";
  private latest: Route;

  constructor(route: Route) {
    this.latest = route;
    this.inputs = {
      pod: field("namespace/name", true, "pods"),
      to: field("203.0.113.10:443, [2001:db8::1]:443, 10.96.0.10:53/udp", true),
      uid: field("any"),
      gid: field("any"),
      interface: field("the route's"),
    };
    const labelled = (name: Field, label: string, wide: boolean): HTMLElement => h("label", { class: wide ? "field wide" : "field narrow" }, h("span", {}, label), this.inputs[name]);
    const form = h(
      "form",
      { class: "controls", submit: (event) => this.submit(event) },
      labelled("pod", "Pod", true),
      labelled("to", "Destination", true),
      labelled("uid", "As uid", false),
      labelled("gid", "As gid", false),
      labelled("interface", "Through device", false),
      h("button", { type: "submit", class: "button main" }, "Explain"),
      this.pods,
    );
    this.answer.append(
      h("div", { class: "pair" }, h("section", { class: "card", "aria-label": "What the policy says" }, h("h2", {}, "What the policy says"), this.verdict, this.facts), h("section", { class: "card", "aria-label": "What was seen" }, h("h2", {}, "What was seen"), this.compared, this.seen.root)),
      h("h2", {}, "The precedence table: the first row that matches wins"),
      this.table,
      h("h2", {}, "On the command line"),
      h("pre", { tabindex: 0, role: "region", "aria-label": "Command" }, this.command),
    );
    this.root = h("section", {}, h("h1", {}, "Explain"), h("p", { class: "quiet" }, "What happens to a connection of a pod, which rule and which annotation decide it, and what was seen of such connections."), form, this.error, this.answer);
  }

  async refresh(route: Route): Promise<void> {
    this.latest = route;
    const asked = chosen(route, FIELDS);
    const key = JSON.stringify(asked);
    if (key !== this.shown) {
      for (const name of FIELDS) this.inputs[name].value = asked[name] ?? "";
      this.shown = key;
    }
    const { value } = await ask<Pods>("pods");
    const names = [...new Set(value.pods.map((pod) => `${pod.namespace}/${pod.pod}`))];
    keyed(this.pods, names, (name) => name, (name) => ({ element: h("option", { value: name }), update: () => undefined }));
    if (!asked.pod || !asked.to) {
      this.answer.hidden = true;
      this.error.hidden = true;
      return;
    }
    try {
      const found = await ask<Explained>("explain", asked);
      if (this.latest === route) this.show(found.value, asked);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      text(this.error, error.message);
      this.error.hidden = false;
      this.answer.hidden = true;
    }
  }

  private submit(event: Event): void {
    event.preventDefault();
    const asked = Object.fromEntries(FIELDS.map((name) => [name, this.inputs[name].value.trim()]));
    go(link(["explain"], asked));
  }

  private show(found: Explained, asked: Record<string, string>): void {
    this.error.hidden = true;
    this.answer.hidden = false;
    const kind = kindOf(found.verdict, found.reason);
    text(this.verdict, sentence(found));
    attribute(this.verdict, "class", `sentence ${kind}`);
    const all: [string, string][] = [
      ["Verdict", found.verdict],
      ["Reason", `${found.reason}: ${means(found.reason)}`],
      ["Rule", found.rule],
      ["What matched", found.matched ?? "–"],
      ["From", found.source],
      ["Sidecar's port", found.port === null ? "–" : String(found.port)],
      ...wouldBe(found.would),
    ];
    replace(this.facts, ...all.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    const row = Number.parseInt((found.would ?? found).rule, 10);
    replace(this.table, ...rows().map(([number, words]) => h("li", { value: number, class: number === row ? "here" : null, "aria-current": number === row ? "true" : null }, words, number === row ? h("b", {}, " ← this one") : null)));
    this.seen.show(found.observed, "");
    this.compare(found, found.observed);
    const flags = ["uid", "gid", "interface"].filter((name) => asked[name]).map((name) => ` --${name} ${asked[name]}`);
    text(this.command, `nodeagent explain --pod ${asked.pod} --to ${asked.to}${flags.join("")}`);
  }

  /** Say whether what was seen is what the policy says: where it is not, the ledger's reason says why. */
  private compare(found: Explained, observed: Flow[]): void {
    const own = observed.filter((flow) => flow.verdict !== "proxy");
    const other = own.filter((flow) => flow.verdict !== found.verdict);
    const size = (flows: Flow[]): string => format.bytes(flows.reduce((total, flow) => total + flow.bytes, 0));
    const tone = other.length ? (other.some((flow) => kindOf(flow.verdict, flow.reason) === "leak") ? "bad" : "warn") : "good";
    const words = !own.length
      ? "Nothing was seen of it so far."
      : other.length
        ? `${size(other)} of ${size(own)} went another way: ${[...new Set(other.map((flow) => flow.reason))].join(", ")}.`
        : `All that was seen of it, ${size(own)}, went as the policy says.`;
    replace(this.compared, words, " ", ...[...new Set(other.map((flow) => flow.reason))].map((reason) => badge(kindOf("bypassed", reason), reason)));
    attribute(this.compared, "class", `sentence ${own.length ? tone : "plain"}`);
  }
}

function sentence(found: Explained): string {
  if (found.verdict === "intercepted") return `It goes to the sidecar, at port ${found.port}.`;
  if (found.would) return `It bypasses the sidecar: nothing of ours is programmed in this pod.`;
  return `It bypasses the sidecar: ${means(found.reason)}.`;
}

function wouldBe(would: Decision | undefined): [string, string][] {
  return would ? [["If the policy were enforced", `${would.verdict} (${would.reason}), by row ${would.rule}, from ${would.source}`]] : [];
}

function field(hint: string, required = false, list?: string): HTMLInputElement {
  return h("input", { type: "text", placeholder: hint, required, list, spellcheck: "false", autocomplete: "off", autocapitalize: "off" });
}
