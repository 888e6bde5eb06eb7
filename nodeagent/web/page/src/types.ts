/** What the API answers: the shapes of nodeagent/agent/view.py, detail.py and nodeagent/web/overview.py. */

export type Kind = "intercepted" | "configured" | "leak" | "observed" | "unknown" | "proxy";

export interface Amount {
  connections: number;
  bytes: number;
  received_bytes: number;
}

export interface Flow extends Amount {
  namespace: string;
  pod: string;
  container: string | null;
  destination: string;
  address: string | null;
  port: number | null;
  protocol: string;
  verdict: string;
  reason: string;
  packets: number;
  payload: number;
}

export interface FlowPage {
  flows: Flow[];
  total: number;
  next: number | null;
}

export interface Leaks {
  connections: number;
  bytes: number;
  recent_connections: number;
  recent_bytes: number;
}

export interface Trouble {
  condition: string;
  message: string;
  fatal: boolean;
}

export interface NodeState {
  ready: boolean;
  troubles: Trouble[];
  leaks: Leaks;
  drift_repairs: number;
}

export interface Why extends Amount {
  verdict: string;
  reason: string;
  kind: Kind;
  tcp_connections: number;
  pods: number;
  destinations: number;
  top_pods: { namespace: string; pod: string; bytes: number }[];
  top_destinations: { name: string; bytes: number }[];
}

export interface Band extends Amount {
  namespace: string | null;
  pod: string | null;
  destination: string | null;
  kind: Kind;
}

export interface Overview {
  node: NodeState;
  pods: { total: number; out_of_sync: number; states: Record<string, number> };
  namespaces: string[];
  flows: number;
  sums: { egress: Why[]; links: Band[] };
}

export interface Pod {
  namespace: string;
  pod: string;
  uid: string;
  mode: string;
  state: string;
  detail: string;
  ruleset_id: string | null;
  epoch: number | null;
  age_seconds: number | null;
  in_sync: boolean | null;
  out_of_sync: boolean;
  repairs: number;
  counted_by: string | null;
  guard: { state: string; why: string } | null;
  containers: string[];
  rejected: { key: string; reason: string; message: string }[];
  leaks: Leaks;
}

export interface Pods {
  node: NodeState;
  pods: Pod[];
}

export interface PolicyField {
  field: string;
  source: string;
  values: { value: string; source: string }[];
  count: number;
}

export interface PodInFull extends Pod {
  backend: string | null;
  addresses: string[];
  source: string;
  foreign: string[];
  policy: PolicyField[];
  warnings: string[];
  unknown_keys: string[];
  rules: string[];
  rules_cut: boolean;
}

export interface Decision {
  verdict: string;
  port: number | null;
  reason: string;
  rule: string;
  matched: string | null;
  source: string;
}

export interface Explained extends Decision {
  pod: string;
  mode: string;
  observed: Flow[];
  would?: Decision;
}

export interface Words {
  reasons: Record<string, { means: string; advice: string; leak: boolean }>;
  rows: Record<string, string>;
}

export interface Configuration {
  settings: unknown;
  warnings: string[];
  problem: string | null;
  file: string | null;
}
