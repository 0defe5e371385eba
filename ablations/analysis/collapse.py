"""The table of cells with its collapsed runs called so. Imports neither torch nor lightning."""

from __future__ import annotations

import pandas as pd

from ablations.design.collapse import COLLAPSED, DISTANCE, Plateau


def mark_collapsed(cells: pd.DataFrame, plateau: Plateau) -> pd.DataFrame:
    """The cells, with the state of those complete ones that ended on the plateau changed. They keep their loss."""
    if plateau.loss is None:
        return cells
    on_it = (cells.state == "complete") & (cells.val_loss > plateau.loss - DISTANCE)
    reason = f"ended on the loss of token frequencies ({plateau.loss:.3f} nats)"
    return cells.assign(state=cells.state.mask(on_it, COLLAPSED), reason=cells.reason.mask(on_it, reason))
