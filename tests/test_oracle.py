"""The oracle against mathematics written by hand, and against Pyro where Pyro can do it."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import PYRO_IS_NOT_EXACT, Oracle, brute_force, pyro_evidence, summed
from programs import PROGRAMS, TAGS, Made, Program, select
from pyro import poutine
from torch import Tensor

BY_NAME = {program.name: program for program in PROGRAMS}


def solve(program: Program, **options: Any) -> Oracle:
    model, args, kwargs = program.make()
    return brute_force(model, args, kwargs, given=program.given, **options)


def normal(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """N(x; loc, scale), written out so that no distribution of Pyro's is trusted."""
    return torch.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * (2 * torch.pi) ** 0.5)


# By hand ------------------------------------------------------------------------------------------


def test_mixture_by_hand() -> None:
    weights, locs, scale = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 0.5]), torch.tensor(0.8)
    x = torch.tensor([-0.9, 0.1, 1.4])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    joint = weights * normal(x[:, None], locs, scale)
    posterior = joint / joint.sum(-1, keepdim=True)
    oracle = brute_force(model, (x,))
    assert oracle.log_evidence == pytest.approx(joint.sum(-1).log().sum().item(), abs=1e-12)
    torch.testing.assert_close(oracle.marginal("z"), posterior)
    torch.testing.assert_close(oracle.pairwise("z", (0,), "z", (2,)), posterior[0, :, None] * posterior[2])
    torch.testing.assert_close(oracle.map()["z"], posterior.argmax(-1))
    assert len(oracle.assignments) == 8
    assert oracle.weights.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_chain_by_forward_backward() -> None:
    init, locs = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([-1.1, 0.3, 1.8])
    trans = torch.tensor([[0.7, 0.2, 0.1], [0.15, 0.55, 0.3], [0.25, 0.35, 0.4]])
    x, scale = torch.tensor([-0.7, 0.4, 1.3]), torch.tensor(0.9)

    def model(x: Tensor) -> None:
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])

    lik = normal(x[:, None], locs, scale)
    alphas = [init * lik[0]]
    for t in (1, 2):
        alphas.append((alphas[-1] @ trans) * lik[t])
    evidence = alphas[-1].sum()
    beta_2 = torch.ones(3)
    beta_1 = trans @ (lik[2] * beta_2)
    pair_01 = alphas[0][:, None] * trans * (lik[1] * beta_1) / evidence
    pair_12 = alphas[1][:, None] * trans * (lik[2] * beta_2) / evidence
    # Viterbi: the best score of a path that ends in each state, and where it came from.
    best_1, from_1 = (alphas[0][:, None] * trans).max(0)
    best_2, from_2 = ((best_1 * lik[1])[:, None] * trans).max(0)
    last = (best_2 * lik[2]).argmax()
    path = [from_1[from_2[last]], from_2[last], last]

    oracle = brute_force(model, (x,))
    assert oracle.log_evidence == pytest.approx(evidence.log().item(), abs=1e-12)
    torch.testing.assert_close(oracle.pairwise("z_0", (), "z_1", ()), pair_01)
    torch.testing.assert_close(oracle.pairwise("z_1", (), "z_2", ()), pair_12)
    torch.testing.assert_close(oracle.marginal("z_1"), pair_12.sum(-1))
    assert [oracle.map()[f"z_{t}"].item() for t in range(3)] == [z.item() for z in path]


def test_hidden_continuous_data() -> None:
    """A value hidden by `obs_mask` integrates to one: the evidence is that of the rest."""
    program = BY_NAME["obs_mask_continuous"]
    x, seen = program.make()[1]
    oracle = solve(program)
    joint = torch.tensor([0.41, 0.59]) * normal(x[:, None], torch.tensor([-0.7, 1.2]), torch.tensor(0.8))
    assert oracle.log_evidence == pytest.approx(joint[seen].sum(-1).log().sum().item(), abs=1e-12)
    torch.testing.assert_close(oracle.marginal("z")[~seen], torch.tensor([[0.41, 0.59]]))


def test_prior_is_the_posterior_without_data() -> None:
    oracle = solve(BY_NAME["prior_only"])
    p, q = torch.tensor([0.3, 0.7]), torch.tensor([[0.1, 0.9], [0.6, 0.4]])
    assert oracle.log_evidence == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(oracle.pairwise("a", (), "b", ()), p[:, None] * q)


# Conventions --------------------------------------------------------------------------------------


def test_masked_latent_keeps_its_prior() -> None:
    oracle = solve(BY_NAME["masked_latent"])
    torch.testing.assert_close(oracle.marginal("z")[1], torch.tensor([0.31, 0.69]))
    assert oracle.log_evidence == pytest.approx(solve(BY_NAME["nan_under_poutine_mask"]).log_evidence, abs=1e-12)


def test_distribution_mask_on_a_latent_is_no_different() -> None:
    def model(present: Tensor) -> None:
        with pyro.plate("data", 2):
            prior = dist.Categorical(torch.tensor([0.2, 0.8])).mask(present)
            pyro.sample("z", prior)

    oracle = brute_force(model, (torch.tensor([True, False]),))
    assert oracle.log_evidence == pytest.approx(0.0, abs=1e-12)


def test_scale_multiplies_the_log_evidence_only() -> None:
    model, args, kwargs = BY_NAME["gaussian_mixture"].make()
    plain = brute_force(model, args, kwargs)
    scaled = brute_force(poutine.scale(model, scale=2.5), args, kwargs)
    assert scaled.log_evidence == pytest.approx(2.5 * plain.log_evidence, rel=1e-12)
    torch.testing.assert_close(scaled.weights, plain.weights)


def test_priors_of_given_sites_can_be_left_out() -> None:
    program = BY_NAME["bayesian_mixture"]
    priors = {
        "weights": dist.Dirichlet(torch.tensor([1.5, 2.0])),
        "scale": dist.LogNormal(0.0, 2.0),
        "locs": dist.Normal(0.0, 10.0),
    }
    log_prior = sum(fn.log_prob(program.given[name]).sum() for name, fn in priors.items())
    difference = solve(program).log_evidence - solve(program, priors=False).log_evidence
    assert difference == pytest.approx(float(log_prior), abs=1e-10)


def test_discrete_latents_can_be_given() -> None:
    model, args, kwargs = BY_NAME["gaussian_mixture"].make()
    free = brute_force(model, args, kwargs)
    best = free.map()
    pinned = brute_force(model, args, kwargs, given=best)
    log_weight = pinned.log_evidence - free.log_evidence
    assert len(pinned.assignments) == 1
    assert log_weight == pytest.approx(free.weights.max().log().item(), abs=1e-10)


def test_one_hot_and_binomial_values() -> None:
    onehot, binomial = solve(BY_NAME["onehot_latent"]), solve(BY_NAME["binomial_latent"])
    assert onehot.marginal("z").shape == (4, 3)
    assert onehot.map()["z"].shape == (4, 3)
    torch.testing.assert_close(onehot.map()["z"].argmax(-1), torch.tensor([0, 1, 2, 1]))
    assert binomial.marginal("copies").shape == (4, 4)


def test_batch_shape_of_a_latent_left_of_the_data() -> None:
    oracle = solve(BY_NAME["latent_at_dim_minus_two"])
    assert oracle.marginal("z").shape == (4, 1, 3)
    assert oracle.map()["z"].shape == (4, 1)


def test_impossible_states_have_no_weight() -> None:
    oracle = solve(BY_NAME["left_to_right_logits"])
    torch.testing.assert_close(oracle.marginal("z_0")[2], torch.tensor(0.0))
    assert oracle.pairwise("z_1", (), "z_2", ())[1, 0] == 0.0
    assert oracle.weights.isfinite().all()


def test_rng_is_untouched() -> None:
    program = BY_NAME["obs_mask_continuous"]
    before = torch.get_rng_state()
    solve(program)
    assert torch.equal(torch.get_rng_state(), before)


# Refusals -----------------------------------------------------------------------------------------


def _draws(fn: dist.Distribution) -> Made:
    return lambda: pyro.sample("z", fn), (), {}


def test_refuses_too_many_assignments() -> None:
    with pytest.raises(ValueError, match="243 assignments to list; at most 242"):
        solve(BY_NAME["gaussian_mixture"], max_assignments=242)


@pytest.mark.parametrize("fn", [dist.Normal(0.0, 1.0), dist.Poisson(2.0)])
def test_refuses_latents_without_finite_support(fn: dist.Distribution) -> None:
    with pytest.raises(ValueError, match=r"need a value in `given`: \['z'\]"):
        brute_force(*_draws(fn))


def test_refuses_unknown_given_sites() -> None:
    with pytest.raises(ValueError, match=r"not latents of the model: \['y'\]"):
        brute_force(*_draws(dist.Bernoulli(0.3)), given={"y": torch.tensor(1.0)})


def test_refuses_mixed_scales() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.3))
        with poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.4))

    with pytest.raises(ValueError, match=r"have scales \[1.0, 2.0\]"):
        brute_force(model)


def test_refuses_imputed_values_that_are_used() -> None:
    def model(x: Tensor, seen: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=seen)
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.4))

    with pytest.raises(ValueError, match="uses imputed continuous values"):
        brute_force(model, (torch.tensor(0.0), torch.tensor(False)))


def test_refuses_sites_that_come_and_go() -> None:
    def model() -> None:
        if pyro.sample("z", dist.Bernoulli(0.3)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.4))

    with pytest.raises(ValueError, match="sites change"):
        brute_force(model)


def test_refuses_nan_and_impossible_data() -> None:
    def model(factor: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(0.3))
        pyro.factor("penalty", factor)

    with pytest.raises(ValueError, match="'penalty' has a NaN"):
        brute_force(model, (torch.tensor(float("nan")),))
    with pytest.raises(ValueError, match="no assignment explains"):
        brute_force(model, (torch.tensor(-torch.inf),))


# The corpus ---------------------------------------------------------------------------------------


def test_corpus_is_well_formed() -> None:
    assert len(BY_NAME) == len(PROGRAMS)
    used = set().union(*(program.tags for program in PROGRAMS))
    assert used == TAGS.keys()
    assert select("continuous") == select("map") == [p for p in PROGRAMS if p.given]
    with pytest.raises(ValueError, match="Unknown tags"):
        select("no such tag")


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_agrees_with_pyro(program: Program) -> None:
    """Small enough to list, the same at each call of `make`, and equal to Pyro's own evidence."""
    oracle = summed(program)
    assert len(oracle.assignments) <= 512
    for name in oracle.supports:
        total = oracle.marginal(name).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
    if program.name in PYRO_IS_NOT_EXACT:
        return
    model, args, kwargs = program.make()
    tolerance = 1e-5 if "float32" in program.tags else 1e-8
    assert oracle.log_evidence == pytest.approx(pyro_evidence(model, args, kwargs, program.given), abs=tolerance)
