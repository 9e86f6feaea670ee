"""Exact inference in chains of discrete latents: forward-backward, Viterbi, draws and gradients."""

from pyro_em.chains.gradient import log_evidence
from pyro_em.chains.passes import backward, forward, predict_next, sample, viterbi
from pyro_em.chains.rows import filter_rows, smooth_rows
from pyro_em.chains.tables import ChainTables, Filtered, Smoothed

__all__ = [
    "ChainTables",
    "Filtered",
    "Smoothed",
    "backward",
    "filter_rows",
    "forward",
    "log_evidence",
    "predict_next",
    "sample",
    "smooth_rows",
    "viterbi",
]
