"""Numbers along a plan: log evidence, clique posteriors, joint samples and the joint maximum.

The gradient of log Z with respect to a factor's log-table is the posterior over that factor's clique (times its
scale), so one backward pass of autograd yields every marginal, of whatever arity. Everything is a sum of logs with the
maximum taken out per slice, in float64: Pyro's own log-ring clamps in its backward pass and loses posteriors of factors
that disagree by many nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.graph.chain import split
from pyro_em.graph.factor import Dim, Factor, FactorGraph, Plate, Variable
from pyro_em.graph.logsumexp import logsumexp
from pyro_em.graph.plan import Plan, PlateProduct, SumOut, plan_for
from pyro_em.graph.possible import refuse_impossible

__all__ = [
    "Cliques",
    "Term",
    "align",
    "at_states",
    "clique_posteriors",
    "expected_log_joint",
    "index_table",
    "log_evidence",
    "log_evidence_terms",
    "maximise",
    "sample",
    "weighted",
]


def align(table: Tensor, dims: Sequence[Dim], target: Sequence[Dim]) -> Tensor:
    """View a table over ``dims`` as one over ``target``, with singletons for the axes it lacks."""
    order = [dims.index(d) for d in target if d in dims]
    if order != list(range(len(order))):
        table = table.permute(order)
    return table.reshape([d.size if d in dims else 1 for d in target])


def _product(tables: Sequence[Tensor], plan: Plan, step: SumOut) -> Tensor:
    total: Tensor | None = None
    for i in step.inputs:
        term = align(tables[i], plan.slots[i], step.dims)
        total = term if total is None else total + term
    assert total is not None
    return total.expand([d.size for d in step.dims])


def _forward(
    graph: FactorGraph, plan: Plan, reduce: Callable[[Tensor], Tensor], keep: list[Tensor] | None = None
) -> list[Tensor]:
    """Run the plan; ``keep`` collects the table of each :class:`SumOut` before its sum, for the way back."""
    tables = list(graph.tables)
    for step in plan.steps:
        if isinstance(step, PlateProduct):
            dims = plan.slots[step.input]
            counted = weighted(graph, tables[step.input], dims, step.plates)
            tables.append(counted.sum([dims.index(p) for p in step.plates]))
        else:
            product = _product(tables, plan, step)
            if keep is not None:
                keep.append(product)
            tables.append(reduce(product))
    return tables


def weighted(graph: FactorGraph, table: Tensor, dims: Sequence[Dim], over: Sequence[Plate]) -> Tensor:
    """The table times the weights of the plates in ``over``: how often each element counts in their product."""
    for plate in over:
        if plate.name in graph.weights:
            weight = graph.weights[plate.name].to(table.dtype)
            table = table * weight.reshape([-1 if d == plate else 1 for d in dims])
    return table


@dataclass(frozen=True)
class Term:
    """A term of the log evidence: one log-density per element of ``plates``, and what multiplies it.

    Attributes:
        scaled: the table times weights and scale; its sum is this term's share of the log evidence.
    """

    plates: tuple[Plate, ...]
    table: Tensor
    scaled: Tensor


def log_evidence_terms(graph: FactorGraph, twice: bool = False) -> list[Term]:
    """The log evidence before its sum over plates; to be differentiated ``twice``, without the passes over chains."""
    chains, rest = ((), ()) if twice else split(graph)
    found = []
    for chain in chains:
        plates = chain.frames.plates
        table = chain.log_evidence(graph)
        found.append(Term(plates, table, weighted(graph, table, plates, plates) * chain.scale))
    graph = graph.only(rest) if chains else graph
    plan = plan_for(graph)
    tables = _forward(graph, plan, logsumexp)
    for t in plan.terminals:
        scaled = weighted(graph, tables[t.input], plan.slots[t.input], t.plates)
        found.append(Term(t.plates, tables[t.input], scaled if t.scale == 1.0 else scaled * t.scale))
    return found


def log_evidence(graph: FactorGraph, twice: bool = False) -> Tensor:
    """log p(x): all variables summed out, total nats, float64, differentiable once or ``twice`` in the tables."""
    terms = [term.scaled.sum() for term in log_evidence_terms(graph, twice)]
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class Cliques:
    """The E-step.

    Attributes:
        log_evidence: log p(x), nats.
        spread: root of the sum of squares of its terms, to which rounding errors are proportional.
        weights: the posterior over every factor's clique, times the factor's scale.
    """

    log_evidence: float
    spread: float
    weights: tuple[Tensor, ...]


def clique_posteriors(graph: FactorGraph) -> Cliques:
    """Exact posteriors over all cliques, aligned with ``graph.factors``: shape (*plates, *scope), one per factor.

    Each sums to its factor's scale over the scope, or to zero where the data are impossible (log p = -inf), which says
    nothing of other data. A factor without variables gets the scale itself, a scalar.
    """
    counted = bool(graph.weights)
    tables = [
        t.detach().requires_grad_(bool(f.scope) or counted) for f, t in zip(graph.factors, graph.tables, strict=True)
    ]
    hidden = [t for t in tables if t.requires_grad]
    zero = torch.zeros((), dtype=torch.float64)
    with torch.enable_grad():
        terms = [term.scaled for term in log_evidence_terms(graph.with_tables(tables))]
        total = torch.stack([zero, *(term.sum() for term in terms)]).sum()
        usable = bool(total < torch.inf)  # where a density is infinite or NaN, so is what follows from it
        found = torch.autograd.grad(total, hidden) if hidden and usable else [torch.zeros_like(t) for t in hidden]
    gradients = iter(found)
    weights = tuple(
        next(gradients) if t.requires_grad else torch.tensor(f.scale, dtype=torch.float64)
        for f, t in zip(graph.factors, tables, strict=True)
    )
    spread = sum(float(term.detach().square().sum()) for term in terms) ** 0.5
    return Cliques(float(total.detach()), spread, weights)


def expected_log_joint(graph: FactorGraph, weights: Sequence[Tensor]) -> Tensor:
    """Q: the expected log-joint of ``graph`` under clique posteriors, in nats; 0 times -inf counts as 0."""
    total = torch.zeros((), dtype=torch.float64)
    for factor, weight in zip(graph.factors, weights, strict=True):
        if weight.dim() == 0:
            total = total + weight * factor.table.sum()
        else:
            possible = weight > 0
            total = total + (weight * torch.where(possible, factor.table, 0.0)).sum()
    return total


def index_table(table: Tensor, dims: Sequence[Dim], states: dict[Variable, Tensor], samples: int) -> Tensor:
    """Fix variables of a table at known states.

    Args:
        table: log-table over ``dims``, plates first.
        states: for each variable to fix, state numbers of shape (samples, *its plates).
        samples: size of the sample axis.

    Returns:
        A table of shape (samples, *plates, *the variables not in ``states``).
    """
    plates = [d for d in dims if isinstance(d, Plate)]
    free = [d for d in dims if isinstance(d, Variable) and d not in states]
    axes: list[Dim] = [*plates, *free]
    rank = 1 + len(axes)
    index = []
    for d in dims:
        if isinstance(d, Variable) and d in states:
            index.append(_spread(states[d], d.plates, plates, len(free)))
        else:
            shape = [1] * rank
            shape[1 + axes.index(d)] = d.size
            index.append(torch.arange(d.size).reshape(shape))
    if not index:
        return table.expand(samples)
    return table[tuple(index)].expand(samples, *(d.size for d in axes))


def at_states(factors: Sequence[Factor], states: Mapping[Variable, Tensor]) -> Tensor:
    """Tables of factors over plates and scopes of the same sizes, at known states: shape (number of factors, *plates).

    Args:
        states: state numbers of shape (1, *plates of the variable).
    """
    plates = factors[0].plates
    sizes = len(factors), *(p.size for p in plates)
    index = [torch.arange(n).reshape([-1 if i == j else 1 for j in range(len(sizes))]) for i, n in enumerate(sizes)]
    for i in range(len(factors[0].scope)):
        own = [_spread(states[f.scope[i]], f.scope[i].plates, f.plates, 0)[0] for f in factors]
        index.append(torch.stack(own))
    return torch.stack([f.table for f in factors])[tuple(index)]


def _spread(states: Tensor, own: Sequence[Plate], plates: Sequence[Plate], trailing: int) -> Tensor:
    """State numbers (samples, *own plates) viewed over (samples, *plates, ``trailing`` singletons)."""
    order = [own.index(p) for p in plates if p in own]
    states = states.permute([0, *(1 + i for i in order)])
    return states.reshape(states.shape[0], *(p.size if p in own else 1 for p in plates), *[1] * trailing)


Choice = Callable[[Tensor], Tensor]


def _backward(
    plan: Plan, products: list[Tensor], choose: Choice, samples: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Assign variables in reverse order of elimination, each given those already assigned."""
    states: dict[Variable, Tensor] = {}
    log_probs: dict[str, Tensor] = {}
    steps = [step for step in plan.steps if isinstance(step, SumOut)]
    for step, product in zip(reversed(steps), reversed(products), strict=True):
        conditional = index_table(product, step.dims, states, samples)
        plates = [d for d in step.dims if isinstance(d, Plate)]
        refuse_impossible(step.variable.name, conditional[0].amax(-1), plates)
        state = choose(conditional)
        log_prob = conditional - logsumexp(conditional).unsqueeze(-1)
        states[step.variable] = state
        log_probs[step.variable.name] = log_prob.gather(-1, state.unsqueeze(-1)).squeeze(-1)
    return {v.name: s for v, s in states.items()}, log_probs


def _draw(conditional: Tensor) -> Tensor:
    noise = -torch.empty_like(conditional).exponential_().log()  # Gumbel-max: exact, and needs no normalising
    return (conditional + noise).argmax(-1)


def sample(graph: FactorGraph, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Joint draws from the exact posterior.

    Returns:
        State numbers by site, of shape (samples, *plates of the variable), and log-probabilities by site; over all
        sites these add up to the log-density of the joint draw.
    """
    chains, rest = split(graph)
    states: dict[str, Tensor] = {}
    log_probs: dict[str, Tensor] = {}
    with torch.no_grad():
        for chain in chains:
            drawn, densities = chain.sample(graph, samples)
            states, log_probs = {**states, **drawn}, {**log_probs, **densities}
        graph = graph.only(rest)
        products: list[Tensor] = []
        plan = plan_for(graph)
        _forward(graph, plan, logsumexp, keep=products)
        drawn, densities = _backward(plan, products, _draw, samples)
    return {**states, **drawn}, {**log_probs, **densities}


def maximise(graph: FactorGraph) -> dict[str, Tensor]:
    """The most probable joint assignment (Viterbi, for a chain): state numbers by site, in the variable's plates."""
    chains, rest = split(graph)
    with torch.no_grad():
        found = {name: state for chain in chains for name, state in chain.maximise(graph).items()}
        graph = graph.only(rest)
        products: list[Tensor] = []
        plan = plan_for(graph)
        _forward(graph, plan, lambda t: t.amax(-1), keep=products)
        states, _ = _backward(plan, products, lambda t: t.argmax(-1), 1)
    return {**found, **{name: state.squeeze(0) for name, state in states.items()}}
