"""The gradients that a plain chain is read off directly, against those of the general assembly by autograd."""

import pytest
import torch
from torch import tensor

from pyro_em.graph.factor import Plate, Variable
from pyro_em.graph.frames import Frames
from pyro_em.graph.line import line_of
from pyro_em.graph.wiring import Place, wire

ROWS, FRAMES, STATES = 3, 6, 2
WITHIN, ACROSS, BACK = ((1, 0),), ((2, 0), (1, 0)), ((1, 0), (2, 0))
EVERY, LATER = torch.arange(FRAMES), torch.arange(1, FRAMES)
FIRST, SOME = tensor([0]), tensor([1, 4])

# Each potential: its frames, its axes, whether all rows share it, whether all frames do.
CASES = {
    "plain": [(FIRST, WITHIN, True, True), (EVERY, WITHIN, False, False), (LATER, ACROSS, True, True)],
    "own transition of each row": [(EVERY, WITHIN, False, False), (LATER, ACROSS, False, True)],
    "own transition of each step": [(EVERY, WITHIN, True, False), (LATER, ACROSS, True, False)],
    "of both": [(EVERY, WITHIN, True, True), (LATER, ACROSS, False, False)],
    "backwards": [(EVERY, WITHIN, False, False), (LATER, BACK, True, True), (LATER, BACK, True, False)],
    "at some frames": [(SOME, WITHIN, False, False), (FIRST, WITHIN, False, True), (LATER, ACROSS, True, True)],
    "two kinds of step": [
        (EVERY, WITHIN, False, False),
        (LATER[:2], ACROSS, True, True),
        (LATER[2:], BACK, False, True),
    ],
}


def frames(sizes=(STATES,) * FRAMES):
    plates = (Plate("rows", ROWS),)
    return Frames(plates, (), tuple((Variable(f"z_{t}", size, plates),) for t, size in enumerate(sizes)))


def case(name):
    generator = torch.Generator().manual_seed(0)
    places, potentials = [], []
    for at, axes, rows_alike, frames_alike in CASES[name]:
        shape = 1 if rows_alike else ROWS, 1 if frames_alike else len(at), *[STATES] * len(axes)
        potentials.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        places.append(Place(axes, at, frames_alike))
    return wire(frames(), places), potentials


@pytest.mark.parametrize("lengths", [None, tensor([6, 3, 1])], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", CASES)
def test_a_line_says_what_the_assembly_says(name, lengths):
    wiring, potentials = case(name)
    weights = tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    line = line_of(wiring)
    assert line is not None
    rows, found = line.smooth(potentials, weights, lengths)
    expected, gradients = wiring.smooth(potentials, weights, lengths)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=0)
    for own, gradient, potential in zip(found, gradients, potentials, strict=True):
        assert own.shape == potential.shape
        torch.testing.assert_close(own, gradient, rtol=1e-12, atol=1e-14)


def test_potentials_are_left_as_they_were():
    wiring, potentials = case("at some frames")
    before = [p.clone() for p in potentials]
    line_of(wiring).smooth(potentials, torch.ones(ROWS, dtype=torch.float64), None)
    assert all(torch.equal(p, q) for p, q in zip(potentials, before, strict=True))


def test_chains_with_frames_of_two_sizes_are_no_lines():
    places = [Place(ACROSS, LATER, False)]
    assert line_of(wire(frames((STATES,) * (FRAMES - 1) + (STATES + 1,)), places)) is None


def test_impossible_chains_have_no_gradients():
    wiring, potentials = case("plain")
    potentials[0] = torch.full_like(potentials[0], -torch.inf)
    for way in (wiring, line_of(wiring)):
        rows, found = way.smooth(potentials, torch.ones(ROWS, dtype=torch.float64), None)
        assert bool((rows == -torch.inf).all()) and not found
