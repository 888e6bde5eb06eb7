/**
 * Who talks to whom: pods on the left, destinations on the right, a band between them for each kind of
 * traffic, as wide as what was sent.  The layout is d3-sankey's; bounded by the agent to some dozen names.
 */

import { sankey, sankeyLinkHorizontal, type SankeyLink, type SankeyNode } from "d3-sankey";

import { attribute, keyed, svg, text, type Kept } from "./dom.ts";
import * as format from "./format.ts";
import { link as linkTo } from "./route.ts";
import type { Band } from "./types.ts";
import { KINDS, LABELS } from "./words.ts";

interface End {
  id: string;
  label: string;
  href: string;
}
interface Ribbon {
  band: Band;
}
type LaidNode = SankeyNode<End, Ribbon>;
type LaidLink = SankeyLink<End, Ribbon>;

const NARROWEST = 660;
const MARGIN = { left: 190, right: 200, top: 8, bottom: 8 };
const NODE_WIDTH = 10;
const ROW = 30;
const LONGEST = 27;
/** A band of this share of the whole is drawn wider than it is, so that a leak of a few bytes can be seen. */
const THINNEST = 0.006;

export class Picture {
  readonly root = svg("svg", { class: "picture", role: "group", "aria-label": "Who talks to whom: pods and their destinations" });
  private readonly ribbons = svg("g");
  private readonly ends = svg("g");
  private bands: Band[] = [];

  constructor() {
    this.root.append(this.ribbons, this.ends);
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  show(bands: Band[]): void {
    this.bands = bands.filter((band) => band.bytes > 0);
    this.draw();
  }

  private draw(): void {
    const width = Math.max(this.root.clientWidth || 0, NARROWEST);
    const { nodes, links } = layout(this.bands, width);
    const bottom = nodes.reduce((lowest, node) => Math.max(lowest, node.y1 ?? 0), 0) + MARGIN.bottom;
    attribute(this.root, "viewBox", `0 0 ${width} ${bottom}`);
    attribute(this.root, "height", Math.ceil(bottom));
    // Leaks last: they are drawn on top of the rest.
    const order = [...links].sort((one, other) => KINDS.indexOf(other.band.kind) - KINDS.indexOf(one.band.kind));
    keyed(this.ribbons, order, (laid) => ribbonId(laid.band), makeRibbon);
    keyed(this.ends, nodes, (node) => node.id, makeEnd);
  }
}

function layout(bands: Band[], width: number): { nodes: LaidNode[]; links: LaidLink[] } {
  const ends = new Map<string, End>();
  for (const band of bands) {
    const [from, to] = [podEnd(band), destinationEnd(band)];
    ends.set(from.id, from).set(to.id, to);
  }
  if (ends.size === 0) return { nodes: [], links: [] };
  const sides = [...ends.keys()].filter((id) => id.startsWith("pod ")).length;
  const rows = Math.max(sides, ends.size - sides);
  const height = Math.max(170, rows * ROW);
  const whole = bands.reduce((sum, band) => sum + band.bytes, 0);
  const links = bands.map((band) => ({
    source: podEnd(band).id,
    target: destinationEnd(band).id,
    value: Math.max(band.bytes, whole * THINNEST),
    band,
  }));
  const make = sankey<End, Ribbon>()
    .nodeId((node) => node.id)
    .nodeWidth(NODE_WIDTH)
    .nodePadding(Math.min(16, height / rows / 1.6))
    .extent([[MARGIN.left, MARGIN.top], [width - MARGIN.right, MARGIN.top + height]]);
  return make({ nodes: [...ends.values()].map((end) => ({ ...end })), links });
}

function podEnd({ namespace, pod }: Band): End {
  if (namespace === null || pod === null) return { id: "pod", label: "other pods", href: linkTo(["pods"]) };
  return { id: `pod ${namespace}/${pod}`, label: `${namespace}/${pod}`, href: linkTo(["pods", namespace, pod]) };
}

function destinationEnd({ destination }: Band): End {
  if (destination === null) return { id: "to", label: "other destinations", href: linkTo(["flows"]) };
  return { id: `to ${destination}`, label: destination, href: linkTo(["flows"], { destination }) };
}

function ribbonId(band: Band): string {
  return JSON.stringify([band.namespace, band.pod, band.destination, band.kind]);
}

const path = sankeyLinkHorizontal<End, Ribbon>();

function makeRibbon(): Kept<LaidLink> {
  const shape = svg("path", { fill: "none" });
  const title = svg("title");
  // Not in the order of the tab key: there may be a hundred, and the table below the picture says the same.
  const element = svg("a", { tabindex: -1 }, title, shape);
  const update = (laid: LaidLink): void => {
    const { namespace, pod, destination, kind, bytes, connections } = laid.band;
    attribute(element, "class", `ribbon ${kind}`);
    attribute(element, "href", linkTo(["flows"], { namespace, pod, destination, kind }));
    attribute(shape, "d", path(laid));
    attribute(shape, "stroke-width", Math.max(1.5, laid.width ?? 0).toFixed(2));
    const who = `${podEnd(laid.band).label} → ${destinationEnd(laid.band).label}`;
    text(title, `${who}: ${LABELS[kind]}, ${format.bytes(bytes)} in ${format.several(connections, "connection")}`);
  };
  return { element, update };
}

function makeEnd(): Kept<LaidNode> {
  const box = svg("rect", { width: NODE_WIDTH });
  const label = svg("text", { dy: "0.35em" });
  const title = svg("title");
  const element = svg("a", { class: "end" }, title, box, label);
  const update = (node: LaidNode): void => {
    const [x, top, bottom] = [node.x0 ?? 0, node.y0 ?? 0, node.y1 ?? 0];
    const isPod = node.id.startsWith("pod");
    attribute(element, "href", node.href);
    attribute(box, "x", x);
    attribute(box, "y", top.toFixed(2));
    attribute(box, "height", Math.max(2, bottom - top).toFixed(2));
    attribute(label, "x", isPod ? x - 8 : x + NODE_WIDTH + 8);
    attribute(label, "y", ((top + bottom) / 2).toFixed(2));
    attribute(label, "text-anchor", isPod ? "end" : "start");
    text(label, node.label.length > LONGEST ? `${node.label.slice(0, LONGEST - 1)}…` : node.label);
    text(title, node.label);
  };
  return { element, update };
}
