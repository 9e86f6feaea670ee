"""What a callback sees, and what its answer does: to a step that converges, and to restarts."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from shared.starts import clusters, counts, mixture, poissons

from pyro_em import EM, SVI, RandomDraws, Status, fit

ADAM = partial(torch.optim.Adam, lr=0.02)
SHORT = EM(restarts=4, start=RandomDraws(), tol=1e-8)
LONG = SVI(optim=ADAM, max_steps=12, restarts=4)
each_strategy = pytest.mark.parametrize("strategy", [SHORT, LONG], ids=["em", "svi"])


def run(model, x, strategy, callback):
    return fit(model, x, strategy=strategy, callbacks=[callback], seed=0, progress=False)


# One start ------------------------------------------------------------------------------------------------


def test_a_fit_that_has_converged_is_not_stopped():
    plain = run(mixture, clusters(), EM(), lambda info: None)
    found = run(mixture, clusters(), EM(), lambda info: info.step == plain.n_steps)
    assert (found.status, found.n_steps) == (Status.CONVERGED, plain.n_steps) and found.converged
    found = run(mixture, clusters(), EM(), lambda info: info.step == plain.n_steps - 1)
    assert (found.status, found.n_steps) == (Status.STOPPED, plain.n_steps - 1) and not found.converged


@pytest.mark.parametrize("truth", [True, np.True_, torch.tensor(True)], ids=["python", "numpy", "torch"])
def test_every_truth_stops(truth):
    found = run(mixture, clusters(), EM(tol=0, max_steps=6), lambda info: truth if info.step == 3 else None)
    assert (found.status, found.n_steps) == (Status.STOPPED, 3)


@pytest.mark.parametrize("answer", [False, np.False_, torch.tensor(False), 1, "yes", torch.ones(3)], ids=repr)
def test_other_answers_go_on(answer):
    assert run(mixture, clusters(), EM(tol=0, max_steps=4), lambda info: answer).n_steps == 4


# Restarts -------------------------------------------------------------------------------------------------


@each_strategy
def test_callbacks_see_steps_as_the_history_has_them(strategy):
    seen = []
    found = run(poissons, counts(), strategy, seen.append)
    history = found.history[found.history.step > 0]
    assert [(i.restart, i.step, i.objective) for i in seen] == list(
        zip(history.restart, history.step, history.objective, strict=True)
    )
    assert {i.restart for i in seen} == {0, 1, 2, 3}


@each_strategy
@pytest.mark.parametrize("last", [0, 2])
def test_a_stop_ends_all_restarts_and_keeps_the_best(strategy, last):
    stop = lambda info: info.restart == last and info.step == 5  # noqa: E731
    found = run(poissons, counts(), strategy, stop)
    assert found.status is Status.STOPPED
    assert sorted(found.history.restart.unique()) == list(range(last + 1))
    assert found.history.iloc[-1][["restart", "step"]].tolist() == [last, 5]
    at_end = fit(poissons, counts(), strategy=EM(max_steps=0), init=found, progress=False)
    assert found.objective == pytest.approx(at_end.objective, abs=1e-9)
    ends = found.history.groupby("restart")["objective"].last()
    steps = found.history.groupby("restart")["step"].last()
    if strategy is SHORT:  # SVI's history has the objectives before each step
        assert found.objective == pytest.approx(ends.max(), abs=1e-9)
        assert found.n_steps == steps[ends.idxmax()]
    else:
        assert found.objective >= ends.max() - 1e-6
    posterior = found.posterior()
    assert posterior.log_evidence == pytest.approx(found.log_evidence, abs=1e-9)


def test_a_stop_in_the_step_that_ends_a_short_run():
    """Its own end is no reason to go on with others."""
    strategy = EM(restarts=3, start=RandomDraws(), tol=1e6)
    plain = run(poissons, counts(), strategy, lambda info: None).history
    ends = plain[plain.restart == 0].step.iloc[-1]
    found = run(poissons, counts(), strategy, lambda info: True if info.step == ends else None)
    assert found.status is Status.STOPPED
    assert found.history.restart.unique().tolist() == [0]


def test_a_stop_of_the_best_run_on_its_way_to_the_end():
    seen = []

    def stop(info):
        seen.append(info)
        return info.step == 23

    found = run(poissons, counts(), replace(SHORT, tol=0, max_steps=30), stop)
    assert (found.status, found.n_steps) == (Status.STOPPED, 23)
    assert found.objective == pytest.approx(seen[-1].objective, abs=1e-9)
    assert sorted(found.history.restart.unique()) == [0, 1, 2, 3]
