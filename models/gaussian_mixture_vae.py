"""A variational autoencoder whose codes come from a Gaussian mixture: the component is summed out, the code amortised.

    model   y_n ~ Categorical(weights),    z_n | y_n = k ~ Normal(locs[k], diag(scales[k])^2)
            x_{n,d} | z_n ~ Bernoulli(logits = decoder(z_n)[d])
    guide   q(z_n | x_n) = Normal(mean(x_n), diag(scale(x_n))^2),  one encoder for all n

    log p(x) >= sum_n E_q[log p(x_n | z_n) + log sum_k weights[k] p(z_n | y_n = k) - log q(z_n | x_n)]

`y` is left out of the guide and summed out given the code, so that p(y | z) is exact and every
component gets its gradient from every image. Components are exchangeable, and some may stay empty.

Source: Jiang, Zheng, Tan, Tang & Zhou (2017), *Variational Deep Embedding*;
Dilokthanakul et al. (2016), *Deep Unsupervised Clustering with Gaussian Mixture Variational
Autoencoders*. Data: scikit-learn's `load_digits`, see `data/README.md`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from models.vae import Decoder, Encoder, load

__all__ = ["GaussianMixtureVAE", "load", "make", "simulate"]


class GaussianMixtureVAE(nn.Module):
    """The two networks, and the Pyro programs `model` and `guide` that share them."""

    def __init__(
        self, num_pixels: int = 64, latent_dim: int = 5, hidden_dim: int = 200, num_components: int = 10
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_components = latent_dim, num_components
        self.encoder = Encoder(num_pixels, latent_dim, hidden_dim)
        self.decoder = Decoder(num_pixels, latent_dim, hidden_dim)

    def model(self, x: Tensor) -> Tensor:
        """Draw the images `x` (N, D), zeros and ones; return their components (N,).

        Parameters beside those of the decoder: `weights` (K,) on the simplex; `locs` (K, L), drawn
        from Normal(0, 1) at the start; `scales` (K, L), positive.
        """
        pyro.module("decoder", self.decoder)
        K, L = self.num_components, self.latent_dim
        weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
        locs = pyro.param("locs", lambda: torch.randn(K, L, dtype=x.dtype))
        scales = pyro.param("scales", x.new_ones(K, L), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(weights))
            z = pyro.sample("z", dist.Normal(locs[y], scales[y]).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)
        return y

    def guide(self, x: Tensor) -> Tensor:
        """Draw codes (N, L) for the images `x` (N, D) from the encoder's Normal."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))


def make() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The model and the guide of fresh networks; seed torch first to fix their weights."""
    vae = GaussianMixtureVAE()
    return vae.model, vae.guide


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` images drawn from networks and components fresh at `seed`, (num, 64); the global RNG is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = GaussianMixtureVAE()
        locs = torch.randn(vae.num_components, vae.latent_dim)
        y = torch.randint(vae.num_components, (num,))
        with torch.no_grad():
            return (vae.decoder(locs[y] + torch.randn(num, vae.latent_dim)).sample(),)
