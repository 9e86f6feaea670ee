"""How each parameter reaches the distributions, found in models nobody annotated, and the step that follows from it.

The oracle of every step is L-BFGS on the traced model, run until it can do no more.
"""

import itertools
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import pytest
import torch
from arguments import CASES, LINKS, OWNERS, VERDICTS, Case
from torch import Tensor
from untouched import refused, untouched

from pyro_em import EM, FitResult, GradientMStep, ModelError, fit
from pyro_em.modules import reachable_modules

COLUMNS = ["parameter", "site", "argument", "family", "verdict", "link", "owner", "reason"]
FULL = GradientMStep(
    partial(
        torch.optim.LBFGS,
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        history_size=50,
        line_search_fn="strong_wolfe",
    )
)
# torch's own log-density is off by up to 4e-8 nats a datum: it approximates the Bessel function of order zero.
ROUGH = {"von_mises": 2e-6}
BY_NAME = {case.name: case for case in CASES}
FITTED = [case for case in CASES if case.refusal is None]
every_case = pytest.mark.parametrize("case", FITTED, ids=repr)


def run(case: Case, init: Mapping[str, Tensor] | None = None, **options: Any) -> FitResult:
    """Fit a fresh copy of the case's model from its own start, or from ``init``."""
    model, args, kwargs = case.make()
    strategy = EM(**{"max_steps": 1, "tol": 0, **options})
    return fit(model, *args, strategy=strategy, init=init or case.given or None, progress=False, **kwargs)


@cache
def stepped(name: str) -> FitResult:
    """One step by whatever owns each parameter."""
    return run(BY_NAME[name])


@cache
def maximised(name: str) -> FitResult:
    """One step by the full traced gradient."""
    return run(BY_NAME[name], m_step=FULL)


@cache
def continued(name: str) -> tuple[FitResult, list[int]]:
    """Five steps from where the first one ended, and how often the model ran between one step and the next."""
    model, args, kwargs = BY_NAME[name].make()
    runs = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs[-1] += 1
        return model(*args, **kwargs)

    result = fit(
        counted,
        *args,
        strategy=EM(max_steps=5, tol=0),
        init=stepped(name).params,
        callbacks=[lambda _: runs.append(0)],
        progress=False,
        **kwargs,
    )
    return result, runs[1:-1]


# Verdicts -----------------------------------------------------------------------------------------


@every_case
def test_each_parameter_has_the_verdict_it_deserves(case: Case) -> None:
    table = stepped(case.name).explain().to_dict("records")
    assert {row["parameter"] for row in table} <= case.routes.keys()
    for name, routes in case.routes.items():
        rows = [row for row in table if row["parameter"] == name and row["site"] != name]  # a latent's prior is no use
        for row in rows:
            assert any(route.admits(row) for route in routes), row
        for route in routes:
            assert route.optional or any(route.admits(row) for row in rows), (name, route, rows)


@every_case
def test_each_parameter_has_one_owner_and_the_expected_one(case: Case) -> None:
    table = stepped(case.name).explain()
    assert list(table.columns) == COLUMNS
    for name, rows in table.groupby("parameter"):
        assert rows["owner"].nunique() == 1
        assert rows["owner"].iloc[0] in frozenset.intersection(*(r.owners for r in case.routes[name])), rows
    unexplained = table[((table["owner"] == "gradient") | (table["verdict"] == "opaque")) & (table["reason"] == "")]
    assert unexplained.empty


def test_no_verdict_without_a_case() -> None:
    assert len(FITTED) >= 30 and len(BY_NAME) == len(CASES)
    routes = [route for case in FITTED for several in case.routes.values() for route in several]
    alone = {next(iter(r.verdicts)) for r in routes if len(r.verdicts) == 1}
    assert alone == VERDICTS.keys()
    assert {link for r in routes for link in r.links} == LINKS
    assert {r.exact for r in routes} == {True, False, None}
    assert frozenset().union(*(r.owners for r in routes)) == OWNERS


@every_case
def test_each_parameter_is_expected(case: Case) -> None:
    required = {name for name, routes in case.routes.items() if not all(r.optional for r in routes)}
    assert required <= stepped(case.name).params.keys() <= case.routes.keys()


# One step -----------------------------------------------------------------------------------------

# A step in turns, or by a gradient cut short: the part of the gain in the objective that it must have at least, and
# how far the full one takes a parameter that it may not leave where it was.
CLIMBED, MOVED = 0.5, 1e-2


@every_case
def test_one_step_is_that_of_the_full_maximisation(case: Case) -> None:
    one, full = stepped(case.name), maximised(case.name)
    for name, value in full.params.items():
        if all(route.same for route in case.routes[name]):
            tolerance = 1e-6 if untraced(case, name) else 1e-4
            torch.testing.assert_close(one.params[name], value, rtol=tolerance, atol=tolerance, msg=partial(said, name))
    start = one.history["objective"].iloc[0]
    assert start == near(case, full.history["objective"].iloc[0])
    if case.maximal:
        closed = all(untraced(case, name) for name in case.routes)
        assert one.objective == pytest.approx(full.objective, abs=1e-6 if closed else 1e-4)
    else:
        assert one.objective >= start + CLIMBED * (full.objective - start)
        before = run(case, max_steps=0).params
        for name, value in full.params.items():
            if (value - before[name]).abs().max() > MOVED:
                assert not torch.equal(one.params[name], before[name]), name


def untraced(case: Case, name: str) -> bool:
    return all(route.exact is True for route in case.routes[name])


def said(name: str, message: str) -> str:
    return f"{name}: {message}"


IDLE = [(case, name) for case in FITTED for name, routes in case.routes.items() if any(r.idle for r in routes)]


@pytest.mark.parametrize(("case", "name"), IDLE, ids=[f"{case}-{name}" for case, name in IDLE])
def test_what_nothing_moves_stays_to_the_bit(case: Case, name: str) -> None:
    assert torch.equal(stepped(case.name).params[name], run(case, max_steps=0).params[name])


def test_elements_that_are_not_used_stay() -> None:
    locs = stepped("never_reached").params["locs"]
    torch.testing.assert_close(locs[2], torch.tensor([5.5, 7.7], dtype=locs.dtype), rtol=0, atol=0)
    assert locs.isfinite().all()


def test_no_parameter_leaves_its_constraint() -> None:
    locs = stepped("locs_beyond_a_bound").params["locs"]
    assert ((locs > -1.0) & (locs < 1.3)).all()


# The objective ------------------------------------------------------------------------------------


@every_case
def test_the_objective_is_that_of_the_parameters(case: Case) -> None:
    """However the steps computed it, a start from the parameters and the traced model say the same."""
    one = stepped(case.name)
    again = continued(case.name)[0].history["objective"].iloc[0]
    traced = run(case, one.params, max_steps=0, m_step=FULL).objective
    assert again == pytest.approx(one.objective, rel=1e-9, abs=1e-9)
    assert traced == near(case, one.objective)


def near(case: Case, objective: float) -> Any:
    return pytest.approx(objective, rel=1e-9, abs=ROUGH.get(case.name, 1e-9))


@every_case
def test_the_objective_never_falls(case: Case) -> None:
    objectives = [*stepped(case.name).history["objective"], *continued(case.name)[0].history["objective"][1:]]
    assert len(objectives) == 7 and all(map(math.isfinite, objectives))
    for before, after in itertools.pairwise(objectives):
        assert after >= before - 1e-9 * abs(before)


# Tracing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in FITTED if all(untraced(c, name) for name in c.routes)], ids=repr)
def test_an_exact_step_runs_the_model_at_most_once(case: Case) -> None:
    """Once for the E-step, should that trace the model; the gradient M-step runs it many times."""
    assert max(continued(case.name)[1]) <= 1


# Fewer parameters, no priors ------------------------------------------------------------------------

# A closed form for the other parameters must take these as they are: the scale around a mean that is not the data's.
HELD = [
    ("indexed", "locs"),
    ("indexed", "scale"),
    ("indexed", "weights"),
    ("scale_each", "locs"),
    ("tril_each", "locs"),
    ("covariance_shared", "locs"),
    ("tril_diagonal", "locs"),
    ("concatenated", "low"),
    ("shared_by_two_sites", "theta"),
    ("chain", "trans"),
    ("chain", "init"),
    ("regression_each", "beta"),
    ("intercept_each", "slope"),
    ("two_way", "b"),
    ("weights_by_logits", "logits"),
    ("normal_on_locs", "locs"),
    ("centre_is_a_parameter", "locs"),
    ("centre_is_a_parameter", "centre"),
    ("log_normal", "locs"),
    ("gamma", "rate"),
    ("network_of_weights", "locs"),
    ("attributes", "emission.locs"),
]


@pytest.mark.parametrize(("name", "held"), HELD)
def test_a_held_parameter_is_taken_as_it_is(name: str, held: str) -> None:
    case = BY_NAME[name]
    one, full = run(case, fixed=(held,)), run(case, fixed=(held,), m_step=FULL)
    assert torch.equal(one.params[held], run(case, max_steps=0).params[held])
    for other, value in full.params.items():
        tolerance = 1e-6 if untraced(case, other) else 1e-4
        torch.testing.assert_close(one.params[other], value, rtol=tolerance, atol=tolerance, msg=partial(said, other))
    table = one.explain()
    assert set(table.loc[table["parameter"] == held, "owner"]) == {"fixed"}
    assert "fixed" not in set(table.loc[table["parameter"] != held, "owner"])


WITH_PRIORS = [case for case in FITTED if case.given]


@pytest.mark.parametrize("case", WITH_PRIORS, ids=repr)
def test_without_priors_no_pseudo_counts(case: Case) -> None:
    one, full = run(case, priors=False), run(case, priors=False, m_step=FULL)
    assert one.objective_kind == full.objective_kind == "log_evidence"
    assert one.objective == pytest.approx(full.objective, abs=1e-4)
    assert one.objective >= one.history["objective"].iloc[0]
    if case.maximal:
        torch.testing.assert_close(one.params, full.params, rtol=1e-4, atol=1e-4)


# Isolation and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["indexed", "attributes", "embedding", "network", "tied_submodules", "normal_on_locs"])
def test_probing_leaves_no_trace(name: str) -> None:
    """Every parameter was given other values and the model run: neither may show."""
    case = BY_NAME[name]
    model, args, kwargs = case.make()
    before = [(tensor, tensor.clone()) for tensor in args]
    states = [(m, {k: v.clone() for k, v in m.state_dict().items()}) for m in reachable_modules(model)]
    assert states or name in ("indexed", "normal_on_locs")
    with untouched():
        fit(model, *args, strategy=EM(max_steps=1, tol=0), init=case.given or None, progress=False, **kwargs)
    assert all(torch.equal(tensor, value) for tensor, value in before)
    for module, state in states:
        torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("m_step", [None, FULL], ids=["exact", "traced"])
@pytest.mark.parametrize("case", [case for case in CASES if case.refusal is not None], ids=repr)
def test_a_model_that_draws_by_itself_is_refused(case: Case, m_step: GradientMStep | None) -> None:
    model, args, kwargs = case.make()
    with refused(ModelError, str(case.refusal)):
        fit(model, *args, strategy=EM(max_steps=1, m_step=m_step), progress=False, **kwargs)
