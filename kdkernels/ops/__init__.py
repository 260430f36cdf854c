"""The operators behind the public functions: allocation, autograd, and the registrations that tracers see."""

from . import divergence_operator  # noqa: F401 - registers
from .divergence import divergence, total, values_and_gradient
from .geometry import trilateral
from .softmax import softmax

__all__ = ["divergence", "softmax", "total", "trilateral", "values_and_gradient"]
