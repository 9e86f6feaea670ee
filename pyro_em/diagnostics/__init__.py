"""What a fit is worth: its standard errors, its criteria, and how far its bound lies below the evidence."""

from pyro_em.diagnostics.diagnosed import Diagnosed
from pyro_em.diagnostics.evidence import Fitted
from pyro_em.diagnostics.freedom import element_labels
from pyro_em.diagnostics.gap import Gap
from pyro_em.diagnostics.quadrature import Quadrature

__all__ = ["Diagnosed", "Fitted", "Gap", "Quadrature", "element_labels"]
