"""kdkernels: fused knowledge-distillation losses for PyTorch. Logits go in; a loss and its gradient come out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .api import distillation, divergence, log_softmax, softmax
from .backends import FallbackWarning, backends, use_backend
from .distances import trilateral_distances
from .losses import (
    LOSSES,
    ForwardKL,
    JensenShannon,
    Loss,
    Perturbed,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from .modules import DistillationLoss, DivergenceLoss

if TYPE_CHECKING:
    from . import methods

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "DistillationLoss",
    "DivergenceLoss",
    "FallbackWarning",
    "ForwardKL",
    "JensenShannon",
    "Loss",
    "Perturbed",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "TotalVariation",
    "__version__",
    "backends",
    "distillation",
    "divergence",
    "log_softmax",
    "methods",
    "softmax",
    "trilateral_distances",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "methods":  # imported when it is first asked for
        return importlib.import_module(".methods", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
