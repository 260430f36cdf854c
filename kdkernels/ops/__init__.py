"""The operators behind the public functions: allocation, autograd, and the registrations that tracers see."""

from .divergence import divergence
from .softmax import softmax

__all__ = ["divergence", "softmax"]
