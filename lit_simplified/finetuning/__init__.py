"""Sequence classification and regression on top of a pretrained model: GLUE, and a task from this machine's docstrings.

`finetune` needs torch and lightning, which take seconds to import: they are, when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from lit_simplified.finetuning.config import FinetuneConfig
from lit_simplified.finetuning.tasks import GROUPS, TASKS, TextTask

if TYPE_CHECKING:
    from lit_simplified.finetuning.run import FinetuneResult, finetune

__all__ = ["GROUPS", "TASKS", "FinetuneConfig", "FinetuneResult", "TextTask", "finetune"]


def __getattr__(name: str) -> Any:
    if name in ("FinetuneResult", "finetune"):
        from lit_simplified.finetuning import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
