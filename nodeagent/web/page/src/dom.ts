/**
 * Elements, made and kept.  All text goes in as text nodes: what pods' owners write is never markup.
 * Nothing here takes markup, and the server's Content-Security-Policy refuses it to whoever tries.
 */

export type Child = Node | string | number | null | undefined | false;
type Handler = (event: Event) => void;
type Attribute = string | number | boolean | null | undefined;
export type Attributes = Record<string, Attribute | Handler>;

const SVG = "http://www.w3.org/2000/svg";

/** Make an HTML element; attributes that are functions are listeners, false and null ones are left out. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill<E extends Element>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else attribute(element, name, value);
  }
  append(element, children);
  return element;
}

/** Set an attribute, or remove it where the value is none; untouched where it is so already. */
export function attribute(element: Element, name: string, value: Attribute): void {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : String(value));
}

/** Append what is there. */
export function append(element: Element, children: readonly Child[]): void {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Put *children* in the place of all that is in *element*. */
export function replace(element: Element, ...children: Child[]): void {
  element.replaceChildren();
  append(element, children);
}

/** Set an element's text, if it differs: selections and screen readers are not disturbed for nothing. */
export function text(element: Element, value: string): void {
  if (element.textContent !== value) element.textContent = value;
}

/** What stands for one item: its element, and how it follows the item. */
export interface Kept<T> {
  element: Element;
  update(item: T): void;
}

const kept = new WeakMap<Element, Map<string, Kept<unknown>>>();

/** Let *parent* hold one element for each item, in order; those of items that were there before stay the same. */
export function keyed<T>(
  parent: Element,
  items: readonly T[],
  key: (item: T) => string,
  make: (item: T) => Kept<T>,
): void {
  const before = (kept.get(parent) ?? new Map()) as Map<string, Kept<T>>;
  const now = new Map<string, Kept<T>>();
  const focused = document.activeElement;
  for (const item of items) {
    const name = key(item);
    const found = before.get(name) ?? make(item);
    before.delete(name);
    found.update(item);
    const there = parent.children[now.size];
    if (there !== found.element) parent.insertBefore(found.element, there ?? null);
    now.set(name, found);
  }
  for (const gone of before.values()) gone.element.remove();
  kept.set(parent, now as Map<string, Kept<unknown>>);
  // A row that moves takes its focus along.
  if (focused !== document.activeElement && focused instanceof HTMLElement && parent.contains(focused)) focused.focus();
}
