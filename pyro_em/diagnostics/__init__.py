"""What a fit is worth: its standard errors, its criteria, and how far its bound lies below the evidence."""

from pyro_em.diagnostics.criteria import Criteria, criteria, num_params
from pyro_em.diagnostics.evidence import Fitted
from pyro_em.diagnostics.freedom import element_labels
from pyro_em.diagnostics.information import Information, observed_information

__all__ = [
    "Criteria",
    "Fitted",
    "Information",
    "criteria",
    "element_labels",
    "num_params",
    "observed_information",
]
