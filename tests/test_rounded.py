"""What an optimiser is shown of a function and its gradient: the digits that do not depend on the order of a sum."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pyro_em.em.climb import climb
from pyro_em.em.rounded import GAIN, LOSS, SLOPE, Rounded, to_bits
from pyro_em.optim import Optimizer, OptimizerSpec, climbing

f64 = partial(torch.tensor, dtype=torch.float64)
Shown = tuple[float, Tensor]


def banana(x: Tensor) -> Tensor:
    """Rosenbrock's function in ten dimensions; its minimum is 0, at ones."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


class Noisy:
    """A function far from zero, with errors in its last digits that are others in each evaluation.

    Args:
        loss: the function.
        noise: standard deviation of the errors, in the function and in its derivatives.
        seed: of the errors.
    """

    def __init__(self, loss: Callable[[Tensor], Tensor], x: Tensor, noise: float, seed: int) -> None:
        self.loss, self.x, self.noise = loss, x, noise
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        error, slopes = (self.noise * torch.randn(n, generator=self.generator) for n in (1, len(self.x)))
        return -(self.loss(self.x) + 1e3 + error.sum() + slopes @ (self.x - self.x.detach()))


def path(seed: int, spec: OptimizerSpec, noise: float = 1e-12) -> Tensor:
    """Where a climb ends."""
    x = torch.linspace(-1.0, 1.5, 10).requires_grad_(True)
    climb(Noisy(banana, x, noise, seed), Optimizer(spec, {"x": x}), 1)
    return x.detach()


def show(shown: Rounded, leaf: Tensor, at: Tensor, loss: float, slopes: Tensor) -> Shown:
    leaf.data.copy_(at)
    leaf.grad = slopes.clone()
    return float(shown(f64(loss))), leaf.grad


@pytest.mark.parametrize("steps", [5, 20, 60])
def test_errors_in_the_last_digits_are_not_seen(steps: int) -> None:
    spec = partial(climbing, max_iter=steps)
    ends = [path(seed, spec) for seed in range(4)]
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_without_rounding_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_em.em.climb.Rounded", lambda leaves: Tensor.detach)
    ends = [path(seed, partial(climbing, max_iter=60)) for seed in range(2)]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-9


def test_the_minimum_is_reached() -> None:
    """From far away, too, as digits are counted anew on the way; what is left is nothing beside a loss of 1000."""
    spec = partial(climbing, max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)
    torch.testing.assert_close(path(0, spec, noise=0.0), torch.ones(10), rtol=0, atol=1e-6)
    x = torch.full((10,), 30.0).requires_grad_(True)
    climb(Noisy(banana, x, 0.0, 0), Optimizer(spec, {"x": x}), 1)
    assert float(banana(x.detach())) < 1e3 * 2.0**-LOSS


def test_gains_keep_their_digits_far_below_those_of_the_loss() -> None:
    """A gain of a millionth in a loss of a billion."""
    leaf = f64([0.0]).requires_grad_(True)
    shown, promised = Rounded([leaf]), 2e-6
    first, _ = show(shown, leaf, f64([0.0]), 1e9, f64([-promised]))
    second, _ = show(shown, leaf, f64([1.0]), 1e9 - 1e-6, f64([0.0]))
    third, _ = show(shown, leaf, f64([0.5]), 1e9 - 2e-6, f64([1e-7]))
    assert first == 0.0
    assert second == pytest.approx(-1e-6, abs=2e-7 + promised * 2**-GAIN)  # 1e9 itself has no more digits
    assert third < second


def test_gains_are_counted_from_the_best_point() -> None:
    """A trial point that is far off, and far down on the wrong side, leaves no trace."""
    leaf = f64([0.0]).requires_grad_(True)
    shown = Rounded([leaf])
    losses = [(0.0, 10.0, -3.0), (1e3, 1e9, 1e8), (1.0, 8.5, -0.1), (1.1, 8.49, 0.0)]
    found = [show(shown, leaf, f64([x]), loss, f64([slope]))[0] for x, loss, slope in losses]
    wanted = [loss - 10.0 for _, loss, _ in losses]
    assert found == pytest.approx(wanted, rel=5e-3)
    assert found[3] - found[2] == pytest.approx(-0.01, abs=0.1 * 0.1 * 2**-GAIN)


def test_a_loss_beyond_all_slopes() -> None:
    leaf = f64([0.0]).requires_grad_(True)
    shown = Rounded([leaf])
    show(shown, leaf, f64([0.0]), 1.0, f64([-1.0]))
    assert show(shown, leaf, f64([1e200]), 1e300, f64([1e200]))[0] == 1e300
    assert show(shown, leaf, f64([1.0]), 0.5, f64([0.0]))[0] == -0.5


def test_slopes_have_digits_from_the_first_on() -> None:
    leaf = f64([0.0, 0.0, 0.0]).requires_grad_(True)
    shown, first, second = Rounded([leaf]), f64([1 / 3, 100 / 3, 0.0]), f64([1e-3, -1e9 / 7, 1e-9 / 3])
    _, seen = show(shown, leaf, torch.zeros(3), 1.0, first)
    assert bool(((seen - first).abs() <= first * 2.0**-SLOPE).all())
    _, seen = show(shown, leaf, torch.ones(3), 2.0, second)
    largest = torch.maximum(first, second.abs())
    assert bool(((seen - second).abs() <= largest * 2.0**-SLOPE).all())
    assert not torch.equal(seen, second)


def test_slopes_that_are_not_numbers_stay() -> None:
    """Losses beside them are shown from the same zero as all others."""
    leaf, nowhere = f64([0.0]).requires_grad_(True), f64([float("nan")])
    shown = Rounded([leaf])
    assert show(shown, leaf, f64([0.0]), 5.0, nowhere)[0] == 5.0
    assert show(shown, leaf, f64([0.0]), 5.0, f64([1.0]))[0] == 0.0
    loss, slopes = show(shown, leaf, f64([-1.0]), 4.2, nowhere)
    assert loss == pytest.approx(-0.8, abs=1e-14) and bool(slopes.isnan())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beyond", [float("nan"), float("inf"), ValueError])
def test_a_step_beyond_the_support_is_halved(beyond: float | type[ValueError], dtype: torch.dtype) -> None:
    x = torch.tensor([0.1], dtype=dtype, requires_grad=True)

    def q() -> Tensor:
        if float(x.detach()) < 1.0:
            return -((x - 0.9) ** 2).sum() * 20
        if isinstance(beyond, float):
            return x.sum() * beyond
        raise ValueError

    climb(q, Optimizer(partial(climbing, max_iter=50), {"x": x}), 1)
    assert x.item() == pytest.approx(0.9, abs=1e-4)


def test_a_leaf_without_a_gradient() -> None:
    moved, still = f64([1.0]).requires_grad_(True), f64([2.0]).requires_grad_(True)
    moved.grad = f64([1 / 3])
    assert float(Rounded([still, moved])(f64(4.0))) == 0.0
    assert still.grad is None and float(moved.grad) == pytest.approx(1 / 3, abs=2.0**-SLOPE)


def test_a_sparse_gradient() -> None:
    table = torch.zeros(4, 2).requires_grad_(True)
    torch.nn.functional.embedding(torch.tensor([1, 3]), table, sparse=True).div(3).sum().backward()
    Rounded([table])(f64(1.0))
    thirds = f64([0.0, 1 / 3, 0.0, 1 / 3]).unsqueeze(-1).expand(4, 2)
    torch.testing.assert_close(table.grad, thirds, rtol=2**-SLOPE, atol=0)


@pytest.mark.parametrize(
    ("spec", "dtype"), [(partial(torch.optim.SGD, lr=1.0), torch.float64), (climbing, torch.float32)], ids=["SGD", "32"]
)
def test_other_optimisers_and_dtypes_see_all_digits(spec: OptimizerSpec, dtype: torch.dtype) -> None:
    leaf, seen = torch.tensor([0.1], dtype=dtype).requires_grad_(True), list[Shown]()

    class Spy(Optimizer):
        def step(self, closure: Callable[[], Tensor] | None = None) -> None:
            assert closure is not None
            seen.append((float(closure()), leaf.grad.clone()))

    climb(lambda: -(leaf / 3 + 5.0).sum(), Spy(spec, {"": leaf}), 1)
    assert seen[0][0] == float((leaf.detach() / 3 + 5.0).sum())
    assert torch.equal(seen[0][1], torch.ones(1, dtype=dtype) / 3)


def test_rounding_to_bits() -> None:
    values, sizes = f64([1 / 3, -10 / 3, 5e-324, 0.7, 5e-324]), f64([1.0, 10 / 3, 1.0, 0.0, 5e-324])
    found = to_bits(values, sizes, 8)
    assert found.tolist() == [85 / 256, -213 / 64, 0.0, 0.7, 5e-324]
