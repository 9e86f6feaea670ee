"""A mixture of experts behind a network: the gate bends as it likes, the experts stay regressions.

    z_n            ~ Categorical(softmax(network(covariates_n)))                  n = 1 ... N
    y_n | z_n = k  ~ Poisson(exp(sum_p design_{n,p} coefs[k, p]))

    network(u) = A tanh(B u + b) + a,  with H hidden units

The experts have an M-step of their own; only the network needs the gradient, in the same iteration.
With a few hidden units the gate can follow 70 firms closely, so the likelihood is no guide to H.

Source: Jacobs, Jordan, Nowlan & Hinton (1991), Neural Computation 3, 79-87; Bishop & Svensén (2003),
UAI 19, 57-64. Data: as `mixture_of_experts`.
"""

from collections.abc import Callable

import pyro
from torch import Tensor, nn

from models.mixture_of_experts import experts, load, simulate

__all__ = ["NeuralExperts", "load", "make", "simulate"]


class NeuralExperts(nn.Module):
    """The gate's network, and the Pyro program `model` that uses it."""

    def __init__(self, num_covariates: int = 2, hidden_dim: int = 4, num_components: int = 3) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(num_covariates, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, num_components)
        ).double()

    def model(self, y: Tensor, design: Tensor, covariates: Tensor) -> Tensor:
        """Draw counts `y` (N,) given `design` (N, P) and `covariates` (N, Q); return components (N,).

        Parameters: those of the network, under `gate`; `coefs` (K, P).
        """
        gate = pyro.module("gate", self.gate)
        return experts(y, design, gate(covariates))


def make() -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], None]:
    """The model of a fresh network, and no guide; seed torch first to fix the network's weights."""
    return NeuralExperts().model, None
