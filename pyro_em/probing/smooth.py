"""Whether what a model computes between a parameter and an argument is the same function everywhere.

Values alone cannot tell ``scale`` from ``scale.clamp(min=1e-3)``: they agree wherever one looks. The graph of
differentiable operations can: only those that have one formula on all of their domain are let through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

__all__ = ["Trail", "trail"]

NAMES = """
    Add Sub Rsub Mul Div Neg Mm Bmm Mv Dot Addmm Addmv Addbmm Baddbmm Sum Mean Index IndexSelect Select Slice Gather
    Take TakeAlongDim View UnsafeView ReshapeAlias ViewAs Permute Transpose T AsStrided Expand Squeeze Unsqueeze Cat
    Stack Clone ToCopy Copy CopySlices CopyBackwards Diagonal DiagEmbed Diag Tril Triu Cumsum Cumprod Prod Repeat
    Alias Unbind Split SplitWithSizes Flip Roll Unfold Exp Expm1 Log Log1P Softplus Sigmoid LogSigmoid LogSigmoidForward
    Sqrt Rsqrt Pow Reciprocal Softmax LogSoftmax SafeSoftmax Logsumexp Tanh LinalgCholeskyEx Cholesky CholeskyInverse
    CholeskySolve LinalgSolveTriangular LinalgInvEx LinalgSolveEx LinalgMatrixExp LinalgSlogdet Lgamma Digamma Erf Sin
    Cos NativeLayerNorm ConstantPadNd Zeros Ones AccumulateGrad RepeatInterleave Tensordot Linear Movedim Where
    MaskedFill Meshgrid Embedding IndexPut SliceScatter SelectScatter Fill Masked Trace Outer Ger Einsum Kron
"""
SMOOTH = frozenset(NAMES.split())


@dataclass(frozen=True)
class Trail:
    """What lies behind a tensor.

    Attributes:
        params: names of the leaves it depends on, as far as gradients flow.
        kink: the first operation that is not one smooth formula, or ``None``.
    """

    params: tuple[str, ...]
    kink: str | None


def trail(tensor: Tensor, leaves: Mapping[str, Tensor], stored: Mapping[int, str] | None = None) -> Trail:
    """Follow the graph of operations back to the leaves.

    Args:
        leaves: by name.
        stored: names of other tensors that stand for a parameter, by identity.
    """
    names = {**(stored or {}), **{id(leaf): name for name, leaf in leaves.items()}}
    found, kink = {names[id(tensor)]} if id(tensor) in names else set(), None
    seen: set[Any] = set()
    queue: list[Any] = [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        operation = _operation(type(node).__name__)
        if operation == "AccumulateGrad":
            found |= {names[id(node.variable)]} if id(node.variable) in names else set()
            continue
        if operation not in SMOOTH:
            kink = kink or operation.lower()
        queue.extend(following for following, _ in node.next_functions)
    return Trail(tuple(name for name in leaves if name in found), kink)


@lru_cache(maxsize=1024)
def _operation(node: str) -> str:
    return re.sub(r"Backward\w*$", "", node)
