/** The configuration in force, and what is wrong with a later one. */

import { ask } from "./api.ts";
import { h, keyed, text } from "./dom.ts";
import type { Route } from "./route.ts";
import type { Configuration } from "./types.ts";
import type { View } from "./view.ts";

export class ConfigurationPage implements View {
  readonly title = "Configuration";
  private readonly file = h("p", { class: "quiet" });
  private readonly notes = h("ul", { class: "troubles", "aria-label": "What is wrong with the configuration" });
  private readonly settings = h("pre", { tabindex: 0, role: "region", "aria-label": "Settings" });
  readonly root = h("section", {}, h("h1", {}, "Configuration in force"), this.file, this.notes, this.settings);

  async refresh(_route: Route): Promise<void> {
    const { value } = await ask<Configuration>("config");
    text(this.file, value.file ? `From ${value.file}; what the file leaves out is the default.` : "No file was given: all are defaults.");
    const notes = [...(value.problem ? [{ bad: true, words: `The last good one is in force: ${value.problem}` }] : []), ...value.warnings.map((words) => ({ bad: false, words }))];
    keyed(this.notes, notes, (note) => note.words, (note) => ({ element: h("li", { class: note.bad ? "bad" : "warn" }, note.words), update: () => undefined }));
    this.notes.hidden = notes.length === 0;
    text(this.settings, JSON.stringify(value.settings, null, 2));
  }
}
