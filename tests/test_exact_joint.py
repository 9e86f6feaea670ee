"""Joint posteriors of several latents equal brute-force enumeration, neighbours or not."""

import itertools

import pytest
import torch
from cases import BY_NAME, Solved, solve
from programs import PROGRAMS, Program
from torch import Tensor

every_program = pytest.mark.parametrize("program", PROGRAMS, ids=repr)


@every_program
def test_pairs(program: Program) -> None:
    """All pairs within one plate element: those that share a factor, and those that only other latents connect."""
    solved = solve(program)
    variables = solved.post.graph.variables
    for a, b in itertools.permutations(variables, 2):
        nested = set(variables[a].plates) <= set(variables[b].plates)
        if nested or set(variables[b].plates) < set(variables[a].plates):
            joint = solved.post.joint(a, b)
            assert joint.names == (a, b)
            torch.testing.assert_close(joint.probs, listed(solved, a, b), atol=1e-10, rtol=0.0)
        else:
            with pytest.raises(ValueError, match="are not nested"):
                solved.post.joint(a, b)


def listed(solved: Solved, a: str, b: str) -> Tensor:
    """p(a, b | x) by the oracle, shape (*batch shape of the deeper site, K_a, K_b)."""
    oracle = solved.oracle
    shape_a, shape_b = oracle.batch_shapes[a], oracle.batch_shapes[b]
    shape = torch.broadcast_shapes(shape_a, shape_b)
    tables = [
        oracle.pairwise(a, shared(index, shape_a), b, shared(index, shape_b))
        for index in itertools.product(*map(range, shape))
    ]
    return torch.stack(tables).reshape(*shape, *tables[0].shape)


def shared(index: tuple[int, ...], shape: torch.Size) -> tuple[int, ...]:
    """Which element of a site of this batch shape an element of a deeper site goes with."""
    own = index[len(index) - len(shape) :]
    return tuple(0 if size == 1 else i for i, size in zip(own, shape, strict=True))


@every_program
def test_a_joint_of_one_is_the_marginal(program: Program) -> None:
    post = solve(program).post
    for name, variable in post.graph.variables.items():
        joint = post.joint(name)
        torch.testing.assert_close(joint.probs, post.marginal(name), atol=1e-12, rtol=0.0)
        assert [len(support) for support in joint.supports] == [variable.size]


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("hidden_markov", ("z_0", "z_2", "z_4")),
        ("mixture_of_chains", ("z_0", "c", "z_2")),
        ("chain_of_mixtures", ("w_0", "z_1", "w_2")),
        ("coupled_chains", ("x_3", "w_0", "w_2")),
    ],
)
def test_a_joint_of_three(name: str, sites: tuple[str, str, str]) -> None:
    """Of elements that the oracle lists as whole assignments, and in any order of the names."""
    solved = solve(BY_NAME[name])
    probs = solved.post.joint(*sites).probs
    shapes = [solved.oracle.batch_shapes[s] for s in sites]
    shape = torch.broadcast_shapes(*shapes)
    assert probs.shape == (*shape, *(len(solved.oracle.supports[s]) for s in sites))
    for index in itertools.product(*map(range, shape)):
        columns = [solved.oracle.variables.index((s, shared(index, own))) for s, own in zip(sites, shapes, strict=True)]
        expected = torch.zeros(probs.shape[len(shape) :])
        expected.index_put_(solved.oracle.codes[:, columns].unbind(-1), solved.oracle.weights, accumulate=True)
        torch.testing.assert_close(probs[index], expected, atol=1e-10, rtol=0.0)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    post = solve(BY_NAME["coupled_latents"]).post
    with pytest.raises(KeyError, match=r"'z3'.*'z1', 'z2'"):
        post.joint("z1", "z3")
    with pytest.raises(KeyError, match=r"'z3'.*'z1', 'z2'"):
        post["z3"]
