"""What can go wrong before a fit has a number to show.

Everything here is raised for a model, an argument or a start that the engine cannot take; how a fit *ended* is a
:class:`~pyro_em.status.Status`, not an exception.
"""

__all__ = ["DecreaseError", "DegenerateError", "InformationError", "ModelError", "SaveError", "StartError"]


class ModelError(ValueError):
    """The model has a structure this strategy cannot treat exactly; the message names the site and the way out."""


class StartError(ValueError):
    """The starting values cannot be used: unknown name, wrong shape, outside or on the edge of the constraint."""


class SaveError(ValueError):
    """A file holds no fit, or one of another model; or it takes an argument more to read it."""


class InformationError(ValueError):
    """The fit has no standard errors: a parameter at the edge of its constraint, or one the data do not determine."""


class DecreaseError(RuntimeError):
    """The objective of EM fell by more than rounding, which it never does when the model is deterministic."""


class DegenerateError(RuntimeError):
    """A component of the model collapsed onto a few equal data, or ran out of data; the message names parameter,
    element and value.

    Attributes:
        param: name of the parameter.
        element: which of its elements, as an index.
        value: the value it came to.
    """

    def __init__(self, message: str, param: str, element: tuple[int, ...], value: float) -> None:
        super().__init__(message)
        self.param, self.element, self.value = param, element, value
