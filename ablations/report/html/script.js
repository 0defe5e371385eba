"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting. A table marked "groups" is sorted by its bodies, as a row of the study has two; any other by its rows.
  function units(table) {
    return table.classList.contains("groups") ? [...table.tBodies] : [...table.tBodies[0].rows];
  }

  function key(unit, column) {
    const cell = (unit.rows ? unit.rows[0] : unit).cells[column];
    const text = cell.dataset.key ?? cell.textContent.trim();
    return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
  }

  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  }

  function sort(table, column, order) {
    const sign = order === "descending" ? -1 : 1;
    const keyed = units(table).map(unit => [key(unit, column), unit]);
    keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
    for (const [, unit] of keyed) unit.parentNode.append(unit);
    all("thead th", table).forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", order);
      else head.removeAttribute("aria-sort");
    });
  }

  function first(head) {
    return head.dataset.first || "ascending";
  }

  for (const head of all("table.sortable th")) {
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const other = { ascending: "descending", descending: "ascending" };
      sort(head.closest("table"), head.cellIndex, now ? other[now] : first(head));
    });
  }

  // Filters of the ranking, by their number, as an axis may have any name: every choice and every word of the search must fit.
  const ranking = document.getElementById("rows");
  const search = document.getElementById("search");
  const choices = all("select[data-filter]");
  const shown = document.getElementById("shown");
  const order = document.getElementById("order");

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const body of ranking.tBodies) {
      const fits = choices.every(choice => !choice.value || body.getAttribute("data-filter-" + choice.dataset.filter) === choice.value)
        && words.every(word => body.dataset.text.includes(word));
      body.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${ranking.tBodies.length} rows`;
  }

  function show(body, open) {
    body.querySelector("tr.detail").hidden = !open;
    body.querySelector("button.name").setAttribute("aria-expanded", String(open));
  }

  function showLinked() {
    const body = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (body && body.matches("#rows > tbody")) {
      show(body, true);
      body.scrollIntoView();
    }
  }

  if (ranking) {
    search.addEventListener("input", filter);
    for (const choice of choices) choice.addEventListener("change", filter);
    document.getElementById("clear").addEventListener("click", () => {
      search.value = "";
      for (const choice of choices) choice.value = "";
      filter();
    });
    order.addEventListener("change", () => {
      const head = ranking.tHead.rows[0].cells[Number(order.value)];
      sort(ranking, head.cellIndex, first(head));
    });
    for (const body of ranking.tBodies) {
      const button = body.querySelector("button.name");
      button.addEventListener("click", () => show(body, button.getAttribute("aria-expanded") !== "true"));
    }
    window.addEventListener("hashchange", showLinked);
    showLinked();
    filter();
  }

  // Plots, and the legend that they share.
  const items = JSON.parse(document.getElementById("plots").textContent);
  for (const [id, item] of Object.entries(items)) {
    if (matchMedia("(pointer: coarse)").matches) touch(item);
    Bokeh.embed.embed_item(item, id);
  }

  // On a touch screen a drag over a plot must scroll the page.
  function touch(item) {
    for (const root of item.doc.roots) {
      const toolbar = root.attributes.toolbar;
      if (toolbar && toolbar.attributes) toolbar.attributes.active_drag = null;
    }
  }

  for (const button of all("button[data-series]")) {
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      for (const other of all("button[data-series]")) {
        if (other.dataset.series === button.dataset.series) other.setAttribute("aria-pressed", String(visible));
      }
      for (const plot of Bokeh.documents.flatMap(page => page.roots())) {
        for (const renderer of plot.renderers) {
          if (renderer.name === button.dataset.series) renderer.visible = visible;
        }
      }
    });
  }
})();
