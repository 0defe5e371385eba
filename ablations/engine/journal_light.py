"""A journal that is read without what is heavy: configurations, curves, results. With ten thousand cells they are most
of the memory of a worker and most of the time of `status`, and each is needed for one cell at a time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial

from ablations.engine import optuna_private as private
from ablations.engine.journal import CREATE_TRIAL, AtomicJournal, Census, OsLock, damaged

HEAVY = ("config", "tuned", "curve", "result", "traceback")
"""Attributes of a trial that are left out."""
LATER = re.compile(
    rb'\{"op_code":8,(?:"worker_id":"[^"]*",)?"trial_id":(\d+),"user_attr":\{"(curve|result|traceback)":')
"""The beginning of a line with such an attribute, which needs not be read at all."""


class LightJournal(AtomicJournal):
    """A journal whose trials come without parameters and heavy attributes, until one is asked for `whole`."""

    def __init__(self, path: Path, *, lock: OsLock) -> None:
        super().__init__(path, lock=lock)
        self._places: dict[int, list[int]] = {}
        self._census = Census()

    def read_line(self, line: bytes) -> dict[str, Any]:
        if self.position.line == 0:
            self._places, self._census = {}, Census()
        later = LATER.match(line)
        if later is not None:
            trial_id, key = int(later[1]), later[2].decode()
            self._places.get(trial_id, []).append(self.position.offset)  # Optuna passes over an unknown trial, too
            return {"op_code": 8, "worker_id": "", "trial_id": trial_id, "user_attr": {key: None}}
        log = super().read_line(line)
        self._census.add(log)
        # As Optuna does, trials are counted, but for those of a study that is not there any more.
        if log["op_code"] == CREATE_TRIAL and log["study_id"] in self._census.names:
            self._places[len(self._places)] = [self.position.offset]
            attrs = log.get("user_attrs", {})
            log |= {"params": {}, "distributions": {},
                    "user_attrs": {key: content for key, content in attrs.items() if key not in HEAVY}}
        return log

    def whole(self, trial: FrozenTrial, *, trial_id: int) -> FrozenTrial:
        """A trial with all that is on it, read again.

        Args:
            trial: as it came.
            trial_id: its id in the storage.

        Raises:
            StudyError: what was read is not there any more.
        """
        first, *later = [self._line_at(offset) for offset in self._places[trial_id]]
        attrs = {key: content for log in (first | {"user_attr": first["user_attrs"]}, *later)
                 for key, content in log["user_attr"].items()}
        if attrs.get("cell") != trial.user_attrs.get("cell"):
            raise damaged(self.path, self.position.line, "a trial stands where another was")
        kinds = {name: json_to_distribution(text) for name, text in first.get("distributions", {}).items()}
        params = {name: kinds[name].to_external_repr(value) for name, value in first.get("params", {}).items()}
        heavy = {key: content for key, content in attrs.items() if key in HEAVY}
        return FrozenTrial(
            number=trial.number, trial_id=trial_id, state=trial.state, value=None, values=trial.values,
            datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete,
            params={**params, **trial.params}, distributions={**kinds, **trial.distributions},
            user_attrs={**trial.user_attrs, **heavy}, system_attrs=private.optuna_attrs(trial),
            intermediate_values=trial.intermediate_values,
        )

    def _line_at(self, offset: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(offset)
            log: dict[str, Any] = json.loads(file.readline())
        return log
