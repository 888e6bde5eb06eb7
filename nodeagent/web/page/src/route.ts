/** Where we are: the fragment of the address holds the whole state of a view, so that it can be sent as a link. */

export interface Route {
  path: string[];
  query: URLSearchParams;
}

export type Query = Record<string, string | number | null | undefined>;

/** Read a fragment such as `#/pods/shop/web?sort=-bytes`. */
export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  return { path: path.split("/").filter(Boolean).map(decode), query: new URLSearchParams(query) };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Return the link to a view; what is empty is left out. */
export function link(path: readonly string[], query: Query = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") search.set(name, String(value));
  }
  const text = search.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

/** Return the link to where we are with other values. */
export function altered(route: Route, changes: Query): string {
  return link(route.path, { ...Object.fromEntries(route.query), ...changes });
}

/** Go there; *quietly* leaves no entry in the history, for what changes with every letter typed. */
export function go(to: string, quietly = false): void {
  if (quietly) {
    history.replaceState(null, "", to);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = to;
  }
}
