"""Models as tensors: what EM's loop runs on once the parameters' ways are known."""

from pyro_em.compiled.model import Expectation, TensorModel, tensor_model

__all__ = ["Expectation", "TensorModel", "tensor_model"]
