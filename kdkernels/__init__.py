"""kdkernels: fused knowledge-distillation losses for PyTorch. Logits go in; a loss and its gradient come out."""

from .api import distillation, divergence, log_softmax, softmax
from .backends import backends, use_backend
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

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "DistillationLoss",
    "DivergenceLoss",
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
    "softmax",
    "trilateral_distances",
    "use_backend",
]
