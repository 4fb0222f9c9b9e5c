// A table that is updated in place, and that becomes a list of cards on a narrow screen.

import { h, keyed, setAttribute, setText } from "./dom.js";

export class Table {
  // `columns`: [{title, className, text(item), node(item), update(node, item)}]: a cell has a text,
  // or a node that is made once and updated.
  // Below the width `stackBelow` in pixels, a row is shown as a card.
  constructor(caption, columns, keyOf, { empty = "none", stackBelow = 520 } = {}) {
    this.columns = columns;
    this.keyOf = keyOf;
    // The roles are said again, since a browser drops them with display: block.
    const heads = columns.map(({ title, className }) =>
      h("th", { scope: "col", role: "columnheader", class: className }, title),
    );
    this.body = h("tbody", { role: "rowgroup" });
    // Both are hidden at first: before an answer of pyvtep, it is not known that there is nothing.
    this.table = h(
      "table",
      { role: "table", hidden: true },
      h("caption", { class: "visually-hidden" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)),
      this.body,
    );
    this.empty = h("p", { class: "muted empty", hidden: true }, empty);
    this.element = h("div", { class: "table-box" }, this.table, this.empty);
    new ResizeObserver(() => {
      this.element.classList.toggle("stacked", this.element.clientWidth < stackBelow);
    }).observe(this.element);
  }

  update(items, { classOf = () => null, empty } = {}) {
    if (empty !== undefined) setText(this.empty, empty);
    setAttribute(this.table, "hidden", items.length === 0);
    setAttribute(this.empty, "hidden", items.length !== 0);
    keyed(
      this.body,
      items,
      this.keyOf,
      (item) => {
        const row = h("tr", { role: "row" });
        for (const column of this.columns) {
          const cell = h("td", { role: "cell", class: column.className, "data-title": column.title });
          if (column.node) cell.append(column.node(item));
          row.append(cell);
        }
        return row;
      },
      (row, item) => {
        setAttribute(row, "class", classOf(item));
        this.columns.forEach((column, index) => {
          const cell = row.children[index];
          if (column.node) column.update(cell.firstChild, item);
          else setText(cell, column.text(item));
        });
      },
    );
  }
}
