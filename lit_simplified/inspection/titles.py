"""Titles of the charts of gains and measures, in TensorBoard and in figures. Others have their names as titles."""

from __future__ import annotations

from collections.abc import Mapping

GAINS: Mapping[str, str] = {
    "alpha": "alpha: gain of the identity, mean over heads", "beta": "beta: gain of A, mean over heads",
    "gamma": "gamma: gain of C, mean over heads", "attention": "gain of the attention branch",
    "mlp": "gain of the MLP branch", "mlp_skip": "gain of the MLP's skip",
}
MEASURES: Mapping[str, str] = {
    "cosine": "cosine similarity of tokens (1: all in one direction)", "effective_rank": "effective rank of the tokens",
    "rank_one_distance": "distance of the tokens from rank one (0: collapsed)", "rms": "RMS of the tokens",
    "kurtosis": "kurtosis of the units (1: all equal)", "gradient_norm": "gradient norm of the block",
    "entropy": "entropy of attention (nats)", "identity": "identity part of the mixing of tokens",
    "stable_rank": "stable rank of the tokens", "max_over_median": "largest over median activation",
}
