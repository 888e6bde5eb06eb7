/** A table that sorts by links, keeps its rows while their numbers change, and says so to screen readers. */

import { attribute, h, keyed, replace, text, type Child, type Kept } from "./dom.ts";

export interface Column<T> {
  name: string;
  label: string;
  /** Numbers are aligned on the right. */
  number?: boolean;
  /** Whether it can be sorted by. */
  sortable?: boolean;
  /** What the cell says; it is made anew only where this changes. */
  value(row: T): string | number;
  /** What the cell holds, if that is more than the value's text. */
  cell?(row: T): Child[];
}

export interface TableOptions<T> {
  caption: string;
  columns: Column<T>[];
  key(row: T): string;
  /** The link that sorts by `name`, or by `-name` downwards. */
  sortLink?(sort: string): string;
  /** What stands in the place of rows where there is none. */
  empty: string;
  rowClass?(row: T): string;
}

export class Table<T> {
  readonly root: HTMLElement;
  private readonly body = h("tbody");
  private readonly heads = new Map<string, HTMLElement>();
  private readonly none: HTMLElement;

  constructor(private readonly options: TableOptions<T>) {
    const heads = options.columns.map((column) => this.head(column));
    const caption = h("caption", { class: "quiet" }, options.caption);
    const table = h("table", {}, caption, h("thead", {}, h("tr", {}, ...heads)), this.body);
    this.none = h("p", { class: "none" }, options.empty);
    this.root = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": options.caption }, table, this.none);
  }

  show(rows: readonly T[], sort: string): void {
    for (const column of this.options.columns) this.mark(column, sort);
    keyed(this.body, rows, this.options.key, (row) => this.row(row));
    this.none.hidden = rows.length > 0;
  }

  private head(column: Column<T>): HTMLElement {
    const inner = column.sortable && this.options.sortLink ? h("a", {}, column.label) : column.label;
    const head = h("th", { scope: "col", class: column.number ? "number" : null }, inner);
    this.heads.set(column.name, head);
    return head;
  }

  private mark(column: Column<T>, sort: string): void {
    const head = this.heads.get(column.name);
    const inner = head?.firstElementChild;
    if (!head || !inner || !this.options.sortLink) return;
    const [up, down] = [sort === column.name, sort === `-${column.name}`];
    attribute(head, "aria-sort", up ? "ascending" : down ? "descending" : null);
    // Numbers are looked at from the largest down first.
    const next = up ? `-${column.name}` : down || !column.number ? column.name : `-${column.name}`;
    attribute(inner, "href", this.options.sortLink(next));
  }

  private row(first: T): Kept<T> {
    const cells = this.options.columns.map((column) => h("td", { class: column.number ? "number" : null }));
    const values: (string | number | undefined)[] = cells.map(() => undefined);
    const element = h("tr", {}, ...cells);
    let isFirst = true;
    const update = (row: T): void => {
      attribute(element, "class", this.options.rowClass?.(row) || null);
      for (const [index, column] of this.options.columns.entries()) {
        const value = column.value(row);
        const cell = cells[index];
        if (value === values[index] || !cell) continue;
        values[index] = value;
        if (column.cell) replace(cell, ...column.cell(row));
        else text(cell, String(value));
        if (!isFirst && column.number) flash(cell);
      }
      isFirst = false;
    };
    update(first);
    return { element, update };
  }
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Let the eye find what changed; people who want no motion see none. */
function flash(cell: HTMLElement): void {
  if (still.matches) return;
  const colour = getComputedStyle(cell).getPropertyValue("--changed");
  cell.animate([{ backgroundColor: colour }, { backgroundColor: "transparent" }], { duration: 1200, easing: "ease-out" });
}
