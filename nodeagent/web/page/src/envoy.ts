/** Reads what Envoy prints at `/stats`, as text or as JSON.  Pure; what it does not know it passes over. */

export interface Listener {
  /** Its address as Envoy writes it: `0.0.0.0_15001`. */
  name: string;
  /** Connections that it took since Envoy's start. */
  taken: number;
  /** Whether it looks like one that an app's egress ends in. */
  isOutbound: boolean;
}

export interface EnvoyCounts {
  listeners: Listener[];
  /** Connections that Envoy dialled, all clusters together that lead out of the pod. */
  dialled: number;
  /** Those of them that came to nothing. */
  failed: number;
}

/** Somebody gave us something else; the message says what, and the way out. */
export class NotEnvoys extends Error {}

const LARGEST = 32 * 1024 * 1024;
const LISTENER = /^listener\.(.+)\.downstream_cx_total$/;
const CLUSTER = /^cluster\.(.+)\.upstream_cx_(total|connect_fail)$/;
/** A listener's workers count again what it counted. */
const WORKER = /\.(worker_\d+|main_thread)$/;
/** Ports of meshes' sidecars that no egress ends in: administration, inbound, probes, metrics. */
const OTHER_PORTS = /_(15000|15006|15008|15020|15021|15090)$/;
/** Istio's clusters that stay in the pod: to the app, to its agent's sockets, to its own statistics. */
const INNER = /^(inbound\||(inbound-vip|xds-grpc|sds-grpc|prometheus_stats|agent)$)/;

/** Read the counters that ours can be held against; those of the same name, twice in a text, are one. */
export function read(text: string): EnvoyCounts {
  if (text.length > LARGEST) throw new NotEnvoys("That is more than 32 MiB: ask Envoy for /stats?filter=_cx_ alone.");
  const counters = new Map(text.trimStart().startsWith("{") ? ofJson(text) : ofLines(text));
  if (counters.size === 0) throw new NotEnvoys("No statistic is in it. Give what Envoy prints at /stats, as text or as JSON.");
  const found: EnvoyCounts = { listeners: [], dialled: 0, failed: 0 };
  for (const [name, value] of counters) {
    const listener = LISTENER.exec(name)?.[1];
    if (listener && !WORKER.test(listener)) found.listeners.push({ name: listener, taken: value, isOutbound: listener !== "admin" && !OTHER_PORTS.test(listener) });
    const cluster = CLUSTER.exec(name);
    if (cluster?.[1] && !INNER.test(cluster[1])) found[cluster[2] === "total" ? "dialled" : "failed"] += value;
  }
  if (found.listeners.length === 0) throw new NotEnvoys("No listener counts its connections in it (listener.….downstream_cx_total). Meshes often leave listeners out of the statistics; in Istio, proxyStatsMatcher brings them back.");
  found.listeners.sort((one, other) => other.taken - one.taken || one.name.localeCompare(other.name));
  return found;
}

function* ofLines(text: string): Generator<[string, number]> {
  for (const line of text.split("\n")) {
    const found = /^(\S+): (\d+)\s*$/.exec(line);
    if (found?.[1]) yield [found[1], Number(found[2])];
  }
}

function* ofJson(text: string): Generator<[string, number]> {
  let stats: unknown;
  try {
    stats = (JSON.parse(text) as { stats?: unknown }).stats;
  } catch {
    throw new NotEnvoys("It begins like JSON and is none: was it copied whole?");
  }
  for (const each of Array.isArray(stats) ? (stats as { name?: unknown; value?: unknown }[]) : []) {
    if (typeof each?.name === "string" && Number.isFinite(Number(each.value))) yield [each.name, Number(each.value)];
  }
}
