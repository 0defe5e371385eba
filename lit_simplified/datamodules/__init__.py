"""From a recipe of `data/` to windows: recipe, reading, sources, prose, corpus, tokenizer, packing, datamodule.

`WindowDataModule` alone needs torch and lightning, which take seconds to import: they are, when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from lit_simplified.datamodules.packing import PreparedCorpus, format_card, prepare
from lit_simplified.datamodules.recipe import Recipe, load_recipe
from lit_simplified.datamodules.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from lit_simplified.datamodules.datamodule import WindowDataModule

__all__ = [
    "PreparedCorpus", "Recipe", "WindowDataModule", "format_card", "load_recipe", "load_tokenizer", "prepare",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "WindowDataModule":
        from lit_simplified.datamodules.datamodule import WindowDataModule

        return WindowDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
