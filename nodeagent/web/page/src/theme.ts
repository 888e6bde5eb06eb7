/** Light, dark, or as the system has it; a choice is remembered by the browser. */

import { attribute, h, text } from "./dom.ts";

const THEMES = ["system", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];
const KEY = "nodeagent-theme";

export function themeSwitch(): HTMLElement {
  const button = h("button", { type: "button", class: "button" });
  let theme = remembered();
  const show = (): void => {
    attribute(document.documentElement, "data-theme", theme === "system" ? null : theme);
    text(button, `Theme: ${theme}`);
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? "system";
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // A browser that keeps nothing asks again next time.
    }
    show();
  });
  show();
  return button;
}

function remembered(): Theme {
  try {
    const found = localStorage.getItem(KEY);
    return THEMES.find((theme) => theme === found) ?? "system";
  } catch {
    return "system";
  }
}
