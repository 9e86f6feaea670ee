"""A model as a factor graph: traced, checked, and summed out exactly."""

from pyro_em.graph.barren import informed_weights
from pyro_em.graph.build import build_graph
from pyro_em.graph.chain import alike, split
from pyro_em.graph.eliminate import (
    Cliques,
    Term,
    align,
    clique_posteriors,
    expected_log_joint,
    log_evidence,
    log_evidence_terms,
    maximise,
    sample,
    weighted,
)
from pyro_em.graph.factor import Dim, Factor, FactorGraph, Layout, Plate, Variable
from pyro_em.graph.possible import refuse_impossible
from pyro_em.graph.program import Program
from pyro_em.graph.survey import Survey, survey
from pyro_em.graph.trace import Intervention

__all__ = [
    "Cliques",
    "Dim",
    "Factor",
    "FactorGraph",
    "Intervention",
    "Layout",
    "Plate",
    "Program",
    "Survey",
    "Term",
    "Variable",
    "align",
    "alike",
    "build_graph",
    "clique_posteriors",
    "expected_log_joint",
    "informed_weights",
    "log_evidence",
    "log_evidence_terms",
    "maximise",
    "refuse_impossible",
    "sample",
    "split",
    "survey",
    "weighted",
]
