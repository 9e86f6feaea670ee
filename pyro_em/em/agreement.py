"""Whether a compiled model still says what the program says.

Probing looks at a few points, and a program may do otherwise at others in ways that leave no trace. So the two are
compared at the start, and where the fit wants to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyro
import torch
from torch import Tensor

from pyro_em.compiled import TensorModel
from pyro_em.compiled.plan import Plan, make_plan
from pyro_em.em.batched import BatchedModel
from pyro_em.em.checks import Prepared
from pyro_em.graph import FactorGraph, Intervention, log_evidence_terms
from pyro_em.params import ParamSpace
from pyro_em.probing import Probed, explains, probe
from pyro_em.rng import aside

__all__ = ["Agreement"]


@dataclass(frozen=True)
class Agreement:
    """Compares log evidences on the first rows of large data, on all of small data.

    Attributes:
        prepared: the checked model.
        space: its parameters.
    """

    prepared: Prepared
    space: ParamSpace

    @cached_property
    def probed(self) -> Probed:
        """What probing finds on the first rows; to be asked for at the start.

        Raises:
            ModelError: the model does not run at other parameter values.
        """
        program, head, found = self.prepared.inference.program, self.prepared.head, self.prepared.found
        return probe(program, self.space, *head, Intervention(), found=found)

    @cached_property
    def _plan(self) -> Plan:
        """The first rows as tensors."""
        return make_plan(self.probed, {}, False, ())

    def holds(self, theta: Tensor, model: TensorModel, graph: FactorGraph | None = None) -> bool:
        """Whether both agree at theta, which must be in place in the program.

        Args:
            model: of all data, where these are few; of large data, that of the first rows is taken, as probing at the
                start has it, and each argument of their distributions is compared too.
            graph: of the program at theta, on the rows that are compared; ``None`` runs it.
        """
        with aside():
            return self._holds(theta, model, graph)

    def _holds(self, theta: Tensor, model: TensorModel, graph: FactorGraph | None) -> bool:
        inference, (args, kwargs) = self.prepared.inference, self.prepared.head
        whole = self.prepared.head is self.prepared.data
        weights: Mapping[str, Tensor] = self.prepared.weights if whole else {}
        look = self.prepared.intervention if whole else Intervention()
        with torch.no_grad(), pyro.validation_enabled(False):
            if not whole and graph is None and not self._is_explained():
                return False
            graph = inference.graph(args, kwargs, look) if graph is None else graph
        if not whole:
            if not self._plan.is_complete:
                return False
            model = self._plan.model
        return self._is_same(theta, model, graph.counted(weights))

    def holds_in_batches(self, theta: Tensor, batches: BatchedModel) -> bool:
        """Whether both agree at theta, which must be in place in the program, on every batch."""
        with aside(), pyro.validation_enabled(False):
            for share in batches.stream:
                with torch.no_grad():
                    graph = share.graph()
                if not self._is_same(theta, batches.of(share), graph):
                    return False
        return True

    def _is_same(self, theta: Tensor, model: TensorModel, graph: FactorGraph) -> bool:
        """Whether log evidences are the same, but for rounding."""
        with torch.no_grad():
            terms = [t.scaled for t in log_evidence_terms(graph)]
        traced, spread = float(sum(t.sum() for t in terms)), float(sum(t.square().sum() for t in terms)) ** 0.5
        found = model.expect(theta)
        compiled = found.log_evidence
        cancelled = 64 * torch.finfo(model.dtype).eps * found.magnitude
        kinds = {model.dtype, *(v.dtype for v in self.space.values().values())}
        tolerance = 1e-3 if torch.float32 in kinds else 1e-6
        return compiled == traced or abs(compiled - traced) <= tolerance * (1 + spread + 1e-3 * abs(traced)) + cancelled

    def _is_explained(self) -> bool:
        """Whether the arguments of all distributions in the first rows are what probing would have them be."""
        return explains(self.probed, self.prepared.inference.program, self.space, *self.prepared.head, Intervention())
