"""The state every test starts from, so that no test depends on which ran before it."""

from collections.abc import Iterator

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """An empty param store, a fixed seed, and double precision where neither model nor Pyro names a dtype.

    Pyro scores a deterministic site by zeros of the default dtype, which its contraction then refuses to multiply with
    float64 factors ("expected scalar type Double but found Float").
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(default)
    pyro.clear_param_store()
