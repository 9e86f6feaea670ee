"""Whether rows may be cut into batches: each must count the same whatever rows are beside it."""

from __future__ import annotations

import pyro
import torch

from pyro_em.data import Batch
from pyro_em.em.checks import Prepared
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, log_evidence_terms

__all__ = ["refuse_dependence"]

FEW = 32  # rows on which this shows


def refuse_dependence(prepared: Prepared, batch: Batch) -> None:
    """See that a row adds the same to the log evidence whatever rows are beside it.

    Raises:
        ModelError: the model computes something over all rows, or one of its arguments was cut that is no data.
    """
    batch = batch.head(FEW)
    one = batch.one_row_more()
    none, once, twice = (_log_evidence(prepared, b) for b in (batch, one, one.one_row_more()))
    values = prepared.inference.space.values().values()
    tolerance = 1e-3 if any(v.dtype == torch.float32 for v in values) else 1e-6
    if abs((twice - once) - (once - none)) > tolerance * (1 + abs(once)):
        raise ModelError(
            "In batches a row must count the same whatever rows are beside it. Here a copy of the first row adds "
            f"{once - none:.6g} nats to the log evidence of {batch.size} rows, and one more {twice - once:.6g}. Either "
            "the model computes something over all rows (a mean, a rank, a size): do that before, and pass the result. "
            "Or an argument that is no data has as many rows as they, and was cut with them: hold it in the model "
            "instead (functools.partial)."
        )


def _log_evidence(prepared: Prepared, batch: Batch) -> float:
    inference = prepared.inference
    intervention = Intervention(given=prepared.intervention.given)
    with torch.no_grad(), pyro.validation_enabled(False):
        graph = inference.graph(batch.args, batch.kwargs, intervention)
        return float(sum(t.scaled.sum() for t in log_evidence_terms(graph)))
