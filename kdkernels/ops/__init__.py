"""The operators behind the public functions: allocation, autograd, and the registrations that tracers see."""

from .divergence import Call, Scalars, divergence, values_and_gradient
from .geometry import Edges, trilateral
from .softmax import softmax

__all__ = ["Call", "Edges", "Scalars", "divergence", "softmax", "trilateral", "values_and_gradient"]
