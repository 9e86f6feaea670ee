"""Arguments that differ between data, in batches: each reads its own, and statistics are kept for those of all."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import agree, data, f64, run
from pyro.distributions.constraints import lower_cholesky, positive, simplex, unit_interval
from pyro.ops.indexing import Vindex

from pyro_em.em import shares

N = 60
STEPS = {"max_steps": 20, "tol": 0}


def groups(num=3, sort=True):
    """Sorted, so that a batch has a few of them only."""
    found = torch.randint(num, (N,), generator=torch.Generator().manual_seed(1))
    return found.sort().values if sort else found


def kinds():
    return dist.Categorical(pyro.param("weights", f64([0.4, 0.6]), constraint=simplex))


def scales(*size):
    return pyro.param("scales", torch.linspace(0.8, 1.4, torch.Size(size).numel()).reshape(size), constraint=positive)


def labelled(x, y):
    """Labels are data, and choose parameters."""
    weights = pyro.param("weights", f64([0.2, 0.3, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 0.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=y)
        pyro.sample("x", dist.Normal(locs[z], scales(3)[z]), obs=x)


def grouped(x, g):
    locs = pyro.param("locs", f64([[-1.0, 1.0], [-2.0, 2.0], [0.0, 1.0]]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.Normal(Vindex(locs)[g, z], scales(2)[z]), obs=x)


def alike_at_the_start(x, g):
    """Values do not tell the groups apart where the fit starts."""
    locs = pyro.param("locs", torch.zeros(3, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.Normal(locs[g] + 0.0, f64([0.5, 2.0])[z]), obs=x)


def linked(x, g):
    """The logarithm of a scale; the first batch is of the group whose scale is known."""
    log_scales = pyro.param("log_scales", f64([0.1, -0.1]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        known = torch.cat([torch.ones(1, dtype=torch.float64), log_scales.exp()])
        pyro.sample("x", dist.Normal(f64([-1.0, 1.0])[z], known[g]), obs=x)


def rated(x, raters):
    """Answers of three raters for each item, out of five: a row of probabilities for each rater and class."""
    rows = torch.full((5, 2, 3), 0.2, dtype=torch.float64)
    rows[:, 0, 0], rows[:, 1, 2] = 0.6, 0.6
    confusion = pyro.param("confusion", rows / rows.sum(-1, keepdim=True), constraint=simplex)
    with pyro.plate("items", len(x), dim=-2):
        z = pyro.sample("z", kinds())
        with pyro.plate("answers", 3, dim=-1):
            pyro.sample("x", dist.Categorical(Vindex(confusion)[raters, z]), obs=x)


def items(x, form):
    """Two forms of a test: items of their own, two events a datum."""
    probs = pyro.param("probs", torch.linspace(0.2, 0.8, 8).reshape(2, 2, 2).double(), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.Bernoulli(Vindex(probs)[form, z]).to_event(1), obs=(x > 0).double())


def planes(x, g):
    trils = pyro.param("trils", 1.5 * torch.eye(2).repeat(3, 1, 1).double(), constraint=lower_cholesky)
    locs = pyro.param("locs", f64([[-1.0, -1.0], [1.5, 1.5]]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[g]), obs=x)


def measured(x, error):
    """A known error of each datum: a constant of its own."""
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.Normal(locs[z], error), obs=x)


def sequences(x, g):
    """Transitions of a sequence by its group."""
    trans = pyro.param("trans", f64([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.6, 0.4]]]), constraint=simplex)
    init, locs = pyro.param("init", f64([0.4, 0.6]), constraint=simplex), pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else Vindex(trans)[g, z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def features(x):
    """An inner plate, of the same size in all batches."""
    locs = pyro.param("locs", f64([[-1.0, -1.2], [1.5, 1.2]]))
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", kinds())
        with pyro.plate("features", 2, dim=-1):
            pyro.sample("x", dist.Normal(Vindex(locs)[z, torch.arange(2)], scales(2)), obs=x)


def counts(x):
    """A family that knows the largest count."""
    size = pyro.param("size", f64(2.0), constraint=positive)
    probs = pyro.param("probs", f64([0.3, 0.6]), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.NegativeBinomial(size, probs[z]), obs=x)


def spread_counts():
    odds = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (8 * odds / (1.05 - odds)).floor().sort().values


def answers():
    return torch.randint(3, (N, 3), generator=torch.Generator().manual_seed(2))


def raters():
    return torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i))[:3] for i in range(N)])


CASES = {
    "labelled": (labelled, lambda: (data(), groups())),
    "grouped": (grouped, lambda: (data(), groups())),
    "grouped, shuffled": (grouped, lambda: (data(), groups(sort=False))),
    "alike_at_the_start": (alike_at_the_start, lambda: (data(), groups())),
    "linked": (linked, lambda: (data(), groups())),
    "rated": (rated, lambda: (answers(), raters())),
    "items": (items, lambda: (data(dims=2), groups(2))),
    "planes": (planes, lambda: (data(dims=2), groups())),
    "measured": (measured, lambda: (data(), 0.5 + torch.rand(N, dtype=torch.float64))),
    "sequences": (sequences, lambda: (data(dims=4), groups(2))),
    "features": (features, lambda: (data(dims=2),)),
    "counts": (counts, lambda: (spread_counts(),)),
}


@pytest.mark.parametrize("size", [1, 7, 59])
@pytest.mark.parametrize("name", CASES)
def test_batches_are_the_whole(name, size):
    model, make = CASES[name]
    args, steps = make(), {"max_steps": 2, "tol": 0} if size == 1 else STEPS
    found, whole = run(model, *args, batch_size=size, **steps), run(model, *args, **steps)
    assert not {"gradient", "statistics"} & set(found.explain().owner)
    assert found.explain().equals(whole.explain())
    assert found.history.objective.tolist() == pytest.approx(whole.history.objective.tolist(), abs=1e-8)
    agree(found, whole)


def test_batches_with_weights():
    args, weights = (data(), groups()), 1.0 + (torch.arange(N) % 3)
    whole = run(grouped, *args, weights=weights, **STEPS)
    agree(run(grouped, *args, weights=weights, batch_size=16, **STEPS), whole)


def test_batches_converge_where_the_whole_does():
    args = data(), groups()
    found, whole = run(grouped, *args, batch_size=16), run(grouped, *args)
    assert found.converged and found.n_steps == whole.n_steps
    agree(found, whole)


def test_restarts_in_batches():
    found = run(grouped, data(), groups(), batch_size=16, restarts=4, max_steps=25)
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-9)
    assert run(grouped, data(), groups(), init=found, max_steps=0).objective == pytest.approx(found.objective, abs=1e-9)


def test_arguments_of_their_own_for_too_many_data(monkeypatch):
    """Where there are more cells than fit in memory, the gradient takes the model."""
    monkeypatch.setattr(shares, "MAX_HELD", 100)
    args = data(), 0.5 + torch.rand(N, dtype=torch.float64)
    found = run(measured, *args, batch_size=16)
    assert set(found.explain().owner) == {"gradient"}
    assert found.objective == pytest.approx(run(measured, *args).objective, abs=1e-3)


def test_data_that_change_between_passes_are_refused():
    x, labels = data(), torch.zeros(N, dtype=torch.long)
    calls = []

    def model(x, y):
        calls.append(None)
        locs = pyro.param("locs", f64([-1.0, 0.0, 1.5]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs[y if len(calls) < 40 else y + 1], 1.0), obs=x)

    labels[30:] = 1
    with pytest.raises(ValueError, match="pass before"):
        run(model, x, labels, batch_size=16, **STEPS)


def test_a_link_that_only_later_batches_show():
    """The scale is known in the first batch, an exponential in the second, a parameter itself in the third."""

    def model(x, g):
        log_scale, scale = pyro.param("log_scale", f64(0.1)), pyro.param("scale", f64(0.9), constraint=positive)
        known = torch.stack([f64(1.0), log_scale.exp(), scale])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", kinds())
            pyro.sample("x", dist.Normal(f64([-1.0, 1.0])[z], known[g]), obs=x)

    args = data(), torch.arange(3).repeat_interleave(N // 3)
    found, whole = run(model, *args, batch_size=N // 3, tol=1e-9), run(model, *args, tol=1e-9)
    assert found.objective == pytest.approx(whole.objective, abs=1e-6)


def test_constants_of_many_batches_are_kept_once():
    reader = None

    class Look:
        def place(self, engine):
            nonlocal reader
            reader = engine.model.reader

    run(linked, data(), groups(sort=False), batch_size=2, start=Look(), max_steps=1, tol=0)
    assert len(reader.union.sites["x"].routes["scale"].constants) == 1
    assert len(reader.union.sites["x"].routes["scale"].index) <= 6


def test_a_branch_that_a_later_batch_takes_unseen():
    """Tensors and program are compared on every batch where the fit ends."""

    def model(x, g):
        locs = pyro.param("locs", f64([-1.0, 1.5]))
        moved = float(locs[1].detach()) > 1.6 and bool((g > 0).all())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[z] + (0.5 if moved else 0.0), 1.0), obs=x)

    args = data(), (torch.arange(N) >= 40).long()
    found = run(model, *args, batch_size=20)
    there = sum(run(model, *(a[i : i + 20] for a in args), init=found, max_steps=0).objective for i in range(0, N, 20))
    assert found.objective == pytest.approx(there, abs=1e-6)
