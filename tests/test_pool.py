"""Distinct rows of positions are found without sorting, and are those that sorting finds."""

import pytest
import torch

from pyro_em.compiled.pool import _distinct as distinct


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("lowest", [-5, 0, 4])
@pytest.mark.parametrize("apart", [True, False])
def test_distinct_rows_are_those_of_unique(block: int, lowest: int, apart: bool) -> None:
    """Blocks of parameters differ in their first element; rows that do not are told apart too."""
    generator = torch.Generator().manual_seed(0)
    first = lowest + 2 * torch.randint(6, (50,), generator=generator)
    rest = first.unsqueeze(1) + torch.arange(block)
    rows = rest if apart else torch.cat([rest, torch.randint(2, (50, 1), generator=generator)], 1)
    values, group = distinct(rows)
    expected, of_row = rows.unique(dim=0, return_inverse=True)
    assert torch.equal(values, expected) and torch.equal(group, of_row)
    assert torch.equal(values[group], rows)
