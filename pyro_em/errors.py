"""What can go wrong before a fit has a number to show.

Everything here is raised for a model, an argument or a start that the engine cannot take; how a fit *ended* is a
:class:`~pyro_em.status.Status`, not an exception.
"""

__all__ = ["DecreaseError", "ModelError", "StartError"]


class ModelError(ValueError):
    """The model has a structure this strategy cannot treat exactly; the message names the site and the way out."""


class StartError(ValueError):
    """The starting values cannot be used: unknown name, wrong shape, outside or on the edge of the constraint."""


class DecreaseError(RuntimeError):
    """The objective of EM fell by more than rounding, which it never does when the model is deterministic."""
