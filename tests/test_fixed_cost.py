"""What a fit costs but for its iterations: no heavy imports, and nothing done twice that once would settle."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("sympy", "torch._dynamo")
PROGRAM = """
import sys
import pyro, torch, pyro.distributions as dist
from torch.distributions import constraints
from pyro_em import EM, fit

def model(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    shape = pyro.param("shape", torch.tensor([1.0, 2.0]), constraint=constraints.greater_than(0.5))
    noise = pyro.param("noise", torch.tensor(2.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], noise), obs=x)
        pyro.sample("y", dist.Gamma(shape[z], 1.0), obs=x.exp())

torch.manual_seed(0)
x = torch.randn(500, dtype=torch.float64)
before = set(sys.modules)
assert fit(model, x, strategy=EM(), progress=False).converged
print(*set(sys.modules) - before)
"""


def test_a_fit_imports_neither_sympy_nor_the_compiler_of_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found = set(done.stdout.split())
    assert found and not found.intersection(HEAVY)
