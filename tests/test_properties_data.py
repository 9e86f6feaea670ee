"""What must not depend on how data and components are arranged: sums over data, row order, labels, strategy."""

import functools
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from cases import BY_NAME, MODELS, evaluate, fitted
from programs import Made, Program, select
from torch import Tensor

from models import load_model
from pyro_em import EM, SVI, FitResult, GradientMStep, fit

# Programs with data in plates that cannot be cut along the first dimension of their arguments, and why.
NOT_CUT = {
    "vindex_tables": "a table of parameters per datum",
    "independent_plates": "two plates side by side",
    "sequential_plate": "a site of its own for every datum",
    "documents_rightmost": "the first dimension holds the words of a document",
    "chain_of_mixtures": "one chain runs through all data",
    "factor_on_parameters": "a penalty that all data share",
    "models.autoregressive_hmm": "one chain runs through all data",
    "models.factorial_hmm": "one chain runs through all data",
    "models.markov_switching": "one chain runs through all data",
}
CUTTABLE = [p for p in [*select("plate", without=("global", "subsample")), *MODELS] if p.name not in NOT_CUT]
cuttable = pytest.mark.parametrize("program", CUTTABLE, ids=repr)
# An M-step run to the last digit, so that two runs differ by rounding and not by where a line search stopped.
EXACT = GradientMStep(
    functools.partial(
        torch.optim.LBFGS,
        max_iter=200,
        history_size=50,
        tolerance_grad=1e-11,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )
)


def rows_of(program: Program, index: Tensor) -> Program:
    """The program on some rows of its data, in the order of ``index``."""

    def make() -> Made:
        model, args, kwargs = program.make()
        return model, tuple(a[index] for a in args), {k: v[index] for k, v in kwargs.items()}

    return replace(program, make=make)


def num_rows(program: Program) -> int:
    _, args, kwargs = program.make()
    return len(next(iter((*args, *kwargs.values()))))


def at_start(program: Program, start: Mapping[str, Tensor]) -> FitResult:
    return fitted(program, EM(max_steps=0), start)


# Data ---------------------------------------------------------------------------------------------


@cuttable
def test_the_evidence_of_two_sets_of_data_is_the_sum_of_theirs(program: Program) -> None:
    whole = evaluate(program)
    parts = [rows_of(program, index) for index in torch.arange(num_rows(program)).tensor_split(2) if len(index)]
    evidences = [at_start(part, whole.params).log_evidence for part in parts]
    assert sum(evidences) == pytest.approx(whole.log_evidence, rel=1e-12)


@pytest.mark.parametrize("program", [p for p in CUTTABLE if p not in MODELS], ids=repr)
def test_a_plate_is_a_loop(program: Program) -> None:
    """Data one by one give each datum's share of the evidence and its row of every marginal.

    Not so for the models, which compute their start from the data and need more than one row for it.
    """
    whole = evaluate(program)
    together, total = whole.posterior(), 0.0
    for n in range(num_rows(program)):
        alone = at_start(rows_of(program, torch.tensor([n])), whole.params).posterior()
        total += alone.log_evidence
        torch.testing.assert_close(alone.log_likelihood[0], together.log_likelihood[n], rtol=1e-12, atol=1e-12)
        for name in alone.graph.variables:
            torch.testing.assert_close(alone.marginal(name)[0], together.marginal(name)[n], rtol=0.0, atol=1e-12)
    assert total == pytest.approx(whole.log_evidence, rel=1e-12)


@cuttable
def test_the_order_of_the_data_is_immaterial(program: Program) -> None:
    start = evaluate(program)
    index = torch.randperm(num_rows(program))
    shuffled = rows_of(program, index)
    torch.testing.assert_close(
        at_start(shuffled, start.params).posterior().log_likelihood,
        start.posterior().log_likelihood[index],
        rtol=1e-12,
        atol=1e-12,
    )
    agree(climb(shuffled, start.params).params, climb(program, start.params).params)


def climb(program: Program, start: Mapping[str, Tensor]) -> FitResult:
    """By L-BFGS; the models by the M-step they get, since shares of zero are infinitely far for L-BFGS."""
    steps = 1 if program.name in COLLAPSES else 2
    m_step = None if program.name.startswith("models.") else EXACT
    return fitted(program, EM(max_steps=steps, tol=0, m_step=m_step), start)


# From the second step on a component shrinks to one datum, and the evidence grows without bound.
COLLAPSES = {"gaussian_mixture"}


def agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


# Labels -------------------------------------------------------------------------------------------

# By program, which dimensions of each parameter the labels of one latent index.
LABELS = {
    "gaussian_mixture": {"weights": (0,), "locs": (0,), "scales": (0,)},
    "multivariate_mixture": {"weights": (0,), "locs": (0,)},
    "mixed_observations": {"weights": (0,), "locs": (0,), "rates": (0,), "kinds": (0,)},
    "observed_child": {"weights": (0,), "probs": (0,)},
    "coupled_latents": {"second": (1,), "locs": (1,)},
    "onehot_latent": {"weights": (0,), "locs": (0,)},
    "hidden_markov": {"init": (0,), "trans": (0, 1), "locs": (0,)},
    "mixture_of_chains": {"classes": (0,), "init": (0,), "trans": (0,)},
    "models.gaussian_mixture": {"weights": (0,), "locs": (0,), "scale_trils": (0,)},
    "models.bernoulli_mixture": {"weights": (0,), "probs": (0,)},
    "models.poisson_mixture": {"weights": (0,), "rates": (0,)},
    "models.gaussian_hmm": {"init": (0,), "trans": (0, 1), "locs": (0,), "scales": (0,)},
    "models.poisson_hmm": {"init": (0,), "trans": (0, 1), "rates": (0,)},
    "models.categorical_hmm": {"init": (0,), "trans": (0, 1), "probs": (0,)},
    "models.autoregressive_hmm": {"init": (0,), "trans": (0, 1), "levels": (0,), "slopes": (0,), "scales": (0,)},
    "models.factorial_hmm": {"init": (0,), "trans": (0,), "adds": (0,)},
    "models.mixture_of_hmms": {"weights": (0,), "init": (0,), "trans": (0,), "rates": (0,)},
    "models.gaussian_structures": {"weights": (0,), "locs": (0,)},
    "models.binomial_mixture": {"weights": (0,), "probs": (0,)},
    "models.two_coins": {"probs": (0,)},
    "models.multinomial_mixture": {"weights": (0,), "probs": (0,)},
    "models.documents": {"weights": (0,), "probs": (0,)},
    "models.latent_class": {"weights": (0,), **{f"probs_{j}": (0,) for j in range(4)}},
    "models.regression_mixture": {"weights": (0,), "coefs": (0,), "scales": (0,)},
    "models.poisson_regressions": {"weights": (0,), "coefs": (0,)},
}


@pytest.mark.parametrize("name", LABELS)
def test_relabelling_the_start_relabels_the_result(name: str) -> None:
    start = evaluate(BY_NAME[name]).params
    plain = climb(BY_NAME[name], start)
    relabelled = climb(BY_NAME[name], relabel(start, LABELS[name]))
    assert relabelled.objective == pytest.approx(plain.objective, rel=1e-8)
    agree(relabelled.params, relabel(plain.params, LABELS[name]))


def relabel(params: Mapping[str, Tensor], dims: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every label moved on by one."""
    return {n: v.roll([1] * len(dims.get(n, ())), dims.get(n, ())) if n in dims else v for n, v in params.items()}


# Strategies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture", "poisson_mixture"])
def test_em_and_svi_climb_to_the_same_optimum(name: str) -> None:
    """Without a guide SVI takes plain gradient steps on the log evidence, so only the optimiser differs."""
    module = load_model(name)
    model, data = module.make()[0], module.simulate(num=150)
    em = fit(model, *data, strategy=EM(tol=1e-4), progress=False)
    optim = functools.partial(torch.optim.Adam, lr=0.1)
    svi = fit(model, *data, strategy=SVI(optim=optim, max_steps=300, patience=None), progress=False)
    assert em.converged
    assert svi.objective == svi.log_evidence
    assert svi.log_evidence == pytest.approx(em.log_evidence, abs=1e-3)
