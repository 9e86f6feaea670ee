"""Random starts on counts and answers that a few rows do not all hold."""

from functools import partial

import pytest
import torch

from models import latent_class, multinomial_mixture
from pyro_em import EM, KMeans, RandomResponsibilities, fit
from pyro_em.em.placing import labelled
from pyro_em.graph import Plate, Variable

fit = partial(fit, progress=False)


@pytest.mark.parametrize("module", [multinomial_mixture, latent_class])
def test_every_restart_begins(module):
    found = fit(module.model, *module.load(), strategy=EM(restarts=6, max_steps=5), seed=0)
    starts = found.history[found.history.step == 0].objective
    assert found.history.restart.nunique() == len(starts) == 6
    assert starts.map(lambda v: v > -1e6).all()
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-8)


def test_restarts_find_the_published_maximum_of_margarine():
    found = fit(multinomial_mixture.model, *multinomial_mixture.load(), strategy=EM(restarts=10), seed=0)
    assert found.converged and found.objective == pytest.approx(-4673.4526, abs=1e-3)


def test_a_single_random_start_is_possible():
    strategy = EM(max_steps=0, start=RandomResponsibilities(rows=1))
    for seed in range(5):
        assert (
            fit(multinomial_mixture.model, *multinomial_mixture.load(), strategy=strategy, seed=seed).objective > -1e5
        )


def test_restarts_by_clusters_of_counts():
    strategy = EM(restarts=20, start=KMeans("x"))
    found = fit(multinomial_mixture.model, *multinomial_mixture.load(), strategy=strategy, seed=0)
    assert found.converged and found.history.restart.nunique() == 20
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-8)


def test_rows_without_a_label_count_a_little_in_every_state():
    plate = Plate("data", 3)
    scope = [Variable("a", 2, (plate,)), Variable("b", 2, (plate,))]
    states = {"a": torch.tensor([0, 1, 1]), "b": torch.tensor([1, 1, 0])}
    chosen = {"data": torch.tensor([True, False, True])}
    weights = labelled([plate], scope, states, chosen, rest=0.4)
    expected = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.1, 0.1], [0.1, 0.1]], [[0.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(labelled([plate], scope, states, chosen)[1], torch.zeros(2, 2))
