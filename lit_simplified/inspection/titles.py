"""What gains and measures are called above their charts, in TensorBoard and in figures. Of others: their names."""

from __future__ import annotations

from collections.abc import Mapping

GAINS: Mapping[str, str] = {
    "alpha": "alpha: gain of the identity, mean over heads", "beta": "beta: gain of A, mean over heads",
    "gamma": "gamma: gain of C, mean over heads", "attention": "gain of the attention branch",
    "mlp": "gain of the MLP branch",
}
MEASURES: Mapping[str, str] = {
    "cosine": "cosine similarity of tokens (1: all alike)", "effective_rank": "effective rank of the tokens",
    "rank_one_distance": "distance of the tokens from rank one (0: collapsed)", "rms": "RMS of the tokens",
    "kurtosis": "kurtosis of the units (1: all equal)", "gradient_norm": "gradient norm of the block",
    "entropy": "entropy of attention (nats)", "identity": "identity part of what mixes tokens",
    "stable_rank": "stable rank of the tokens", "max_over_median": "largest over median activation",
}
