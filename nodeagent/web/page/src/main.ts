/** The page around the views: where we are, and asking again and again while somebody looks. */

import { Away, Refused } from "./api.ts";
import { ConfigurationPage } from "./configuration.ts";
import { attribute, h, replace, text } from "./dom.ts";
import { Explain } from "./explain.ts";
import { Flows } from "./flows.ts";
import { OverviewPage } from "./overview.ts";
import { PodPage } from "./pod.ts";
import { PodList } from "./podlist.ts";
import { link, parse, type Route } from "./route.ts";
import { themeSwitch } from "./theme.ts";
import type { View } from "./view.ts";
import { learnWords } from "./words.ts";

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const EVERY = 2000;
const SLOWEST = 8000;

const NAVIGATION = [
  ["", "Overview"],
  ["flows", "Flows"],
  ["pods", "Pods"],
  ["explain", "Explain"],
  ["config", "Configuration"],
] as const;

const main = document.getElementById("main")!;
const banner = h("p", { class: "banner", role: "alert", hidden: true });
const status = h("span", { class: "live quiet" });
const pause = h("button", { type: "button", class: "button", "aria-pressed": "false" }, "Pause");
const links = NAVIGATION.map(([path, words]) => h("a", { href: link(path ? [path] : []) }, words));

let view: View | undefined;
let viewKey = "";
let timer = 0;
let wait = EVERY;
let paused = false;
let turn = 0;

function make(route: Route): View {
  const [first, namespace, name] = route.path;
  if (first === "flows") return new Flows(route);
  if (first === "pods") return namespace && name ? new PodPage(route) : new PodList(route);
  if (first === "explain") return new Explain(route);
  if (first === "config") return new ConfigurationPage();
  return new OverviewPage(route);
}

/** Show the view that the address names, and ask; what is asked later wins. */
async function look(): Promise<void> {
  clearTimeout(timer);
  const mine = ++turn;
  const route = parse(location.hash);
  try {
    await learnWords();
    if (mine !== turn) return;
    enter(route);
    await view?.refresh(route);
    if (mine === turn) succeeded();
  } catch (error) {
    if (mine === turn) failed(error);
  }
  if (mine === turn && !paused && !document.hidden) timer = window.setTimeout(() => void look(), wait);
}

function enter(route: Route): void {
  const key = route.path.join("/");
  if (view && key === viewKey) return;
  const isFirst = view === undefined;
  view = make(route);
  viewKey = key;
  document.title = `${view.title} · nodeagent`;
  replace(main, banner, view.root);
  links.forEach((element, index) => attribute(element, "aria-current", NAVIGATION[index]?.[0] === (route.path[0] ?? "") ? "page" : null));
  window.scrollTo(0, 0);
  if (!isFirst) main.focus({ preventScroll: true }); // where a screen reader goes on reading
}

function succeeded(): void {
  wait = EVERY;
  banner.hidden = true;
  text(status, `${paused ? "as of" : "live,"} ${clock.format(new Date())}`);
  attribute(status, "data-looks", Number(status.dataset["looks"] ?? 0) + 1);
}

function failed(error: unknown): void {
  wait = Math.min(wait * 1.5, SLOWEST);
  const words = error instanceof Away ? `${error.message} What is shown is what it said last; it is asked again.` : error instanceof Refused ? error.message : `Something in this page failed: ${String(error)}`;
  text(banner, words);
  if (!banner.isConnected) main.prepend(banner);
  banner.hidden = false;
}

pause.addEventListener("click", () => {
  paused = !paused;
  attribute(pause, "aria-pressed", String(paused));
  text(pause, paused ? "Go on" : "Pause");
  void look();
});
document.getElementById("skip")!.addEventListener("click", () => main.focus());
document.getElementById("nav")!.append(...links);
document.getElementById("tools")!.append(status, pause, themeSwitch());
document.addEventListener("visibilitychange", () => void (document.hidden ? clearTimeout(timer) : look()));
window.addEventListener("hashchange", () => void look());
window.addEventListener("online", () => void look());
void look();
