/** The table of flows, as the flows view, a pod's page and an explanation show it. */

import * as format from "./format.ts";
import { h } from "./dom.ts";
import { link } from "./route.ts";
import { Table, type Column } from "./table.ts";
import type { Flow } from "./types.ts";
import { advice, badge, kindOf, means } from "./words.ts";

const COLUMNS: Column<Flow>[] = [
  {
    name: "pod",
    label: "Pod",
    sortable: true,
    value: (flow) => `${flow.namespace}/${flow.pod}`,
    cell: (flow) => [h("a", { href: link(["pods", flow.namespace, flow.pod]) }, `${flow.namespace}/${flow.pod}`)],
  },
  { name: "container", label: "Container", sortable: true, value: (flow) => flow.container ?? "–" },
  { name: "destination", label: "Destination", sortable: true, value: destination, cell: destinationCell },
  { name: "port", label: "Port", number: true, sortable: true, value: (flow) => flow.port ?? "–" },
  { name: "protocol", label: "Protocol", sortable: true, value: (flow) => flow.protocol },
  {
    name: "verdict",
    label: "Verdict",
    sortable: true,
    value: (flow) => `${flow.verdict} ${flow.reason}`,
    cell: (flow) => [badge(kindOf(flow.verdict, flow.reason), flow.verdict)],
  },
  {
    name: "reason",
    label: "Reason",
    sortable: true,
    value: (flow) => flow.reason,
    cell: (flow) => [h("span", { title: [means(flow.reason), advice(flow.reason)].filter(Boolean).join("; ") }, flow.reason)],
  },
  { name: "connections", label: "Connections", number: true, sortable: true, value: (flow) => format.count(flow.connections) },
  { name: "bytes", label: "Sent", number: true, sortable: true, value: (flow) => format.bytes(flow.bytes) },
  { name: "received_bytes", label: "Received", number: true, sortable: true, value: (flow) => format.bytes(flow.received_bytes) },
  {
    name: "explain",
    label: "Why",
    value: (flow) => (canExplain(flow) ? "explain" : ""),
    cell: (flow) => [canExplain(flow) && h("a", { href: explainLink(flow), "aria-label": `explain ${destination(flow)}` }, "explain")],
  },
];

function destination(flow: Flow): string {
  return flow.address === null || flow.address === flow.destination ? flow.destination : `${flow.destination} (${flow.address})`;
}

function destinationCell(flow: Flow): (Node | string)[] {
  if (flow.address === null || flow.address === flow.destination) return [flow.destination];
  return [flow.destination, " ", h("span", { class: "quiet" }, flow.address)];
}

function canExplain(flow: Flow): boolean {
  return flow.address !== null && flow.port !== null && ["tcp", "udp"].includes(flow.protocol);
}

function explainLink(flow: Flow): string {
  const to = `${format.place(flow.address ?? "", flow.port)}${flow.protocol === "udp" ? "/udp" : ""}`;
  return link(["explain"], { pod: `${flow.namespace}/${flow.pod}`, to });
}

/** Make a table of flows; without *columns* named here, all. */
export function flowTable(caption: string, empty: string, sortLink?: (sort: string) => string, without: string[] = []): Table<Flow> {
  return new Table<Flow>({
    caption,
    empty,
    columns: COLUMNS.filter((column) => !without.includes(column.name)),
    key: (flow) =>
      [flow.namespace, flow.pod, flow.container, flow.destination, flow.address, flow.port, flow.protocol, flow.verdict, flow.reason].join("\n"),
    rowClass: (flow) => (kindOf(flow.verdict, flow.reason) === "leak" ? "leaking" : ""),
    ...(sortLink ? { sortLink } : {}),
  });
}
