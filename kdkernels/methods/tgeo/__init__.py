"""TGeo-KD: one fusion ratio alpha per sample, learnt from where student, teacher and label lie to each other.

`ClassMeans` collects the teacher's mean prediction of each class, `FusionRatio` is the controller that turns a row
into its alpha, and `BilevelStep` trains the controller beside the student by the gradient of a validation loss
through one step of the student, which `hypergradient` computes.

Source: Hu, Wu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation",
ICLR 2024 (arXiv 2312.15112). The paper gives the loss and the features; the algorithm that trains the controller is
ours, and each docstring says which is which.
"""

from .bilevel import BilevelStep
from .class_mean import ClassMeans, class_means
from .ratio import FusionRatio
from .unroll import hypergradient

__all__ = ["BilevelStep", "ClassMeans", "FusionRatio", "class_means", "hypergradient"]
