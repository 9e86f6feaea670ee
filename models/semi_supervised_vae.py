"""A variational autoencoder for images of which a few are labelled: the label is summed out, the code amortised.

    model   y_n ~ Categorical(1/K, ..., 1/K), known or not,    z_n ~ Normal(0, I)
            x_{n,d} | y_n, z_n ~ Bernoulli(logits = decoder(y_n, z_n)[d])
    guide   q(z_n | x_n) = Normal(mean(x_n), diag(scale(x_n))^2),  one encoder for all n

    log p >= sum_n E_q[log p(x_n, y_n | z_n)] - KL(q(z_n | x_n) || p(z_n))                  y_n known
           + sum_n E_q[log sum_k p(x_n, y_n = k | z_n)] - KL(q(z_n | x_n) || p(z_n))        y_n unknown

`y` is left out of the guide: where it is unknown, its finite support is summed out, so no classifier
q(y | x) is needed and p(y | x, z) is exact. Kingma et al. have one, and a term in the objective to train it.

Source: Kingma, Rezende, Mohamed & Welling (2014), *Semi-supervised Learning with Deep Generative
Models* (model M2). Data: scikit-learn's `load_digits`, see `data/README.md`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.vae import Encoder
from models.vae import load as load_images

__all__ = ["SemiSupervisedVAE", "load", "make", "simulate"]


class Decoder(nn.Module):
    """From labels (...) and codes (..., L) to independent Bernoullis over pixels (..., D)."""

    def __init__(self, num_pixels: int, latent_dim: int, hidden_dim: int, num_classes: int) -> None:
        super().__init__()
        # A layer on z and a one-hot y side by side; as a sum it broadcasts where y is enumerated.
        self.of_code = nn.Linear(latent_dim, hidden_dim)
        self.of_label = nn.Embedding(num_classes, hidden_dim)
        self.logits = nn.Sequential(nn.Softplus(), nn.Linear(hidden_dim, num_pixels))

    def forward(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.logits(self.of_code(z) + self.of_label(y))).to_event(1)


class SemiSupervisedVAE(nn.Module):
    """The two networks, and the Pyro programs `model` and `guide` that share them."""

    def __init__(self, num_pixels: int = 64, latent_dim: int = 5, hidden_dim: int = 200, num_classes: int = 10) -> None:
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.encoder = Encoder(num_pixels, latent_dim, hidden_dim)
        self.decoder = Decoder(num_pixels, latent_dim, hidden_dim, num_classes)

    def model(self, x: Tensor, labels: Tensor) -> Tensor:
        """Draw the images `x` (N, D), zeros and ones, and `labels` (N,) in 0 ... K - 1, -1 where unknown.

        Returns all labels. Pyro splits `y` by what is known: `y_unobserved` is the site to ask a posterior for.
        """
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            classes = dist.Categorical(x.new_ones(self.num_classes))
            y = pyro.sample("y", classes, obs=labels.clamp(min=0), obs_mask=labels >= 0)
            prior = dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", self.decoder(y, z), obs=x)
        return y

    def guide(self, x: Tensor, labels: Tensor) -> Tensor:
        """Draw codes (N, L) for the images `x` (N, D) from the encoder's Normal; labels are not looked at."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))


def make() -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """The model and the guide of fresh networks; seed torch first to fix their weights."""
    vae = SemiSupervisedVAE()
    return vae.model, vae.guide


def load(num_labels: int = 100) -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8 x 8 pixels, (1797, 64), and which digit, known for the first `num_labels` only."""
    (x,) = load_images()
    from sklearn.datasets import load_digits

    labels = torch.as_tensor(load_digits().target)
    return x, labels.where(torch.arange(len(labels)) < num_labels, -1)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` images drawn from networks fresh at `seed`, (num, 64), one in four labelled; the global RNG is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = SemiSupervisedVAE()
        y = torch.randint(vae.num_classes, (num,))
        with torch.no_grad():
            x = vae.decoder(y, torch.randn(num, vae.latent_dim)).sample()
        return x, y.where(torch.rand(num) < 0.25, -1)
