"""The autoencoders with a finite latent beside the code: sums over it are exact, and the code is the guide's."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models import load_model
from models.gaussian_mixture_vae import GaussianMixtureVAE
from models.semi_supervised_vae import SemiSupervisedVAE
from pyro_em import EM, SVI, FitResult, ModelError, fit

adam = partial(torch.optim.Adam, lr=0.01)
SMALL = {"num_pixels": 4, "latent_dim": 1, "hidden_dim": 3}
X = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]])
LABELS = torch.tensor([-1, 2, 0, -1, -1])
NAMES = ["semi_supervised_vae", "gaussian_mixture_vae"]


def small(name: str) -> tuple[Any, tuple[Tensor, ...]]:
    """Networks of a few units, moved off their start so that the finite latent matters, and tiny data."""
    torch.manual_seed(3)
    x = X.to(torch.get_default_dtype())
    if name == "semi_supervised_vae":
        vae, data = SemiSupervisedVAE(**SMALL, num_classes=3), (x, LABELS)
    else:
        vae, data = GaussianMixtureVAE(**SMALL, num_components=3), (x,)
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(2.0)
    return vae, data


def fitted(vae: Any, data: tuple[Tensor, ...], steps: int = 10) -> FitResult:
    strategy = SVI(vae.guide, optim=adam, max_steps=steps, patience=None)
    return fit(vae.model, *data, strategy=strategy, seed=0, progress=False)


def log_joint(vae: Any, result: FitResult, data: tuple[Tensor, ...], z: Tensor) -> Tensor:
    """log p(x_n, y_n = k, z) by the formulas of the models' docstrings, shape (nodes, N, K), for codes (nodes, 1)."""
    x, log_sqrt_2pi = data[0], 0.5 * torch.tensor(2 * torch.pi).log()
    params = result.params
    with result.use(), torch.no_grad():
        if isinstance(vae, SemiSupervisedVAE):
            logits = torch.stack([vae.decoder(torch.tensor(k), z).base_dist.logits for k in range(3)], -2)
            weights, prior = torch.full((3,), 1 / 3), (-0.5 * z.square() - log_sqrt_2pi).expand(-1, 3)
        else:
            logits = vae.decoder(z).base_dist.logits.unsqueeze(-2).expand(-1, 3, -1)
            locs, scales, weights = params["locs"].mT, params["scales"].mT, params["weights"]
            prior = (-0.5 * ((z - locs) / scales).square() - scales.log() - log_sqrt_2pi).reshape(-1, 3)
    on, off = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    pixels = torch.einsum("nd,gkd->gnk", x, on) + torch.einsum("nd,gkd->gnk", 1 - x, off)
    found = pixels + (weights.log() + prior).unsqueeze(1)
    if len(data) == 2:
        barred = (data[1].unsqueeze(-1) >= 0) & (data[1].unsqueeze(-1) != torch.arange(3))
        found = found.masked_fill(barred, -torch.inf)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_lies_below_the_evidence_by_hand(name: str) -> None:
    """Known labels count as such, unknown ones are summed out, and quadrature over the code agrees with the formula."""
    vae, data = small(name)
    result = fitted(vae, data)
    nodes = torch.linspace(-12, 12, 2401).unsqueeze(-1)
    by_hand = (log_joint(vae, result, data, nodes).logsumexp(-1) + torch.tensor(0.01).log()).logsumexp(0)
    evidence = result.evidence_by_quadrature(num_points=41)
    torch.testing.assert_close(evidence.log_likelihood, by_hand, rtol=0, atol=1e-6)
    gap = result.gap(log_evidence=evidence.log_likelihood, num_samples=100, steps=1, seed=0)
    assert gap.total > 4 * gap.elbo_stderr
    assert result.log_evidence is None


@pytest.mark.parametrize("name", NAMES)
def test_the_finite_latent_has_its_exact_posterior_given_the_code(name: str) -> None:
    """With an encoder that is sure of its code, no draw matters."""
    vae, data = small(name)
    with torch.no_grad():
        vae.encoder.log_scale.weight.zero_()
        vae.encoder.log_scale.bias.fill_(-20.0)
    result = fitted(vae, data, steps=1)
    with result.use(), torch.no_grad():
        codes = vae.encoder(data[0]).base_dist.loc
    each = log_joint(vae, result, data, codes).softmax(-1)
    expected = each[torch.arange(len(X)), torch.arange(len(X))]
    site = "y_unobserved" if len(data) == 2 else "y"
    free = LABELS < 0 if len(data) == 2 else torch.ones(len(X), dtype=torch.bool)
    assert expected[free].max() < 0.99  # something is left to be uncertain of
    torch.testing.assert_close(result.posterior()[site].probs[free], expected[free], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_in_batches_climbs(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    module = load_model(name)
    (model, guide), data = module.make(), module.simulate(num=60)
    strategy = SVI(guide, optim=adam, batch_size=30, max_epochs=15, patience=None)
    result = fit(model, *data, strategy=strategy, seed=0, progress=False)
    first, last = result.history["objective"].iloc[:4].mean(), result.history["objective"].iloc[-4:].mean()
    assert last > first + 60  # a nat for each image
    assert result.objective_kind == "elbo"


@pytest.mark.parametrize("name", NAMES)
def test_em_refuses_the_code(name: str) -> None:
    vae, data = small(name)
    with pytest.raises(ModelError, match=r"finite support\. Site 'z' is Normal"):
        fit(vae.model, *data, strategy=EM(), progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_digits(name: str) -> None:
    x, *labels = load_model(name).load()
    assert x.shape == (1797, 64) and set(x.unique().tolist()) == {0.0, 1.0}
    if labels:
        assert (labels[0] >= 0).sum() == 100 and labels[0][:10].tolist() == list(range(10))


def test_labels_name_the_classes() -> None:
    """Relabelling the known labels and the decoder's rows alike changes nothing else: the bound is the same."""
    order = torch.tensor([2, 0, 1])
    renamed = torch.where(LABELS >= 0, order[LABELS.clamp(min=0)], LABELS)
    bounds = []
    for labels, rows in ((LABELS, torch.arange(3)), (renamed, order.argsort()), (renamed, torch.arange(3))):
        vae, (x, _) = small("semi_supervised_vae")
        with torch.no_grad():
            vae.decoder.of_label.weight.copy_(vae.decoder.of_label.weight[rows])
        bounds.append(fitted(vae, (x, labels), steps=3).history["objective"].to_numpy())
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    assert bounds[0] != pytest.approx(bounds[2], rel=1e-3)
