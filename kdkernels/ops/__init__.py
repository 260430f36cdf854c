"""The operators behind the public functions: allocation, autograd, and the registrations that tracers see."""

from . import divergence_operator  # noqa: F401 - registers
from .divergence import divergence, values_and_gradient
from .geometry import trilateral
from .shared import register_batches
from .softmax import softmax

register_batches("divergence", "divergence_gradient", "softmax", "softmax_backward")
register_batches("trilateral", "trilateral_backward")

__all__ = ["divergence", "softmax", "trilateral", "values_and_gradient"]
