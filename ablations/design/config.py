"""`StudyConfig`: a question as a file, checked before anything trains.

    question: Do skipless blocks still train when the stack gets deeper?
    compare: {block: [pre_ln, sas, sas_p], model.depth: [6, 24]}      rows: every combination that can be built
    tune: {optim.learning_rate: [5e-3, 1e-2]}                         each row is shown at its best
    select: 1                                                         seeds that choose it, and judge nothing
    seeds: 3
    extend: {times: 4}                                                rows of claims with more steps: does it turn?
    at: {smoke: {tune: {}}}                                           what another scale does otherwise
    claims:
      - {left: {block: sas, model.depth: 24}, is: better, right: {block: sas, model.depth: 6}, paper: improves}
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml

from ablations.design.claims import QUANTITIES, RELATIONS
from ablations.design.scales import SCALES
from ablations.design.stages import Extend, Screen, Select
from ablations.design.stopping import Looks
from lit_simplified.config import ConfigError, RunConfig, checked_fields
from lit_simplified.config.checks import Range, Text, check_fields
from lit_simplified.config.safe_yaml import read_yaml
from lit_simplified.config.schema import Seed

DESIGNS = ("full", "one_at_a_time", "path", "fraction", "rows")
CLAIM_KEYS = ("left", "is", "right", "in", "paper", "margin", "name", "task")
FIGURES = ("loss_by_step", "loss_by_time", "loss_by_speed", "loss_by_axis", "effects")
TASKS = ("clm", "mlm")
Prose: TypeAlias = Annotated[str, Text(blank=True, lines=True, most=100_000)]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study file."""

    name: Prose = ""
    """Of the file, without its ending; not a key of it."""
    question: Prose = ""
    """What is asked, in a sentence."""
    source: Prose = ""
    """Who asked it before: a paper and its figure."""
    scale: Prose = ""
    """smoke, small, medium, base or paper; the flag --scale goes before it."""
    task: Prose = ""
    """clm or mlm; the flag --task goes before it."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every run, by dotted path."""
    design: str | Mapping[str, Any] = "full"
    """full, one_at_a_time, path, fraction, {fraction: {rows: 16}} or {rows: [...]}."""
    compare: Mapping[str, Any] = field(default_factory=dict)
    """The axes whose levels make the rows; see `axes`."""
    tune: Mapping[str, Any] = field(default_factory=dict)
    """Axes along which every row is taken at its best."""
    screen: Screen | None = None
    """How rows are screened: {share: of the steps, keep: rows}. None: all rows are judged."""
    select: Select = field(default_factory=Select)
    """Seeds on which the tuned values are chosen, apart from those that judge; or {seeds: ..., share: of the steps}."""
    extend: Extend | None = None
    """{times: the steps, seeds: ...}: rows of claims are trained longer, and verdicts that turn are withheld."""
    seeds: Annotated[int, Range(1, 10**6)] | tuple[Seed, ...] | Looks | None = None
    """How many, or which, or {looks: [how many by the first look, by the second, ...], spending: of alpha}. None: those
    of the scale."""
    baseline: Mapping[str, Any] = field(default_factory=dict)
    """Levels of the row that the others are measured against; a field that is no axis is set for every row."""
    claims: tuple[Mapping[str, Any], ...] = ()
    figures: tuple[Any, ...] = ()
    at: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys that a scale has otherwise, by its name: {smoke: {tune: {}}}. Those of `set` are put over the study's."""

    def __post_init__(self) -> None:
        check_fields(self, "study")

    @property
    def kind(self) -> str:
        """The design's name."""
        return self.design if isinstance(self.design, str) else next(iter(self.design))

    @property
    def options(self) -> Any:
        """What stands behind the design's name."""
        return None if isinstance(self.design, str) else next(iter(self.design.values()))

    def at_scale(self, name: str) -> StudyConfig:
        """The study as it is at a scale."""
        own = self.at.get(name, {})
        found = parse_study(own)
        more = {key: getattr(found, key) for key in own if key != "set"}
        return replace(self, at={}, set={**self.set, **found.set}, **more)


KEYS = tuple(entry.name for entry in fields(StudyConfig) if entry.name != "name")
AT_SCALE = ("set", "tune", "screen", "select", "seeds", "extend")
"""Keys that a scale may have otherwise."""


def parse_study(values: Any, *, name: str = "", where: str = "study") -> StudyConfig:
    """A study from what its YAML holds.

    Raises:
        ConfigError: an unknown key, a wrong type, an empty axis, ...: which key, which value, what to do.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, f"a study is a mapping with the keys {', '.join(KEYS)}")
    for key in values:
        _refuse_unknown(key, KEYS, where=where)
    texts: dict[str, Any] = {key: _text(values.get(key) or "", where=f"{where}: {key}")
                             for key in ("question", "source", "scale", "task")}
    if texts["task"] not in ("", *TASKS):
        raise ConfigError(f"{where}: task", texts["task"], f"choose one of {', '.join(TASKS)}")
    maps: dict[str, Any] = {key: _mapping(values.get(key) or {}, where=f"{where}: {key}")
                            for key in ("set", "compare", "tune", "baseline")}
    maps["set"] = checked_fields(RunConfig, maps["set"], where=f"{where}: set")
    return StudyConfig(
        name=name, **texts, **maps, design=_design(values.get("design") or "full", where=f"{where}: design"),
        seeds=_seeds(values.get("seeds"), where=f"{where}: seeds"),
        screen=_screen(values.get("screen"), where=f"{where}: screen"),
        select=_select(values.get("select", 1), where=f"{where}: select"),
        extend=_extend(values.get("extend"), where=f"{where}: extend"),
        at=_at(values.get("at") or {}, where=f"{where}: at"),
        claims=tuple(_claim(claim, where=f"{where}: claims[{index}]")
                     for index, claim in enumerate(_list(values.get("claims") or [], where=f"{where}: claims"))),
        figures=tuple(_figure(figure, where=f"{where}: figures")
                      for figure in _list(values.get("figures") or [], where=f"{where}: figures")),
    )


def _refuse_unknown(key: Any, known: Sequence[str], *, where: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(where, key, f"no such key. {hint}The keys are {', '.join(known)}")


def _text(value: Any, *, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(where, value, "give a text")
    return value.strip()


def _mapping(value: Any, *, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(where, value, "give a mapping: {FIELD: ..., ...}")
    return {str(key): content for key, content in value.items()}


def _list(value: Any, *, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(where, value, "give a list: [...]")
    return list(value)


def _design(value: Any, *, where: str) -> str | Mapping[str, Any]:
    kind = next(iter(value), None) if isinstance(value, Mapping) and len(value) == 1 else value
    if kind not in DESIGNS:
        raise ConfigError(where, value, f"choose one of {', '.join(DESIGNS)}, or {{fraction: {{rows: 16}}}}")
    if kind == "rows" and not isinstance(value, Mapping):
        raise ConfigError(where, value, "give the rows: {rows: [{AXIS: LEVEL, ...}, ...]}")
    return value


def _seeds(value: Any, *, where: str) -> int | tuple[int, ...] | Looks | None:
    if isinstance(value, Mapping):
        return _looks(value, where=where)
    if value is None or _is_whole(value, 1):
        return value
    if isinstance(value, list | tuple) and value and all(_is_whole(seed, 0) for seed in value) \
            and len(set(value)) == len(value):
        return tuple(value)
    raise ConfigError(where, value, "give a number of seeds of at least 1, or a list of different seeds from 0 on, "
                      "or {looks: [3, 5, 8, 12]}")


def _looks(value: Mapping[Any, Any], *, where: str) -> Looks:
    for key in value:
        _refuse_unknown(key, ("looks", "spending"), where=where)
    seeds = tuple(_whole(count, 2, where=f"{where}: looks")
                  for count in _list(value.get("looks"), where=f"{where}: looks"))
    try:
        return Looks(seeds, spending=value.get("spending", Looks.spending))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.field}", error.value, error.remedy) from None


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(value: Any, least: int, *, where: str) -> int:
    if not _is_whole(value, least):
        raise ConfigError(where, value, f"give a whole number from {least} on")
    return int(value)


def _screen(value: Any, *, where: str) -> Screen | None:
    if value is None:
        return None
    given = _mapping(value, where=where)
    for key in given:
        _refuse_unknown(key, ("share", "keep", "tune"), where=where)
    if not {"share", "keep"} <= given.keys():
        raise ConfigError(where, value, "give the share of the steps, and how many rows go on beside the named blocks: "
                          "{share: 0.1, keep: 2}")
    tune = {name: tuple(_list(levels, where=f"{where}: tune: {name}"))
            for name, levels in _mapping(given.get("tune") or {}, where=f"{where}: tune").items()}
    share = _share(given["share"], where=f"{where}: share")
    return Screen(share, _whole(given["keep"], 0, where=f"{where}: keep"), tune)


def _select(value: Any, *, where: str) -> Select:
    if not isinstance(value, Mapping):
        return Select(_whole(value, 0, where=where))
    given = _mapping(value, where=where)
    for key in given:
        _refuse_unknown(key, ("seeds", "share"), where=where)
    return Select(_whole(given.get("seeds", 1), 1, where=f"{where}: seeds"),
                  _share(given.get("share", 1.0), where=f"{where}: share"))


def _extend(value: Any, *, where: str) -> Extend | None:
    if value is None:
        return None
    given = _mapping(value, where=where)
    for key in given:
        _refuse_unknown(key, ("times", "seeds"), where=where)
    times = given.get("times", Extend.times)
    if isinstance(times, bool) or not isinstance(times, int | float) or not 1 < times < math.inf:
        raise ConfigError(f"{where}: times", times, "give a number above 1, by which the steps are multiplied")
    return Extend(float(times), _whole(given.get("seeds", 1), 1, where=f"{where}: seeds"))


def _share(value: Any, *, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(where, value, "give a share of the steps: a number above 0, up to 1")
    return float(value)


def _at(value: Any, *, where: str) -> dict[str, dict[str, Any]]:
    """What scales have otherwise, as it is written, with every key checked as that of a study."""
    found = {name: _mapping(own, where=f"{where}: {name}") for name, own in _mapping(value, where=where).items()}
    for name, own in found.items():
        _refuse_unknown(name, tuple(SCALES), where=where)
        for key in own:
            _refuse_unknown(key, AT_SCALE, where=f"{where}: {name}")
        parse_study(own, where=f"{where}: {name}")
    return found


def _claim(value: Any, *, where: str) -> dict[str, Any]:
    claim = _mapping(value, where=where)
    for key in claim:
        _refuse_unknown(key, CLAIM_KEYS, where=where)
    for key in ("left", "is", "right"):
        if key not in claim:
            raise ConfigError(where, claim, f"the key {key} is missing: a claim has left, is and right")
    if claim["is"] not in (*RELATIONS,):
        raise ConfigError(f"{where}: is", claim["is"], f"choose one of {', '.join(RELATIONS)}")
    if claim.get("in") not in (None, *QUANTITIES):
        raise ConfigError(f"{where}: in", claim["in"], f"choose one of {', '.join(QUANTITIES)}")
    if claim.get("task") not in (None, *TASKS):
        raise ConfigError(f"{where}: task", claim["task"], f"choose one of {', '.join(TASKS)}")
    margin = claim.get("margin")
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (number and 0 < margin < math.inf):
        raise ConfigError(f"{where}: margin", margin, "give a number of nats above 0")
    return claim


def _figure(value: Any, *, where: str) -> dict[str, str]:
    kind, axis = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else (value, "")
    if kind not in FIGURES or (kind == "loss_by_axis") != bool(axis):
        raise ConfigError(where, value, f"choose one of {', '.join(FIGURES)}, the fourth with its axis: "
                          "loss_by_axis: model.depth")
    return {"kind": str(kind), "axis": str(axis)}


def read_study(path: Path, *, name: str = "") -> StudyConfig:
    """A study file.

    Raises:
        ConfigError: no such file, no YAML, or no study in it.
    """
    return parse_study(read_yaml(path, field="study"), name=name or path.stem, where=str(path))


def write_study(config: StudyConfig) -> str:
    """The text of a study file; what is at its default is left out."""
    plain = {key: value for key, value in _plain(asdict_shallow(config)).items()
             if key != "name" and value not in (None, "", {}, [], "full") and (key, value) != ("select", 1)}
    plain["claims"] = [{key: value for key, value in claim.items() if value is not None}
                       for claim in plain.get("claims", [])]
    plain["figures"] = [figure["kind"] if not figure["axis"] else {figure["kind"]: figure["axis"]}
                        for figure in plain.get("figures", [])]
    kept = {key: value for key, value in plain.items() if value != []}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=118)


def asdict_shallow(config: StudyConfig) -> dict[str, Any]:
    """The keys of a study with their contents as they are."""
    return {entry.name: getattr(config, entry.name) for entry in fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Select):
        return value.seeds if value.share == 1 else {"seeds": value.seeds, "share": value.share}
    if isinstance(value, Extend):
        return {"times": value.times, "seeds": value.seeds}
    if isinstance(value, Looks):
        spending = {} if value.spending == Looks.spending else {"spending": value.spending}
        return {"looks": list(value.seeds), **spending}
    if isinstance(value, Screen):
        return _plain({"share": value.share, "keep": value.keep, **({"tune": value.tune} if value.tune else {})})
    if isinstance(value, Mapping):
        return {str(key): _plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(content) for content in value]
    return value
