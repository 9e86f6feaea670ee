"""A fit for people who look: a table of parameters, a curve, and a page in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_em.diagnostics import element_labels

__all__ = ["Sentences", "page", "plot_history", "summary"]

SHOWN = 8  # elements of a parameter on a page


class Sentences(pd.DataFrame):
    """A table that is shown whole, long sentences and all; what is selected from it is a plain table."""

    def __repr__(self) -> str:
        return self.to_string()

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.max_colwidth", None):
            return pd.DataFrame._repr_html_(self)  # type: ignore[attr-defined]


def summary(
    params: Mapping[str, Tensor],
    errors: Mapping[str, Tensor],
    bounds: pd.DataFrame,
    notes: Mapping[str, str],
) -> pd.DataFrame:
    """One row for each element of each parameter; see :meth:`pyro_em.FitResult.summary`.

    Args:
        errors: standard errors, by parameter that has them.
        bounds: ``lower`` and ``upper``, by element that has them.
        notes: why a parameter has none.
    """
    parts = [_rows(name, value, errors.get(name), notes.get(name, "")) for name, value in params.items()]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["estimate", "stderr", "note"])
    table.insert(2, "lower", bounds["lower"].reindex(table.index).astype(float))
    table.insert(3, "upper", bounds["upper"].reindex(table.index).astype(float))
    return table


def _rows(name: str, value: Tensor, error: Tensor | None, note: str) -> pd.DataFrame:
    spread = torch.full(value.shape, torch.nan, dtype=torch.float64) if error is None else error
    columns = {"estimate": value.reshape(-1).numpy(), "stderr": spread.reshape(-1).numpy(), "note": note}
    return pd.DataFrame(columns, index=element_labels(name, value.shape))


def plot_history(history: pd.DataFrame, kind: str, ax: Any = None, **style: Any) -> Any:
    """The objective by step, a line for each start; see :meth:`pyro_em.FitResult.plot_history`."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    runs = list(history.groupby("restart", sort=True)) if len(history) else []
    for restart, rows in runs:
        ax.plot(rows["step"], rows["objective"], **{"label": f"start {restart}", **style})
    ax.set_xlabel("step")
    ax.set_ylabel(f"{kind.replace('_', ' ')} (nats)")
    if len(runs) > 1:
        ax.legend()
    return ax


def page(facts: Mapping[str, str], params: Mapping[str, Tensor]) -> str:
    """HTML of a result: what is known of the fit, and its parameters."""
    known = _table(facts.items())
    rows = [(name, " x ".join(map(str, value.shape)) or "scalar", _shown(value)) for name, value in params.items()]
    return f"<div>{known}{_table(rows, ('parameter', 'shape', 'value'))}</div>"


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    top = f"<thead><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _shown(value: Tensor) -> str:
    flat = value.reshape(-1)
    text = ", ".join(f"{v:.4g}" for v in flat[:SHOWN].tolist())
    return f"{text}, ..." if len(flat) > SHOWN else text
