/** What a view is to the page around it. */

import type { Route } from "./route.ts";

export interface View {
  readonly title: string;
  readonly root: HTMLElement;
  /** Ask the agent, and show what it says; *route* is where we are now. */
  refresh(route: Route): Promise<void>;
}
