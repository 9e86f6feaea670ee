"""The one contract between the loop in :func:`pyro_em.fit` and the strategies it runs.

A strategy is a frozen object that holds hyperparameters only. What a run needs from one step to the next is its
*state*; what a person wants to see of a step is its *info*; what the fitted model knows of its latents is its
*inference*. Keeping them apart lets one strategy object serve many fits, and one loop serve all strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from pyro_em.status import Status

if TYPE_CHECKING:
    from pyro_em.problem import Problem

__all__ = ["EXPLAINED", "Evaluation", "Inference", "ObjectiveKind", "State", "StepInfo", "Strategy"]

# The columns of FitResult.explain, and the keys of each of its rows.
EXPLAINED = ("parameter", "site", "argument", "family", "verdict", "link", "owner", "reason")

ObjectiveKind = Literal["log_evidence", "log_joint", "elbo"]


@dataclass(frozen=True)
class StepInfo:
    """What one step did, as a person wants to read it.

    Attributes:
        step: number of completed steps; 0 is the evaluation of the start.
        objective: total nats at the parameters *after* this step (SVI: an unbiased estimate *before* it).
        seconds: wall time since the fit began.
        restart: which start this step belongs to.
    """

    step: int
    objective: float
    seconds: float = 0.0
    restart: int = 0


@dataclass(frozen=True)
class Evaluation:
    """The fit's final numbers, all at the parameters that are returned.

    Attributes:
        objective: total nats.
        kind: what the objective is.
        log_evidence: exact log p(x; params), or ``None`` where the latents cannot be summed out exactly.
        status: how the fit ended, where the evaluation itself found out.
    """

    objective: float
    kind: ObjectiveKind
    log_evidence: float | None
    status: Status | None = None


class Inference(Protocol):
    """What a strategy can say of the latents; its methods run the model, so the fit's parameters must be in place.

    Attributes:
        fixed: names of parameters that stayed as they started.
        weights: by plate, how often each of the training data counted.
        guided: whether a guide stands in for the posterior of some latents; else the posterior is exact.
        guide: it, where there is one.
    """

    @property
    def fixed(self) -> tuple[str, ...]: ...

    @property
    def weights(self) -> Mapping[str, Tensor]: ...

    @property
    def guided(self) -> bool: ...

    @property
    def guide(self) -> Any: ...

    def posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The posterior over the latents given the model's arguments."""
        ...

    def graph(self, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Any) -> Any:
        """The model as a factor graph, differentiable in the parameters in place.

        Latents that the intervention gives, and the point-estimated ones, are held; finite ones are enumerated.

        Raises:
            ModelError: a latent is none of these.
        """
        ...

    def latents(self) -> dict[str, Tensor]:
        """Values of the point-estimated latents, by site."""
        ...

    def shared(self, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int) -> dict[str, Tensor]:
        """Draws of what the fit knows of latents that all data share, for arguments that hold no observation."""
        ...

    def explain(self) -> list[dict[str, str]]:
        """For each parameter and argument it reaches, who moves it and why: the rows of ``FitResult.explain``."""
        ...

    def sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sample every latent by ``pyro.sample``, as a guide does."""
        ...


class State(Protocol):
    """What the next step needs; the loop reads only this much of it."""

    @property
    def status(self) -> Status:
        """``RUNNING`` until a stopping rule speaks."""
        ...

    @property
    def objective(self) -> float | None:
        """The objective at the parameters in place, where the strategy knows it without :meth:`Strategy.evaluate`."""
        ...

    @property
    def inference(self) -> Inference:
        """What the fitted model will answer for."""
        ...


class Strategy(Protocol):
    """Anything that can climb the objective of a :class:`~pyro_em.problem.Problem`."""

    @property
    def max_steps(self) -> int | None:
        """The cap on steps; ``None`` for none."""
        ...

    def init(self, problem: Problem) -> Any:
        """Check the model and evaluate the start."""
        ...

    def step(self, problem: Problem, state: Any) -> tuple[Any, StepInfo]:
        """Make one step."""
        ...

    def evaluate(self, problem: Problem, state: Any) -> Evaluation:
        """The final numbers at the parameters in place."""
        ...
