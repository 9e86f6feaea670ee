"""A variational autoencoder for binary images, with an amortised guide.

    model   z_n ~ Normal(0, I),    x_{n,d} | z_n ~ Bernoulli(logits = decoder(z_n)[d])
    guide   q(z_n | x_n) = Normal(mean(x_n), diag(scale(x_n))^2),  one encoder for all n

    log p(x) >= sum_n E_q[log p(x_n | z_n)] - KL(q(z_n | x_n) || p(z_n))

`z` is continuous and cannot be summed out: EM does not apply, the guide stands in for its E-step.
Both networks have one hidden layer, N images of D pixels and codes of size L.

Source: Kingma & Welling (2014), *Auto-Encoding Variational Bayes*.
Data: scikit-learn's `load_digits`, see `data/README.md`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["VAE", "load", "make", "simulate"]


class Encoder(nn.Module):
    """From images (N, D) to a diagonal Normal over codes (N, L)."""

    def __init__(self, num_pixels: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(num_pixels, hidden_dim), nn.Softplus())
        self.loc = nn.Linear(hidden_dim, latent_dim)
        self.log_scale = nn.Linear(hidden_dim, latent_dim)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        hidden = self.hidden(x)
        return dist.Normal(self.loc(hidden), self.log_scale(hidden).exp()).to_event(1)


class Decoder(nn.Module):
    """From codes (N, L) to independent Bernoullis over pixels (N, D)."""

    def __init__(self, num_pixels: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, num_pixels))

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.logits(z)).to_event(1)


class VAE(nn.Module):
    """The two networks, and the Pyro programs `model` and `guide` that share them."""

    def __init__(self, num_pixels: int = 64, latent_dim: int = 10, hidden_dim: int = 200) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = Encoder(num_pixels, latent_dim, hidden_dim)
        self.decoder = Decoder(num_pixels, latent_dim, hidden_dim)

    def model(self, x: Tensor) -> Tensor:
        """Draw the images `x` (N, D), zeros and ones; return their codes (N, L)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)
        return z

    def guide(self, x: Tensor) -> Tensor:
        """Draw codes (N, L) for the images `x` (N, D) from the encoder's Normal."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))


def make() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The model and the guide of fresh networks; seed torch first to fix their weights."""
    vae = VAE()
    return vae.model, vae.guide


def load() -> tuple[Tensor]:
    """Handwritten digits of 8 x 8 pixels, ink at half or more counts as one, (1797, 64)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "models.vae.load() reads scikit-learn's digits: pip install scikit-learn"
        raise ImportError(message) from error
    pixels = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    return ((pixels >= 0.5).float(),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` images drawn from networks fresh at `seed`, (num, 64); the global RNG is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE()
        with torch.no_grad():
            return (vae.decoder(torch.randn(num, vae.latent_dim)).sample(),)
