"""How a fit ended: an enum whose members are sentences a person can act on."""

from enum import Enum

__all__ = ["Status"]


class Status(Enum):
    """The outcome of a fit.

    Only :attr:`CONVERGED` and :attr:`PLATEAU` mean that the stopping rule was met; hitting a cap or meeting a
    non-finite value is never called convergence.
    """

    RUNNING = "The fit is still running."
    CONVERGED = "The estimated remaining gain fell below `tol`."
    PLATEAU = "The smoothed objective stopped improving for `patience` steps."
    MAX_STEPS = "The cap on steps or epochs was reached before the stopping rule was met; raise it, or warm-start."
    STALLED = (
        "The M-step could not raise its objective though the gradient is not zero; "
        "give it another optimiser, more steps, or float64 data."
    )
    DECREASED = (
        "The objective fell and the step was reverted; the model is probably not deterministic, or float32 is too "
        "coarse for this data: use float64."
    )
    NON_FINITE = (
        "The objective or its gradient became infinite or NaN and the last good parameters were kept; "
        "look for a collapsing scale, a prior of unbounded density (a concentration below 1) or data on the edge of a "
        "Gamma or Beta, or lower the learning rate."
    )
    ROUNDING = (
        "Gains fell below what the arithmetic can resolve before they fell below `tol`; "
        "use float64 data, or a larger `tol`."
    )
    STOPPED = "A callback asked the fit to stop."

    @property
    def converged(self) -> bool:
        """Whether the stopping rule of the strategy was met."""
        return self in (Status.CONVERGED, Status.PLATEAU)

    def __str__(self) -> str:
        return self.value
