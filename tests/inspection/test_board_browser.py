"""TensorBoard's pages on two runs, in a browser: what a reader sees of them."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard import default, program
from test_board import write_run

from ablations.viewers import tensorboard
from lit_simplified.config import SWITCHES
from lit_simplified.inspection.board import GAP, SIDE

SHOTS = os.environ.get("BOARD_SHOTS")
"""A folder for pictures of the pages, to look at."""
TEXT = """
(() => {
  const texts = [];
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.data);
    if (node.nodeType === Node.ELEMENT_NODE && ["STYLE", "SCRIPT"].includes(node.tagName)) return;
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return texts.join(" ").replace(/\\s+/g, " ");
})()
"""

IMAGES = """
(() => {
  const elements = root => [...root.querySelectorAll("*")].flatMap(
    element => [element, ...(element.shadowRoot ? elements(element.shadowRoot) : [])]);
  const sizes = elements(document)
    .filter(element => element.tagName === "IMG" && element.src.includes("individualImage"))
    .map(image => [image.naturalWidth, image.naturalHeight]);
  return sizes.length === 12 && sizes.every(([width]) => width > 0) && sizes;
})()
"""
RUNS = ("pre_ln-s0", "sas_p-s1")


class Browser:
    """A headless Chromium, driven over the DevTools protocol through a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        (theirs_in, self.to), (self.come, theirs_out) = os.pipe(), os.pipe()
        # Chromium reads from 3 and writes to 4, which must not be taken by what is moved there.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--window-size=1500,1100", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, place) for place, end in enumerate(high, 3)] and None,
            pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        self.answers = os.fdopen(self.come, "rb")
        self.number = 0
        self.session = ""
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What a command of the protocol gives."""
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        request |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(request).encode() + b"\0")
        while True:
            answer = json.loads(self.message())
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def message(self) -> bytes:
        message = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser ended"
            message += byte
        return bytes(message)

    def ask(self, script: str) -> Any:
        """The value of a script in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, *, seconds: float = 60) -> Any:
        """The value of a script as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.ask(script)):
            assert time.monotonic() < deadline, f"not so: {script}; there is: {self.ask(TEXT)[:3000]}"
            time.sleep(0.1)
        return value

    def show(self, address: str, *expected: str) -> str:
        """The text of a page, once all that is expected stands there."""
        self.call("Page.navigate", url="about:blank")  # else a change of the fragment alone loads nothing anew
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && document.body !== null")
        there = f"{json.dumps(expected)}.every(one => text.includes(one))"
        text: str = self.wait(f"(text => {there} && text)({TEXT.strip()})")
        self.picture(address.rpartition("#")[2])
        return text

    def picture(self, name: str) -> None:
        if SHOTS:
            time.sleep(3)
            data = self.call("Page.captureScreenshot")["data"]
            (Path(SHOTS) / f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        self.answers.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    browser = Browser(found, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "pre_ln-s0", "pre_ln")
    write_run(runs / "sas_p-s1", "sas_p", seed=1)
    server = program.TensorBoard(default.get_plugins())
    server.configure(argv=[
        "tensorboard", "--logdir", str(runs), "--port", "0", "--samples_per_plugin", tensorboard.KEPT
    ])
    address: str = server.launch()
    return address


@pytest.mark.slow
def test_charts_put_blocks_side_by_side(browser: Browser, address: str) -> None:
    browser.show(
        f"{address}#custom_scalars", "Gains and gradients by block", "Signals by block", "Updates by block",
        "alpha: gain of the identity, mean over heads", "gradient norm", *RUNS,
        "gains/block_05/alpha (sas_p-s1)", "grad/block_00 (pre_ln-s0)",  # the charts' legends
        "Matches (6)", "Matches (12)",  # six blocks of one run, or of both
    )


@pytest.mark.slow
def test_the_table_has_a_row_per_run_and_boxes_for_the_switches(browser: Browser, address: str) -> None:
    boxes = ("softmax skipinit shaped", "sequential parallel", "rms layer none", "linear identity residual")
    text = browser.show(f"{address}#hparams", *SWITCHES, *boxes, *RUNS, "3.9000", "4.0000")
    head, row = text[text.index("Trial ID"):].split("sas_p-s1", 1)
    assert head.split("Metrics")[1].split()[:7] == [
        "attention", "attention_skip", "layout", "mlp_skip", "norm", "validation", "loss"
    ]
    assert row.split()[:6] == ["shaped", "false", "parallel", "false", "rms", "3.9000"]


@pytest.mark.slow
def test_attention_is_drawn_and_explained(browser: Browser, address: str) -> None:
    browser.show(
        f"{address}#images", "attention/block_00/head_00", "attention/block_05/head_01", "Left: the attention matrix A",
        *RUNS,
    )
    assert sorted(browser.wait(IMAGES)) == [*6 * [[SIDE, SIDE]], *6 * [[2 * SIDE + GAP, SIDE]]]


@pytest.mark.slow
def test_scalars_histograms_and_texts_are_shown(browser: Browser, address: str) -> None:
    browser.show(f"{address}#scalars", "gains/block_00/alpha", "signal", "spread", "update", *RUNS)
    browser.show(f"{address}#histograms", "heads/block_00/alpha", "heads/block_02/gamma", *RUNS)
    browser.show(
        f"{address}#text", "6 blocks, width 64, 4 heads", "+--- MLP --- b_FF ---------+", "(mixing): ShapedMixing",
        "learning_rate: 0.01", *RUNS,
    )
