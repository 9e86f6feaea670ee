"""Latent classes, raters, causes and abilities end where R's packages and optimisers end."""

from functools import partial

import pytest
import torch
from gold import columns, gold, num_params, table
from torch import Tensor

from models import dawid_skene, item_response, latent_class, noisy_or
from pyro_em import EM, RandomDraws, fit

SINGLE = EM(tol=1e-7, accelerate="squarem")
RESTARTED = EM(tol=1e-7, accelerate="squarem", restarts=10, start=RandomDraws())


# Latent classes -----------------------------------------------------------------------------------

# Table, items, classes, strategy, and the tolerance of the parameters: none where they are not identified.
LATENT_CLASSES = {
    "lca_values_k2": ("values.csv", "ABCD", 2, SINGLE, 1e-3),
    "lca_cheating_k2": ("cheating.csv", ("LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM"), 2, SINGLE, 1e-3),
    "lca_gss82_k3": ("gss82.csv", ("PURPOSE", "ACCURACY", "UNDERSTA", "COOPERAT"), 3, SINGLE, 1e-2),
    "lca_carcinoma_k2": ("carcinoma.csv", "ABCDEFG", 2, SINGLE, 1e-3),
    "lca_carcinoma_k4": ("carcinoma.csv", "ABCDEFG", 4, RESTARTED, None),
}


def answers(file: str, items: tuple[str, ...]) -> tuple[Tensor, list[int]]:
    """Levels in alphabetical order, numbered from zero, and how many each item has."""
    rows = table(file)
    levels = [sorted({row[item] for row in rows}) for item in items]
    codes = [[level.index(row[item]) for item, level in zip(items, levels, strict=True)] for row in rows]
    return torch.tensor(codes), [len(level) for level in levels]


@pytest.mark.parametrize("name", LATENT_CLASSES)
def test_latent_classes_end_where_polca_does(name: str) -> None:
    file, items, K, strategy, tol = LATENT_CLASSES[name]
    expected, (x, num_levels) = gold(name), answers(file, tuple(items))
    model = partial(latent_class.model, num_levels=num_levels, num_classes=K)
    assert num_params(model, x) == expected.num_params
    result = fit(model, x, strategy=strategy, seed=1, progress=False)
    assert result.converged
    if tol is None:
        assert result.log_evidence == pytest.approx(expected.log_likelihood, abs=expected.tol)
    else:
        expected.check(result, result.params, dict.fromkeys(result.params, 0), tol)


# Raters -------------------------------------------------------------------------------------------


def anaesthetists() -> tuple[Tensor, Tensor]:
    """Seven ratings of 45 patients by five raters, the first of whom rates everyone three times."""
    rows = columns(table("anesthesia_ds.csv"), "item", "rater", "rating").long() - 1
    rows = rows[rows[:, 0].argsort(stable=True)]
    return rows[:, 2].reshape(45, 7), rows[:, 1].reshape(45, 7)


def test_anaesthetists() -> None:
    """The best of many maxima; the zeros of the confusion matrices are estimates, too."""
    expected, data = gold("dawidskene_anesthesia"), anaesthetists()
    assert torch.equal(data[1][0], torch.tensor([0, 0, 0, 1, 2, 3, 4]))
    model = partial(dawid_skene.model, num_classes=4, num_raters=5)
    assert num_params(model, *data) == expected.num_params
    strategy = EM(tol=1e-7, accelerate="squarem", restarts=30, start=RandomDraws())
    result = fit(model, *data, strategy=strategy, seed=0, progress=False)
    expected.check(result, result.params, {"prevalence": 0, "confusion": 1}, tol=1e-3)


# Causes -------------------------------------------------------------------------------------------


def test_noisy_or() -> None:
    expected, x = gold("noisyor_carcinoma_c2"), columns(table("carcinoma.csv"), *"ABCDEFG") - 1
    assert num_params(noisy_or.model, x) == expected.num_params
    result = fit(noisy_or.model, x, strategy=RESTARTED, seed=1, progress=False)
    expected.check(result, result.params, {"prior": 0, "activation": 0}, tol=1e-2)


# Abilities ----------------------------------------------------------------------------------------

TESTS = {
    "irt_lsat6_rasch": ("lsat6.csv", item_response.rasch),
    "irt_lsat6_2pl": ("lsat6.csv", item_response.two_parameter),
    "irt_lsat7_rasch": ("lsat7.csv", item_response.rasch),
}


@pytest.mark.parametrize("name", TESTS)
def test_item_responses_end_where_ltm_does(name: str) -> None:
    """21 nodes stand for the integral over ability to four decimals; people with equal answers are one row."""
    file, discrimination = TESTS[name]
    expected, rows = gold(name), columns(table(file), "Q1", "Q2", "Q3", "Q4", "Q5", "count")
    model = item_response.make(discrimination)[0]
    assert num_params(model, rows[:, :-1]) == expected.num_params
    result = fit(model, rows[:, :-1], weights=rows[:, -1], strategy=SINGLE, progress=False)
    slopes = result.params["slopes"] if "slopes" in result.params else result.params["slope"].reshape(1)
    expected.check(result, {"intercepts": result.params["intercepts"], "slopes": slopes}, {}, tol=1e-3)
