"""Evidence, marginals, joint maxima and draws equal brute-force enumeration, for every structure of the corpus."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import BY_NAME, Solved, solve
from oracle import PYRO_IS_NOT_EXACT, brute_force, pyro_evidence, summed
from programs import PROGRAMS, Program, select
from pyro import poutine
from torch import Tensor

from pyro_em import EM, fit
from pyro_em.graph import clique_posteriors

every_program = pytest.mark.parametrize("program", PROGRAMS, ids=repr)


# Evidence -----------------------------------------------------------------------------------------


@every_program
def test_log_evidence(program: Program) -> None:
    """A subsample that the caller chose is part of the model: its scaled evidence is exact."""
    solved = solve(program)
    assert solved.result.log_evidence == pytest.approx(solved.oracle.log_evidence, abs=1e-10)
    assert solved.post.log_evidence == pytest.approx(solved.oracle.log_evidence, abs=1e-10)


def test_a_random_subsample_has_no_log_evidence() -> None:
    """It estimates the evidence of all data without being it."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.38, 0.62]), constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x), subsample_size=3) as index:
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x[index])

    result = fit(model, torch.linspace(-1.0, 3.0, 6), strategy=EM(max_steps=0), progress=False)
    assert result.log_evidence is None
    assert torch.tensor(result.objective).isfinite()


@every_program
def test_objective_counts_the_priors_of_point_estimates(program: Program) -> None:
    joint, result = summed(program, priors=True), solve(program).result
    assert result.objective_kind == ("log_joint" if program.given else "log_evidence")
    assert result.objective == pytest.approx(joint.log_evidence, abs=1e-10)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.name not in PYRO_IS_NOT_EXACT], ids=repr)
def test_objective_is_that_of_pyro(program: Program) -> None:
    model, args, kwargs = program.make()
    expected = pyro_evidence(model, args, kwargs, program.given)
    tolerance = 1e-5 if "float32" in program.tags else 1e-10
    assert solve(program).result.objective == pytest.approx(expected, abs=tolerance)


@every_program
def test_log_likelihoods_add_up(program: Program) -> None:
    """Over data, and over plates side by side, times the scale, which is none of the data's.

    A latent that all data share leaves no such sum.
    """
    solved = solve(program)
    variables, factors = solved.post.graph.variables.values(), solved.post.graph.factors
    if any(not v.plates for v in variables) and any(f.plates for f in factors):
        with pytest.raises(ValueError, match="shared by all data"):
            _ = solved.post.log_likelihood
        return
    (scale,) = {f.scale for f in factors}
    found = solved.post.log_likelihoods
    total = sum(v.sum().item() for v in found.values())
    assert scale * total == pytest.approx(solved.oracle.log_evidence, abs=1e-10)
    if len(found) == 1:
        torch.testing.assert_close(solved.post.log_likelihood, *found.values(), atol=0.0, rtol=0.0)
    else:
        with pytest.raises(ValueError, match="ask log_likelihoods"):
            _ = solved.post.log_likelihood


@pytest.mark.parametrize(
    "name",
    [
        "gaussian_mixture",
        "regression_mixture",
        "mixed_observations",
        "documents_leftmost",
        "latent_at_dim_minus_two",
        "ragged_chains",
        "autoregressive_chains",
        "nan_under_dist_mask",
        "partly_labelled",
        "impossible_states",
    ],
)
def test_log_likelihood_is_the_evidence_of_each_datum_alone(name: str) -> None:
    model, args, kwargs = BY_NAME[name].make()
    found = solve(BY_NAME[name]).post.log_likelihood
    for n, value in enumerate(found.tolist()):
        alone = [a[n : n + 1] for a in args]
        oracle = brute_force(model, alone, {k: v[n : n + 1] for k, v in kwargs.items()})
        assert value == pytest.approx(oracle.log_evidence, abs=1e-10)


# Marginals ----------------------------------------------------------------------------------------


@every_program
def test_marginals(program: Program) -> None:
    solved = solve(program)
    assert set(solved.post.sites) == solved.oracle.supports.keys() | program.given.keys()
    for name in solved.oracle.supports:
        torch.testing.assert_close(solved.post.marginal(name), solved.oracle.marginal(name), atol=1e-10, rtol=0.0)


@every_program
def test_marginals_are_distributions_in_the_shape_of_the_model(program: Program) -> None:
    """A Binomial comes back as a Categorical over the numbers of its states, as nothing of its kind holds any table."""
    solved = solve(program)
    model, args, kwargs = program.make()
    sites = poutine.trace(model).get_trace(*args, **kwargs).nodes
    for name, support in solved.oracle.supports.items():
        found, fn = solved.post[name], sites[name]["fn"]
        assert found.batch_shape == fn.batch_shape
        states = torch.arange(len(support)) if "Binomial" in repr(fn) else support
        states = states.reshape(len(support), *[1] * (len(fn.batch_shape) - states.dim() + 1), *states.shape[1:])
        probs = found.log_prob(states).exp().movedim(0, -1)
        torch.testing.assert_close(probs, solved.oracle.marginal(name), atol=1e-10, rtol=0.0)


@every_program
def test_clique_posteriors_sum_to_their_scale(program: Program) -> None:
    graph = solve(program).post.graph
    for factor, weight in zip(graph.factors, clique_posteriors(graph).weights, strict=True):
        total = weight.sum(list(range(len(factor.plates), weight.dim())))
        torch.testing.assert_close(total, torch.full_like(total, factor.scale), atol=1e-12, rtol=1e-12)


# Joint assignments --------------------------------------------------------------------------------


@every_program
def test_map(program: Program) -> None:
    """No assignment is more probable; where several tie, any of them will do."""
    solved = solve(program)
    best = solved.post.map()
    for name, expected in solved.oracle.map().items():
        assert best[name].shape == expected.shape
    row = states(solved, {name: value.unsqueeze(0) for name, value in best.items()})
    assert weights_of(solved, row).item() == pytest.approx(solved.oracle.weights.max().item(), rel=1e-10)


@pytest.mark.parametrize(
    "program",
    [
        BY_NAME["gaussian_mixture"],
        BY_NAME["coupled_latents"],
        BY_NAME["global_and_local"],
        BY_NAME["documents_rightmost"],
        BY_NAME["onehot_latent"],
        BY_NAME["binomial_latent"],
        BY_NAME["scaled"],
        *select("markov", without=("map",)),
    ],
    ids=repr,
)
def test_draws_have_the_joint_frequencies(program: Program) -> None:
    """Of whole assignments, within 5 sigma each; Bernstein's 8 / n more for rare ones, none at all if impossible."""
    solved, n = solve(program), 20_000
    drawn = solved.post.sample(n)
    for name, expected in solved.oracle.map().items():
        assert drawn[name].shape == (n, *expected.shape)
    rows, counts = states(solved, drawn).unique(dim=0, return_counts=True)
    assert (weights_of(solved, rows) > 0).all()
    frequency = torch.zeros_like(solved.oracle.weights)
    frequency[row_numbers(solved, rows)] = counts / n
    p = solved.oracle.weights
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 8 / n).all()


def states(solved: Solved, values: dict[str, Tensor]) -> Tensor:
    """State numbers of assignments with one leading axis, a column for each variable of the oracle."""
    columns = []
    for name, support in solved.oracle.supports.items():
        hit = values[name].unsqueeze(1) == support
        event = support.dim() - 1 - len(solved.oracle.batch_shapes[name])
        hit = hit.flatten(-event).all(-1) if event else hit
        assert (hit.sum(1) == 1).all()
        columns.append(hit.long().argmax(1).reshape(len(hit), -1))
    return torch.cat(columns, dim=-1)


def row_numbers(solved: Solved, rows: Tensor) -> Tensor:
    """Which of the oracle's assignments each row is."""
    return (rows.unsqueeze(1) == solved.oracle.codes).all(-1).long().argmax(-1)


def weights_of(solved: Solved, rows: Tensor) -> Tensor:
    return solved.oracle.weights[row_numbers(solved, rows)]
