"""Programs as Pyro's repository writes them fit as they are, with the evidence that Pyro computes; or are refused.

Learned from pyro-ppl/pyro: examples/hmm.py, examples/lda.py, examples/capture_recapture, examples/mixed_hmm,
examples/toy_mixture_model_discrete_enumeration.py, and the tutorials on enumeration and on Gaussian mixtures.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from oracle import brute_force, pyro_evidence
from pyro.infer import config_enumerate
from pyro_style import capture, documents, music, seals, tutorials
from torch import Tensor

from pyro_em import EM, SVI, FitResult, ModelError, RandomResponsibilities, StartError, Status, fit

CHORDS = torch.bernoulli(torch.full((3, 5, 4), 0.4), generator=torch.Generator().manual_seed(0)).double()
LENGTHS = torch.tensor([5, 3, 4])
MUSIC = (CHORDS, LENGTHS, 2)
SEEN = torch.tensor(
    [
        [1.0, 0.0, 1.0, 0.0, 0.0],
        [0.0, 1.0, 1.0, 0.0, 0.0],
        [1.0, 1.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 1.0, 0.0, 1.0],
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)
ANIMALS = (SEEN, torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
WORDS = torch.randint(6, (8, 5), generator=torch.Generator().manual_seed(0))
TOSSES = {
    "a": torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0], dtype=torch.float64),
    "c": torch.tensor([0.0, 0, 1, 1, 0, 1, 0, 0], dtype=torch.float64),
}
POINTS = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0], dtype=torch.float64)
SYMBOLS = torch.tensor([0, 3, 1, 1, 2, 0, 0, 3])
PARTS = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0], [1, 0, 0, 2]])
SIZES = {"kinds": 2, "states": 2, "groups": 2, "individuals": 2}


def _dives() -> tuple[Any, ...]:
    """Three times of two individuals in each of two groups; one ends early, one does not exist."""
    generator = torch.Generator().manual_seed(0)
    step, active, turn = torch.rand(3, 2, 2, 3, generator=generator, dtype=torch.float64)
    step[0, 0, 1] = active[1, 0, 0] = 0.0
    mask = torch.ones(2, 2, 3, dtype=torch.bool)
    mask[1, 0, 2] = False
    known = torch.tensor([[True, True], [True, False]])
    return {"step": 3 * step, "turn": 6 * turn - 3, "active": 0.9 * active, "mask": mask}, known, SIZES


def _neural(model: Callable[..., None]) -> Callable[..., None]:
    conductor = music.Conductor(2, 4).double()
    return lambda *args, **kwargs: model(*args, conductor, **kwargs)


PLAIN = ("looped", "plated", "autoregressive", "factorial", "dynamic_network", "second_order", "raftery")
MODELS: dict[str, tuple[Callable[[], Callable[..., Any]], tuple[Any, ...]]] = {
    **{f"music.{name}": (lambda name=name: getattr(music, name), MUSIC) for name in PLAIN},
    "music.neural": (lambda: _neural(music.neural), MUSIC),
    "music.fused": (lambda: _neural(music.fused), MUSIC),
    **{f"capture.{name}": (lambda name=name: getattr(capture, name), ANIMALS) for name in capture.__all__},
    "documents.shares": (lambda: documents.shares, (WORDS, 2, 6)),
    "seals.dives": (lambda: seals.dives, _dives()),
    "tutorials.coins": (lambda: tutorials.coins, (TOSSES, 8)),
    "tutorials.gaussians": (lambda: tutorials.gaussians, (POINTS,)),
    "tutorials.three_draws": (lambda: tutorials.three_draws, (torch.tensor(1),)),
    "tutorials.corners": (lambda: tutorials.corners, (torch.tensor([0, 1, 1, 0, 1]),)),
    "tutorials.loop": (lambda: tutorials.loop, (SYMBOLS, 4)),
    "tutorials.loop_markov": (lambda: tutorials.loop_markov, (SYMBOLS, 4)),
}
# Of these, all joint assignments of the latents can be listed in no time.
SMALL = ["tutorials.coins", "tutorials.gaussians", "tutorials.three_draws", "tutorials.corners"]


def latents(result: FitResult) -> dict[str, Tensor]:
    """The point estimates, without `pyro.param`s; to be called inside of `use()`."""
    return {name: value for name, value in result.params.items() if name not in pyro.get_param_store()}


def check(model: Callable[..., Any], args: tuple[Any, ...], **kwargs: Any) -> FitResult:
    """A few iterations climb, and end at the evidence by Pyro's own enumeration, with the densities of priors."""
    result = fit(model, *args, strategy=EM(max_steps=3, tol=0), seed=0, progress=False, **kwargs)
    objective = result.history["objective"].tolist()
    assert len(objective) == 4
    assert objective[-1] > objective[0]
    for before, after in itertools.pairwise(objective):
        assert after >= before - 1e-9 * abs(before)
    with result.use():
        assert result.objective == pytest.approx(
            pyro_evidence(model, args, kwargs, latents(result)), rel=1e-9, abs=1e-9
        )
    return result


# A site that sums its states itself leaves Pyro nothing to enumerate.
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", MODELS)
def test_programs_in_the_style_of_pyro_fit_as_they_are(name: str) -> None:
    make, args = MODELS[name]
    check(make(), args)


@pytest.mark.parametrize("name", SMALL)
def test_the_evidence_is_the_sum_over_all_assignments(name: str) -> None:
    make, args = MODELS[name]
    result = fit(make(), *args, strategy=EM(max_steps=2, tol=0), seed=0, progress=False)
    with result.use():
        summed = brute_force(make(), args, given=latents(result))
    assert result.objective == pytest.approx(summed.log_evidence, rel=1e-10)


@pytest.mark.parametrize("name", ["music.looped", "music.plated", "music.second_order", "capture.constant"])
def test_config_enumerate_changes_nothing(name: str) -> None:
    make, args = MODELS[name]
    plain, decorated = check(make(), args), check(config_enumerate(make()), args)
    assert plain.objective == decorated.objective


@pytest.mark.parametrize("name", ["looped", "plated", "autoregressive", "factorial", "dynamic_network"])
def test_masked_priors_are_none(name: str) -> None:
    """`include_prior=False` is maximum likelihood, in closed form, as `priors=False` is."""
    model = getattr(music, name)
    result = check(model, MUSIC, include_prior=False)
    assert set(result.explain()["owner"]) == {"closed form"}
    assert result.objective_kind == "log_evidence"
    without = fit(model, *MUSIC, strategy=EM(max_steps=3, tol=0, priors=False), seed=0, progress=False)
    assert result.objective == pytest.approx(without.objective, rel=1e-12)


def test_one_plate_or_a_loop_of_sequences_is_the_same() -> None:
    looped, plated = check(music.looped, MUSIC), check(music.plated, MUSIC)
    assert looped.objective == pytest.approx(plated.objective, rel=1e-12)


@pytest.mark.parametrize("name", ["plated", "second_order"])
def test_a_subsample_of_all_sequences_is_no_subsample(name: str) -> None:
    model = getattr(music, name)
    assert check(model, MUSIC, batch_size=3).objective == check(model, MUSIC).objective


@pytest.mark.parametrize("name", ["looped", "plated", "second_order"])
def test_subsamples_of_sequences_climb_the_evidence_of_all(name: str) -> None:
    """The objective of an iteration is that of a part, scaled; nothing exact is claimed of it."""
    model = getattr(music, name)
    start = fit(model, *MUSIC, strategy=EM(max_steps=0), seed=0, progress=False)
    result = fit(model, *MUSIC, batch_size=2, strategy=EM(max_steps=10, tol=0), init=start, seed=1, progress=False)
    assert result.log_evidence is None
    end = fit(model, *MUSIC, strategy=EM(max_steps=0), init=result, progress=False)
    assert end.objective > start.objective + 1.0


def test_the_fused_model_is_the_looped_one() -> None:
    """`DiscreteHMM` transits before the first chord, as the loop does from its state 0."""
    conductor = music.Conductor(2, 4).double()
    start = {"moves": torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)}
    looped, fused = (
        fit(model, *MUSIC, conductor, strategy=EM(max_steps=0), init=start, progress=False)
        for model in (music.neural, music.fused)
    )
    assert looped.objective == pytest.approx(fused.objective, rel=1e-12)


@pytest.mark.parametrize("group", ["none", "discrete"])
@pytest.mark.parametrize("individual", ["none", "discrete"])
def test_random_effects_on_chains_may_be_there_or_not(group: str, individual: str) -> None:
    strategy = EM(max_steps=0)
    result = fit(seals.dives, *_dives(), strategy=strategy, progress=False, group=group, individual=individual)
    with result.use():
        own = pyro_evidence(seals.dives, _dives(), {"group": group, "individual": individual}, {})
    assert result.log_evidence == pytest.approx(own, rel=1e-10)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "site"), [("group", "group_effect"), ("individual", "effect")])
def test_continuous_random_effects_of_chains_are_refused(level: str, site: str) -> None:
    with pytest.raises(ModelError, match=rf"Site '{site}' is Normal. Give it a guide .* out of plate 'group'"):
        fit(seals.dives, *_dives(), strategy=EM(), progress=False, **{level: "continuous"})


def test_topic_shares_of_documents_are_refused_and_fit_with_a_guide() -> None:
    reader = documents.Reader(6, 2).double()
    with pytest.raises(ModelError, match=r"Site 'own' is Dirichlet. Give it a guide .* out of plate 'documents'"):
        fit(documents.topics, WORDS, 2, 6, reader, strategy=EM(), progress=False)
    strategy = SVI(documents.amortised, max_steps=60, patience=None)
    result = fit(documents.topics, WORDS, 2, 6, reader, strategy=strategy, seed=0, progress=False)
    elbo = result.history["objective"]
    assert result.objective_kind == "elbo"
    assert elbo[-20:].mean() > elbo[:20].mean() + 1.0


def test_a_table_drawn_for_every_feature_is_refused() -> None:
    """It lies in a plate that holds data, whether or not there is another plate of data."""
    with pytest.raises(ModelError, match=r"Site 'p' is Dirichlet. .* moving it out of plate 'parts'"):
        fit(tutorials.features, PARTS, strategy=EM(), progress=False)


def test_a_long_plain_loop_is_told_of_markov() -> None:
    with pytest.raises(ModelError, match=r"Write the loop as `for t in pyro.markov\(range\(T\)\):`"):
        fit(tutorials.loop, SYMBOLS.repeat(10), 4, strategy=EM(), progress=False)


# Priors without a mode ----------------------------------------------------------------------------

JEFFREYS = {"concentration": 0.5}  # as both tutorials have it: where a state is left alone, the density is infinite


def test_priors_without_a_mode_end_the_fit_by_name() -> None:
    result = fit(tutorials.loop_markov, SYMBOLS, 4, strategy=EM(), seed=0, progress=False, **JEFFREYS)
    assert result.status is Status.NON_FINITE
    assert "a prior of unbounded density (a concentration below 1)" in str(result.status)


def test_without_such_priors_the_same_program_converges() -> None:
    result = fit(tutorials.loop_markov, SYMBOLS, 4, strategy=EM(priors=False), seed=0, progress=False, **JEFFREYS)
    assert result.converged


def test_a_start_of_infinite_density_is_refused_and_told_of_priors() -> None:
    strategy = EM(start=RandomResponsibilities())
    with pytest.raises(StartError, match=r"start is inf: .* unbounded .* leave them out with EM\(priors=False\)"):
        fit(tutorials.loop_markov, SYMBOLS, 4, strategy=strategy, seed=0, progress=False, **JEFFREYS)


def test_a_random_start_of_infinite_density_is_left_out() -> None:
    result = fit(tutorials.gaussians, POINTS, 3, strategy=EM(restarts=12), seed=0, progress=False, **JEFFREYS)
    assert {0} < set(result.history["restart"]) < set(range(12))
    assert result.objective < 0


def test_the_mixture_of_the_tutorial_is_found_in_spite_of_its_prior() -> None:
    """Two clusters, 0 and 1 against 10, 11 and 12, whose means a wide prior hardly moves."""
    result = fit(tutorials.gaussians, POINTS, strategy=EM(restarts=5), seed=0, progress=False, **JEFFREYS)
    assert result.converged
    assert result.params["locs"].sort().values.tolist() == pytest.approx([0.5, 11.0], abs=0.05)
    assert result.posterior().map()["z"].unique_consecutive(return_counts=True)[1].tolist() == [2, 3]
