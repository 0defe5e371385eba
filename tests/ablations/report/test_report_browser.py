"""The report in a browser: no errors, sorting sorts, filters hide, plots are drawn, nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from planted_studies import train
from test_report import HOSTILE, renamed

from ablations.analysis.tables import read, rows_table
from ablations.design.space import grid
from ablations.report.html import write_report
from lit_simplified.config import PRESETS, block_id

BEFORE = """
window.errors = [];
addEventListener("error", event => errors.push(String(event.message)));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
"""
PROBE = f"const SAS = {json.dumps(block_id(PRESETS['sas']))};" + """
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const bodies = () => [...document.querySelectorAll("#rows > tbody")];
const shown = () => bodies().filter(body => body.offsetHeight > 0);
const head = title => [...document.querySelectorAll("#rows th")].find(th => th.textContent === title);
const column = title => bodies().map(body => body.rows[0].cells[head(title).cellIndex].dataset.key);
const filterOf = title => [...document.querySelectorAll("label")].find(label => label.firstChild.data === title)
  .querySelector("select");
const set = (element, value, type) => { element.value = value; element.dispatchEvent(new Event(type)); };
function sorted(title) {
  head(title).querySelector("button").click();
  return { values: column(title), order: head(title).getAttribute("aria-sort") };
}
const elements = root => [...root.querySelectorAll("*")].flatMap(
  element => [element, ...(element.shadowRoot ? elements(element.shadowRoot) : [])]);
const canvases = root => elements(root).filter(element => element.tagName === "CANVAS");
function inked(canvas) {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return data.some((value, index) => index % 4 === 3 && value > 0);
}
// What the first plot says when the pointer is at the third point of the last line of a series.
async function hover(name) {
  const plots = Bokeh.documents.flatMap(page => page.roots());
  const plot = plots.find(root => root.renderers.some(one => one.name === name));
  const view = [...Bokeh.index.roots].find(one => one.model === plot);
  let tips = [];
  for (let tries = 0; tries < 10 && !tips.length; tries++) {  // the page may still scroll, and the plot be laid out
    const lines = plot.renderers.findLast(one => one.name === name).data_source;
    const at = view.frame.x_scale.compute(lines.get_column("x")[0][2]);
    const height = view.frame.y_scale.compute(lines.get_column("y")[0][2]);
    const area = elements(view.shadow_el).find(element => element.className.includes("bk-events"));
    const box = area.getBoundingClientRect();
    for (const type of ["pointerover", "pointermove"]) {
      area.dispatchEvent(new PointerEvent(type, { clientX: box.left + at, clientY: box.top + height, pointerId: 1,
        isPrimary: true, pointerType: "mouse", bubbles: true, composed: true }));
    }
    await wait(500);
    tips = elements(document).filter(element => /tooltip-content/.test(element.className));
  }
  return { text: tips.map(tip => tip.textContent).join(" "), images: document.images.length + tips.flatMap(
    tip => [...tip.querySelectorAll("img, script")]).length };
}
(async () => {
  const found = {};
  const plots = document.querySelectorAll(".plot");
  for (let tries = 0; tries < 100 && Bokeh.documents.length < plots.length; tries++) await wait(100);
  await wait(1000);
  found.loss = [sorted("validation loss"), sorted("validation loss")];
  found.speed = sorted("speed");
  found.sorted = document.querySelectorAll("#rows th[aria-sort]").length;
  set(filterOf("norm"), "none", "change");
  found.norms = [...new Set(shown().map(body => body.getAttribute("data-filter-" + filterOf("norm").dataset.filter)))];
  found.filtered = shown().length;
  set(document.getElementById("search"), "sas_p", "input");
  found.searched = shown().map(body => body.id);
  found.count = document.getElementById("shown").textContent;
  document.getElementById("clear").click();
  found.cleared = shown().length;
  const name = bodies()[0].querySelector("button.name");
  name.click();
  found.detail = [bodies()[0].rows[1].offsetHeight > 0, name.getAttribute("aria-expanded")];
  location.hash = "#" + bodies()[5].id;
  await wait(300);
  found.linked = bodies()[5].rows[1].offsetHeight > 0;
  found.plots = [...plots].map(plot => [plot.id, canvases(plot).some(inked)]);
  const series = () => Bokeh.documents.flatMap(doc => doc.roots()).flatMap(root => root.renderers)
    .filter(renderer => renderer.name === SAS).map(renderer => renderer.visible);
  const legend = document.querySelector(`button[data-series="${SAS}"]`);
  found.hover = await hover(SAS);
  found.before = series();
  legend.click();
  found.after = series();
  const foreign = document.createElement("script");
  foreign.textContent = "window.foreign = true";
  document.body.append(foreign);
  found.foreign = window.foreign === true;
  found.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  found.errors = errors;
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
"""


def probed(page: str) -> str:
    """The page with the probe in it, which the page's policy is told to let run."""
    for script in (BEFORE, PROBE):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = page.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
    page = page.replace("<title>", f"<script>{BEFORE}</script><title>", 1)  # behind the policy
    return page.replace("</body>", f"<script>{PROBE}</script></body>")


def browse(page: str, folder: Path) -> dict[str, Any]:
    """What the probe finds in a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    (folder / "page.html").write_text(probed(page), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,2000",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000", "--dump-dom",
         (folder / "page.html").as_uri()],
        capture_output=True, text=True, timeout=180,
    )
    answers = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert answers, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(answers[-1]))
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    return train(tmp_path_factory.mktemp("full"), points=5)


@pytest.mark.slow
def test_the_page_works_in_a_browser(study: optuna.Study, tmp_path: Path) -> None:
    found = browse(write_report(study, folder=tmp_path).read_text(encoding="utf-8"), tmp_path)
    check_table(found)
    assert found["errors"] == []
    assert found["loaded"] == []
    assert not found["foreign"]  # a script that the policy does not name
    assert found["plots"] == [["plot-steps", True], ["plot-seconds", True], ["plot-speed", True],
                              ["plot-effects-loss", True], ["plot-effects-speed", True]]
    loss = next(row for row in rows_table(read(study)).itertuples() if row.preset == "sas").val_loss_mean
    assert f"row:sasseeds:1step:30loss:{loss + 1 / 30:.4f}" in "".join(found["hover"]["text"].split())
    assert found["before"]
    assert all(found["before"])
    assert not any(found["after"])


@pytest.mark.slow
def test_a_hostile_name_is_text_in_the_tooltips_of_plots(tmp_path: Path) -> None:
    study = renamed(train(tmp_path, points=5), label=HOSTILE)
    found = browse(write_report(study, folder=tmp_path).read_text(encoding="utf-8"), tmp_path)
    assert HOSTILE in found["hover"]["text"]
    assert found["hover"]["images"] == 0
    assert found["errors"] == []


def check_table(found: dict[str, Any]) -> None:
    """Sorting, filters and details of the ranking."""
    down, up = found["loss"]
    numbers = pd.to_numeric(pd.Series(up["values"])).dropna()
    assert (down["order"], up["order"]) == ("descending", "ascending")
    assert len(numbers) == len(grid()) - 1  # naive_skipless diverged
    assert up["values"][-1] == down["values"][-1] == ""
    assert numbers.is_monotonic_increasing
    assert pd.to_numeric(pd.Series(down["values"][:-1])).is_monotonic_decreasing
    assert numbers.nunique() > 10
    assert found["speed"]["order"] == "descending"
    assert pd.to_numeric(pd.Series(found["speed"]["values"])).is_monotonic_decreasing
    assert found["sorted"] == 1
    assert (found["norms"], found["filtered"], found["cleared"]) == (["none"], len(grid()) // 2, len(grid()))
    assert found["searched"] == [block_id(PRESETS["sas_p_no_norm"])]
    assert found["count"] == f"1 of {len(grid())} rows"
    assert found["detail"] == [True, "true"]
    assert found["linked"]
