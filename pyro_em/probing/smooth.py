"""Whether what a model computes between a parameter and an argument is the same function everywhere.

Values alone cannot tell ``scale`` from ``scale.clamp(min=1e-3)``: they agree wherever one looks. The graph of
differentiable operations can: only those that have one formula on all of their domain are let through.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

__all__ = ["kink", "reaching"]

NAMES = """
    Add Sub Rsub Mul Div Neg Mm Bmm Mv Dot Addmm Addmv Addbmm Baddbmm Sum Mean Index IndexSelect Select Slice Gather
    Take TakeAlongDim View UnsafeView ReshapeAlias ViewAs Permute Transpose T AsStrided Expand Squeeze Unsqueeze Cat
    Stack Clone ToCopy Copy CopySlices CopyBackwards Diagonal DiagEmbed Diag Tril Triu Cumsum Cumprod Prod Repeat
    Alias Unbind Split SplitWithSizes Flip Roll Unfold Exp Expm1 Log Log1P Softplus Sigmoid LogSigmoidForward Sqrt
    Rsqrt Pow Reciprocal Softmax LogSoftmax SafeSoftmax Logsumexp Tanh LinalgCholeskyEx Cholesky CholeskyInverse
    CholeskySolve LinalgSolveTriangular LinalgInvEx LinalgSolveEx LinalgMatrixExp LinalgSlogdet Lgamma Digamma Erf Sin
    Cos NativeLayerNorm ConstantPadNd Zeros Ones AccumulateGrad RepeatInterleave Tensordot Linear Movedim Where
    MaskedFill Meshgrid Embedding IndexPut SliceScatter SelectScatter Fill Masked Trace Outer Ger Einsum Kron
"""
SMOOTH = frozenset(NAMES.split())


def kink(tensor: Tensor) -> str | None:
    """The first operation behind ``tensor`` that is not one smooth formula, or ``None``."""
    seen: set[Any] = set()
    queue = [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = re.sub(r"Backward\w*$", "", type(node).__name__)
        if name and name not in SMOOTH:
            return name.lower()
        queue.extend(following for following, _ in node.next_functions)
    return None


def reaching(tensor: Tensor, leaves: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the leaves that ``tensor`` depends on, as far as gradients flow."""
    if not tensor.requires_grad:
        return ()
    found = torch.autograd.grad(tensor.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return tuple(name for name, g in zip(leaves, found, strict=True) if g is not None)
