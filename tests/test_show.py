"""What people look at: the summary, the curve and the page."""

import math
from typing import Any

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor
from torch.distributions.constraints import positive, simplex, unit_interval

from pyro_em import EM, SVI, FitResult, fit

matplotlib.use("Agg")
X = torch.tensor([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1], dtype=torch.float64)


def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([[-1.0], [1.5]]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z, 0], scale), obs=x)


def fitted(model: Any = mixture, x: Tensor = X, **options: Any) -> FitResult:
    return fit(model, x, **{"strategy": EM(tol=1e-8), "seed": 0, "progress": False, **options})


def test_summary_has_a_row_for_each_element() -> None:
    result = fitted(strategy=EM(tol=1e-8, fixed="scale"))
    table = result.summary(level=0.8)
    assert list(table.index) == ["weights[0]", "weights[1]", "locs[0,0]", "locs[1,0]", "scale"]
    assert list(table.columns) == ["estimate", "stderr", "lower", "upper", "note"]
    assert table.loc["locs[1,0]", "estimate"] == result.params["locs"][1, 0].item()
    assert table.loc["locs[1,0]", "stderr"] == result.stderr()["locs"][1, 0].item()
    bounds = result.confint(0.8)
    np.testing.assert_array_equal(table.loc[bounds.index, ["lower", "upper"]], bounds)
    assert table.loc["scale", "note"] == "fixed"
    assert math.isnan(table.loc["scale", "stderr"])
    assert (table["note"][:4] == "").all()
    assert table["estimate"].dtype == table["lower"].dtype == np.float64


def test_summary_says_why_there_are_no_errors() -> None:
    def coin(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.4), constraint=unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    table = fitted(coin, torch.ones(5)).summary()
    assert table.loc["p", "estimate"] == pytest.approx(1.0)
    assert table["stderr"].isna().all()
    assert "edge of its constraint" in table.loc["p", "note"]


def test_summary_of_a_guide() -> None:
    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)))

    table = fitted(strategy=SVI(guide, max_steps=0), init=fitted()).summary()
    assert table.loc["slope", "note"] == "no parameter of the model's own"
    assert table["stderr"].drop("slope").notna().all()


def test_summary_without_parameters() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert len(fitted(model).summary()) == 0


def test_curve_of_one_and_of_several_starts() -> None:
    result = fitted()
    ax = result.plot_history()
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), result.history[["step", "objective"]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "log evidence (nats)")
    assert ax.get_legend() is None
    several = fitted(strategy=EM(restarts=3))
    assert several.plot_history(ax=ax, color="black") is ax
    assert len(ax.get_lines()) == 4
    assert {line.get_color() for line in ax.get_lines()[1:]} == {"black"}
    assert [t.get_text() for t in ax.get_legend().get_texts()][1:] == ["start 0", "start 1", "start 2"]
    pyplot.close("all")


def test_curve_of_no_steps() -> None:
    assert not fitted(strategy=SVI(max_steps=0)).plot_history().get_lines()
    pyplot.close("all")


def test_page_in_a_notebook() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("<script>", torch.linspace(0.0, 1.0, 12))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(loc.mean(), 1.0))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    result = fitted(model, strategy=SVI(max_steps=2))
    html = result._repr_html_()
    assert "<script>" not in html
    assert "<td>&lt;script&gt;</td><td>12</td>" in html
    assert html.count(", ...") == sum(v.numel() > 8 for v in result.params.values())
    assert "<td>log evidence</td><td>not known exactly</td>" in html
    assert "MAX_STEPS: The cap on steps" in html
    plain = fitted()._repr_html_()
    assert "<td>scale</td><td>scalar</td>" in plain
    assert "<td>locs</td><td>2 x 1</td>" in plain


def test_explanations_are_shown_whole_and_select_as_tables_do() -> None:
    def clamped(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4)).long()
            pyro.sample("x", dist.Normal(loc[z].clamp(max=10.0), 1.0), obs=x)

    table = fitted(clamped).explain()
    (reason,) = table["reason"]
    assert len(reason) > 50
    assert reason in repr(table)
    assert all(word in (table._repr_html_() or "") for word in ("clamp", "smooth formula"))
    assert "..." not in repr(table)
    assert type(table.drop(columns="reason")).__name__ == "DataFrame"
