"""Supervision complexity: how hard a student finds the targets that it is given, by its empirical tangent kernel.

    gram = complexity.empirical_ntk(student, images)                       # K = J J^T at the present weights
    targets = complexity.residual(student(images), teacher(images), temperature=4.0)
    value, jitter, condition = complexity.supervision_complexity(gram, targets)

Source: Harutyunyan et al., "Supervision Complexity and its Role in Knowledge Distillation", ICLR 2023
(arXiv 2301.12245). Its definitions are given as recalled: the paper's text was not at hand. How the kernel is walked,
jittered and factorised is ours, and each docstring says which is which.
"""

from .gram import Complexity, kernel_alignment, ntk_similarity, supervision_complexity
from .ntk import empirical_ntk
from .residual import residual

__all__ = [
    "Complexity",
    "empirical_ntk",
    "kernel_alignment",
    "ntk_similarity",
    "residual",
    "supervision_complexity",
]
