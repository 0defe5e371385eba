"""The report: one file that is complete in itself, shows every block, escapes all that users wrote, and works."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import optuna
import pytest
from planted_studies import Outcome, planted, train
from rich.console import Console

from ablations.analysis.effects import effects
from ablations.analysis.pairs import pairwise
from ablations.analysis.tables import read, rows_table
from ablations.design.design import to_plain
from ablations.design.space import grid
from ablations.engine.storage import create_study, open_study, read_design
from ablations.report.html import write_report
from ablations.report.html.diagram import diagram, words
from ablations.report.html.findings import matrices
from ablations.report.summary import summarise
from lit_simplified.config import PRE_LN, PRESETS, SWITCHES, BlockConfig, Position, RunConfig, block_id, types

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(1)</script><!-- \' {{ 7*7 }}'


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its texts, its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": [], "h1": [], "pre": []}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open and self._open[-1] in self.inside:
            self.inside[self._open[-1]][-1] += data

    def visible(self) -> str:
        """All text outside scripts and styles, with single spaces."""
        hidden = {*self.inside["script"], *self.inside["style"]}
        return re.sub(r"\s+", " ", " ".join(text for text in self.texts if text not in hidden))


def write(study: optuna.Study, folder: Path) -> tuple[Path, Page]:
    path = write_report(study, folder=folder)
    return path, Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """The whole grid with four seeds, with curves of 120 points."""
    return train(tmp_path_factory.mktemp("full"), points=120, seeds=(0, 1, 2, 3))


@pytest.fixture(scope="module")
def written(study: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    return write(study, tmp_path_factory.mktemp("report"))


def test_the_file_loads_nothing_and_lets_nothing_but_its_own_scripts_run(written: tuple[Path, Page]) -> None:
    _, page = written
    for tag, attrs in page.tags:
        assert not {"src", "srcset", "data", "poster", "action", "background"} & set(attrs), tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert (attrs.get("href") or "#").startswith("#")
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
    for style in (*page.inside["style"], *(attrs.get("style") or "" for _, attrs in page.tags)):
        assert "url(" not in style
        assert "@import" not in style
    [policy] = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    scripts = [script for script, (_, attrs) in zip(
        page.inside["script"], [entry for entry in page.tags if entry[0] == "script"], strict=True
    ) if attrs.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests


def test_every_row_and_cell_is_there_in_less_than_two_megabytes(
    study: optuna.Study, written: tuple[Path, Page]
) -> None:
    path, page = written
    record = read(study)
    assert len(record.cells) == 4 * len(grid())
    assert path.stat().st_size < 2_000_000
    assert [attrs["id"] for attrs in bodies(page)] == list(rows_table(record).row)
    filters = [name for tag, attrs in page.tags if tag == "select" and (name := attrs.get("data-filter"))]
    levels = [tuple(attrs[f"data-filter-{index}"] for index in filters) for attrs in bodies(page)]
    assert len(set(levels)) == len(grid())
    assert set(record.cells.cell) <= {text.strip() for text in page.texts}


def bodies(page: Page) -> list[dict[str, str | None]]:
    """The rows of the ranking."""
    return [attrs for tag, attrs in page.tags if tag == "tbody" and "data-text" in attrs]


def test_the_numbers_are_those_of_the_tables(study: optuna.Study, written: tuple[Path, Page]) -> None:
    record = read(study)
    rows = rows_table(record)
    text = written[1].visible()
    sas = rows[rows.preset == "sas"].iloc[0]
    assert f"{sas.val_loss_mean:.4f} [{sas.val_loss_low:.3f}, {sas.val_loss_high:.3f}]" in text
    assert f"{sas.speed_ratio:.3f} [{sas.speed_ratio_low:.3f}, {sas.speed_ratio_high:.3f}]" in text
    found = effects(record, rows)
    assert len(found) > 20
    for row in found[(found.measure == "loss") & found.estimate.notna()].itertuples():
        assert f"{row.estimate:+.4f}" in text, row.term
    for words_ in ("holds", "does not hold", "inconclusive"):
        assert f"{words_}: " in text


def test_pairs_read_the_same_from_both_sides(study: optuna.Study) -> None:
    record = read(study)
    pairs = pairwise(record, rows_table(record))
    names, found = matrices(pairs)
    assert set(names) == {*pairs.left_row, *pairs.right_row}
    assert set(names.values()) == {*pairs.left, *pairs.right}
    left, right = (block_id(PRESETS[name]) for name in ("sas", "pre_ln"))
    sas, baseline = found["loss"][left, right], found["loss"][right, left]
    assert float(sas["text"]) == -float(baseline["text"]) != 0
    assert {sas["kind"], baseline["kind"]} == {"good", "bad"}  # seeds differ by the same for all: no spread
    speed = found["speed"][left, right]
    assert (speed["text"], speed["interval"], speed["kind"]) == ("1.20", "[1.12, 1.29]", "good")


def test_what_users_wrote_stays_text(tmp_path: Path) -> None:
    asked = {"question": HOSTILE, "source": HOSTILE,
             "compare": {"block": ["pre_ln", "sas", "parallel"],
                         HOSTILE: {HOSTILE: {"model.depth": 2}, "b": {"model.depth": 3}}},
             "claims": [{"left": "sas", "is": "better", "right": "pre_ln", "paper": HOSTILE, "name": HOSTILE}]}

    def fail(config: RunConfig, execution: int) -> tuple[str, Any]:
        hostile = config.model.block == PRESETS["sas"]
        return ("failed", (f"reason {HOSTILE}", f"trace {HOSTILE}")) if hostile else planted(config, execution)

    study = copied(train(tmp_path, study=asked, outcome=fail), name=HOSTILE)
    study.set_user_attr(f"command:{HOSTILE}", {"command": f"python {HOSTILE}", "time": "2026-01-01T00:00:00"})
    study.set_user_attr("machine:x", {"cpu": HOSTILE, "cores": 2, "gpu": "", "system": "", "versions": {HOSTILE: "1"}})
    study.set_user_attr("corpus", {"sources": [f"/home/{HOSTILE}"]})
    _, page = write(study, tmp_path)
    tags = Counter(tag for tag, _ in page.tags)
    assert "img" not in tags
    assert page.inside["title"] == page.inside["h1"] == [f"Study {HOSTILE}"]
    assert page.texts.count(HOSTILE) > 4  # question, levels, paper, ...
    assert {attrs.get("data-filter-0") for attrs in bodies(page)} <= {"sequential", "parallel"}
    assert f"trace {HOSTILE}" in page.inside["pre"]
    assert f"python {HOSTILE}" in page.inside["pre"]
    assert any(text == f"reason {HOSTILE}" for text in page.texts)
    assert not any("alert" in script for script in page.inside["script"] if not script.startswith("{"))
    assert not any("<" in script for script in page.inside["script"] if script.startswith("{"))
    _, clean = write(train(tmp_path / "clean", presets=("pre_ln",)), tmp_path / "clean")
    assert tags["script"] == Counter(tag for tag, _ in clean.tags)["script"]


def test_names_inside_the_plots_cannot_end_their_script(tmp_path: Path) -> None:
    path, page = write(renamed(train(tmp_path, presets=("pre_ln", "sas")), label=HOSTILE), tmp_path)
    [data] = [script for script in page.inside["script"] if script.startswith("{")]
    assert "<" not in data
    assert HOSTILE in json.dumps(json.loads(data), ensure_ascii=False).replace('\\"', '"')
    assert {attrs.get("id") for _, attrs in page.tags} >= set(json.loads(data))
    assert "{safe}" not in data  # Bokeh's word for a tooltip that is not escaped
    assert path.exists()


def renamed(study: optuna.Study, *, label: str) -> optuna.Study:
    """The study with this label of every row."""
    design = read_design(study)
    rows = tuple(replace(row, label=label) for row in design.rows)
    study.set_user_attr("design", to_plain(replace(design, rows=rows)))
    return study


def copied(study: optuna.Study, *, name: str) -> optuna.Study:
    """The same study under a name that no file could have."""
    memory = optuna.storages.InMemoryStorage()
    optuna.copy_study(from_study_name=study.study_name, from_storage=study._storage, to_storage=memory,
                      to_study_name=name)
    return optuna.load_study(study_name=name, storage=memory)


def always(state: str, told: Any) -> Outcome:
    return lambda config, execution: (state, told)


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing trained": ({"stop_after": 0, "speed": False}, [
        "Nothing has been trained yet", "training runs not finished yet", "No cell is complete yet",
        "No loss is known yet", "not run yet"]),
    "half trained": ({"stop_after": 20, "speed": False}, [
        f"{len(grid()) - 20} waiting", "no plot of loss against speed", "training runs not finished yet"]),
    "values being chosen": ({"presets": ("pre_ln", "sas"), "learning_rates": (1e-3, 3e-3), "select": 1, "stop_after": 3,
                             "speed": False}, [
        "2 rows, 4 training runs: 3 complete, 1 waiting", "1 training run not finished yet", "Loss by learning rate",
        "No loss is known yet", "chosen on seed 1000, which judges nothing"]),
    "no speed pass": ({"presets": ("pre_ln", "sas"), "seeds": (0, 1), "speed": False}, [
        "no plot of loss against speed", "sas is level with pre_ln", "the speed pass has not measured both"]),
    "named blocks only": ({"presets": tuple(PRESETS), "seeds": (0, 1), "learning_rates": (1e-3, 3e-3)}, [
        "Loss by learning rate", "Loss against speed", "loss nan"]),
    "all failed": ({"presets": ("pre_ln", "sas"), "outcome": always("failed", ("no memory", "Traceback: here"))}, [
        "2 failed", "no memory", "Traceback: here", "No cell is complete yet"]),
    "one cell": ({"presets": ("pre_ln",), "seeds": (0,)}, ["1 row, 1 training run: 1 complete", "No cell diverged"]),
    "recorded before studies were files": ({"legacy": True}, ["Main effects", "sas is level with pre_ln"]),
    "one at a time": ({"study": {"design": "one_at_a_time", "compare": {"model.block.norm": ["rms", "layer", "none"],
                                                                       "model.depth": [2, 4]}}, "seeds": (0, 1)}, [
        "One change at a time", "rms → none", "against pre_ln", "Loss by depth", "One change at a time"]),
    "a path": ({"study": {"design": "path", "compare": {"block": ["pre_ln", "sas_p"]}}, "seeds": (0, 1)}, [
        "Steps of the path", "step 1", "first to last", "The intervals of loss come from the spread between seeds"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_study_in_any_state_has_a_report(case: str, tmp_path: Path) -> None:
    options, sentences = CASES[case]
    study = train(tmp_path, **options)
    _, page = write(study, tmp_path)
    text = page.visible()
    for sentence in sentences:
        assert sentence in text, sentence
    assert len(bodies(page)) == read(study).every.row.nunique()
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    linked = {str(attrs["href"])[1:] for _, attrs in page.tags if "href" in attrs}
    assert linked <= set(ids)


def test_a_study_without_a_cell_has_a_report(tmp_path: Path) -> None:
    study = create_study(str(tmp_path / "journal.log"), name="s", spec={"scale": "smoke", "task": "clm"})
    text = write(study, tmp_path)[1].visible()
    for words_ in ("The study has no cells yet", "The order of the rows means nothing"):
        assert words_ in text


FRACTION = {
    "question": "Which parts?", "design": {"fraction": {"rows": 8}}, "compare": {
        "skips": {"with": {"model.block.attention_skip": True, "model.block.mlp_skip": True},
                  "without": {"model.block.attention_skip": False, "model.block.mlp_skip": False}},
        "model.block.attention": ["softmax", "shaped"], "model.block.layout": ["sequential", "parallel"],
        "model.block.norm": ["rms", "none"],
    },
}


def test_what_a_fraction_cannot_separate_stands_before_its_numbers(tmp_path: Path) -> None:
    _, page = write(train(tmp_path, study=FRACTION), tmp_path)
    text = page.visible()
    assert text.index("cannot separate some effects") < text.index("Ranking Lowest")
    assert "skips x attention = " in text
    assert "not separable from" in text


def test_the_figures_that_a_study_names_come_first(tmp_path: Path) -> None:
    asked = {"compare": {"block": ["pre_ln", "sas"], "model.depth": [2, 32]},
             "figures": [{"loss_by_axis": "model.depth"}, "loss_by_speed"]}
    _, page = write(train(tmp_path, study=asked), tmp_path)
    ids = [str(attrs["id"]) for _, attrs in page.tags if attrs.get("id")]
    drawn = [name for name in ids if name.startswith("plot-")]
    assert drawn[:2] == ["plot-axis-0", "plot-speed"]
    assert {"plot-steps", "plot-seconds", "plot-effects-loss"} < set(drawn)
    assert ids.index("plot-speed") < ids.index("ranking") < ids.index("plot-steps")
    [data] = [json.loads(script) for script in page.inside["script"] if script.startswith("{")]
    models = json.dumps(data["plot-axis-0"])
    assert "Whisker" in models
    assert '"LogAxis"' in models
    assert "tokens per second" in json.dumps(data["plot-speed"])  # two sizes have two baselines


def test_thirty_rows_have_a_report(tmp_path: Path) -> None:
    asked = {"compare": {"block": list(PRESETS), "model.depth": [1, 2, 3, 4]}}
    _, page = write(train(tmp_path, study=asked), tmp_path)
    assert len(bodies(page)) == 4 * len(PRESETS)
    named = {attrs["data-series"] for _, attrs in page.tags if "data-series" in attrs}
    assert len(named) == 4 * (len(PRESETS) - 1)  # one diverges


@pytest.fixture
def dyt(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a norm that the table of switches does not have otherwise."""
    switch = SWITCHES["norm"]
    before, further = switch.positions, Position(name="dyt", words="dynamic tanh")
    known = {**types.hints(BlockConfig), "norm": Literal[*(position.name for position in (*before, further))]}
    monkeypatch.setitem(types._HINTS, BlockConfig, known)
    object.__setattr__(switch, "positions", (*before, further))
    yield "dyt"
    object.__setattr__(switch, "positions", before)


def test_a_further_position_of_a_switch_appears_without_a_change(dyt: str, tmp_path: Path) -> None:
    study = train(tmp_path, study={"compare": {"model.block.norm": ["rms", dyt, "none"]}}, seeds=(0, 1))
    found, _ = summarise(study, folder=tmp_path, console=Console(file=StringIO()))
    assert set(found.rows.norm) == {"rms", dyt, "none"}
    assert "| norm dyt | dyt | 2 |" in (tmp_path / "summary.md").read_text()
    _, page = write(study, tmp_path)
    assert {attrs["data-filter-0"] for attrs in bodies(page)} == {"rms", dyt, "none"}
    assert ("option", {"value": dyt}) in page.tags
    assert "dynamic tanh" in page.visible()
    assert "rms → dyt" in page.visible()
    block = replace(PRE_LN, norm=dyt)
    assert labels(block, large=True).count("dynamic tanh") == 2
    assert labels(block)[0].startswith("dyna")
    assert "norm: dynamic tanh" in words(block)


def test_kills_and_cells_that_were_given_up_are_shown_without_the_name_of_a_host(tmp_path: Path) -> None:
    def kill(config: RunConfig, execution: int) -> tuple[str, Any]:
        dies = config.model.block == PRESETS["sas"] or (config.model.block == PRESETS["sas_p"] and execution == 1)
        return ("killed", None) if dies else planted(config, execution)

    study = train(tmp_path, outcome=kill, presets=("pre_ln", "sas", "sas_p"), seeds=(0,))
    path, page = write(study, tmp_path)
    rows = [html.unescape(re.sub(r"<[^>]+>", " ", row)) for row in
            re.findall(r"<tr>.*?</tr>", path.read_text(encoding="utf-8"))]
    [given_up] = [row for row in rows if "given up" in row]
    assert "sas-s0" in given_up
    assert "was killed 3 times" in given_up
    killed = [row.split()[0] for row in rows if " killed " in row and "host 1, process" in row]
    assert Counter(name.rpartition("-lr")[0] for name in killed) == {"sas-s0": 3, "sas_p-s0": 1}
    worker = study.get_trials()[0].user_attrs["executions"][0]["worker"]
    assert worker.rpartition(":")[0] + ":" not in page.visible()


def test_commands_are_shown_as_typed_or_said_to_be_lost(tmp_path: Path) -> None:
    study = train(tmp_path, presets=("pre_ln",))
    assert "The commands were not kept" in write(study, tmp_path)[1].visible()
    typed = {"command": "python -m ablations run --lr 1e-3", "time": "2026-01-02T03:04:05+00:00"}
    study.set_user_attr("command:1", typed)
    _, page = write(study, tmp_path)
    assert "python -m ablations run --lr 1e-3" in page.inside["pre"]
    assert "2026-01-02 03:04 UTC" in page.visible()


@pytest.mark.parametrize("large", [False, True])
def test_drawings_of_different_blocks_differ(large: bool) -> None:
    blocks = {**{block_id(block): block for block in grid()}, **PRESETS}
    drawings = {name: shapes(diagram(block, large=large)) for name, block in blocks.items()}
    for left, right in itertools.combinations(drawings, 2):
        assert (drawings[left] == drawings[right]) == (blocks[left] == blocks[right]), (left, right)


def shapes(svg: str) -> str:
    """A drawing without its description, which would differ anyhow; fails unless it is well-formed XML."""
    root = ElementTree.fromstring(svg)
    root.attrib.pop("aria-label")
    return ElementTree.tostring(root, encoding="unicode")


def labels(block: BlockConfig, **options: Any) -> list[str]:
    return [str(text.text) for text in ElementTree.fromstring(diagram(block, **options)).iter() if text.text]


def test_a_drawing_has_the_parts_of_its_block_and_no_others() -> None:
    assert labels(PRE_LN) == ["RMS", "V", "A", "P", "RMS", "MLP"]
    assert labels(PRESETS["sas"]) == ["RMS", "I+A−C", "RMS", "MLP", "β"]
    assert labels(PRESETS["sas_p"]) == ["RMS", "I+A−C", "β", "MLP", "β"]
    assert labels(PRESETS["sas_p_no_norm"]) == ["I+A−C", "β", "MLP", "β"]
    assert labels(PRESETS["sas_p_no_norm"], first=True) == ["RMS", "V", "I+A−C", "β", "MLP", "β"]
    assert labels(PRESETS["v_skipinit"])[2] == "I+A"
    assert "0.17" in labels(PRESETS["sas"], large=True, depth=6)
    arcs = {name: diagram(block).count("Q") // 2 for name, block in PRESETS.items()}
    assert arcs == {"pre_ln": 2, "parallel": 1, "v_skipinit": 1, "shaped_orthogonal": 1, "naive_skipless": 1, "sas": 1,
                    "sas_p": 0, "sas_p_no_norm": 0}


def test_every_field_that_changes_the_parts_changes_the_drawing() -> None:
    other = [replace(PRE_LN, norm="layer"), replace(PRE_LN, value="residual"), replace(PRE_LN, projection="residual"),
             replace(PRE_LN, attention_gain=0.5), replace(PRE_LN, mlp_gain=0.5), replace(PRE_LN, activation="gelu"),
             replace(PRE_LN, glu=True), PRE_LN]
    assert len({shapes(diagram(block, large=True)) for block in other}) == len(other)
    assert words(PRE_LN).startswith("layout: attention, then MLP; attention skip: with; mlp skip: with; attention: ")
    assert "norm: no norm, kept in this first block" in words(PRESETS["sas_p_no_norm"], first=True)


def test_the_study_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    train(tmp_path, presets=("pre_ln", "sas"), stop_after=1, speed=False)
    again = open_study(str(tmp_path / "journal.log"), name="s")
    before = (tmp_path / "journal.log").read_bytes()
    write(again, tmp_path)
    assert (tmp_path / "journal.log").read_bytes() == before


def test_the_data_card_is_shown_without_the_path_of_its_file(tmp_path: Path) -> None:
    study = train(tmp_path, presets=("pre_ln",))
    study.set_user_attr("corpus", {"card": "/home/me/cache/card.json", "corpus_digest": "feedbeef"})
    page = write_report(study, folder=tmp_path).read_text()
    assert "feedbeef" in page
    assert "/home/me" not in page
