"""The operators behind the public functions: allocation, autograd, and the registrations that tracers see."""

from .divergence import Call, Scalars, divergence
from .softmax import softmax

__all__ = ["Call", "Scalars", "divergence", "softmax"]
