"""Log evidence, posteriors and joint maxima equal brute-force enumeration, for every structure of the corpus."""

import itertools
import math

import pyro
import pytest
import torch
from oracle import brute_force
from programs import PROGRAMS

from pyro_em import EM, fit


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


@pytest.fixture(params=PROGRAMS, ids=lambda p: p.name)
def case(request):
    program = request.param
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, args, kwargs = program.make()
    result = fit(model, *args, strategy=EM(max_steps=0), init=program.given or None, progress=False, **kwargs)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, args, kwargs = program.make()
    oracle = brute_force(model, args, kwargs, given=program.given or None, priors=False)
    return program, result, oracle


def test_log_evidence(case):
    program, result, oracle = case
    assert result.log_evidence == pytest.approx(oracle.log_evidence, abs=1e-10)
    

def test_marginals(case):
    program, result, oracle = case
    post = result.posterior()
    for name in oracle.supports:
        if name in program.given: continue
        expected = oracle.marginal(name)
        found = post.marginal(name)
        assert torch.allclose(found.expand(expected.shape), expected, atol=1e-10), name


def test_map(case):
    program, result, oracle = case
    m = result.posterior().map()
    o = oracle.map()
    for name in oracle.supports:
        if name in program.given: continue
        assert torch.equal(m[name].to(o[name]).expand(o[name].shape), o[name]), name
