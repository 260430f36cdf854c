"""The criterion: a projection of the student's features, a bank of the teacher's, and the loss of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import api
from ...backends.reference import accumulation_dtype
from . import arguments
from .bank import InstanceBank
from .divergence import Settings, check, reduced
from .graphs import outside_graphs


class AuxiliaryKD(nn.Module):
    """T^2 KL(t || p_S) + beta KL(p_T(i|x) || p(i|x)) with a bank of the teacher's features that fills as it trains.

    Per row, with s = softmax(student / T), t = softmax(teacher / T), h^ the projected and normalised feature of the
    student, v_i and q_i feature and softened prediction of the teacher for the instances i of the bank::

        p(i|x)   = softmax_i(<h^, v_i> / kappa)              p_T(i|x) the same with the teacher's own feature
        p_aux(y) = sum_i q_i(y) p(i|x)
        p_S      = (1 - mixture) s + mixture p_aux

    No (B x capacity) tensor exists as a whole; see `auxiliary_divergence`. Nothing of this is there at inference. Give
    ``criterion.parameters()`` to the optimizer: the projection is trained, by either term (with mixture = beta = 0 it
    has no gradient). In several processes it has to be inside the module that DistributedDataParallel wraps, or each of
    them trains its own. A cross-entropy is yours to add. Outside a checkpoint only: a second forward would push the
    batch again. Under torch.compile the graph breaks at the criterion, of which a warning tells once, with the reason;
    it cannot be exported or traced.

    Args:
        student_dim, teacher_dim: of the features, >= 1.
        num_classes: C >= 1.
        capacity: of the bank, >= 1.
        kappa: > 0, a number; 1 / kappa is the concentration of the posterior.
        mixture: in [0, 1]; 0 is ordinary distillation.
        beta: >= 0, the weight of the second term.
        temperature: T > 0, of the logits.
        projection: a module from (B, student_dim) to (B, teacher_dim); by default a linear layer without bias. Its
            input has the dtype of its parameters, whatever the features have.

    Call: ``criterion(student, teacher, student_features, teacher_features, index)``, see `forward`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above.

    Source: ours, after the abstract of Peng, Fang, Zhang, Lu, "Knowledge Distillation with Auxiliary Variable", ICML
    2024: instance membership as the auxiliary variable, whose total probability rewrites the student's prediction. Not
    the authors' code or equations.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_classes: int,
        *,
        capacity: int = 16384,
        kappa: float = 0.1,
        mixture: float = 0.5,
        beta: float = 1.0,
        temperature: float = 4.0,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        arguments.at_least_one("student_dim", student_dim)
        arguments.at_least_one("teacher_dim", teacher_dim)
        arguments.settings(Settings(kappa, mixture, beta, temperature))
        arguments.projection(projection)
        self.bank = InstanceBank(capacity, teacher_dim, num_classes)
        self.projection = nn.Linear(student_dim, teacher_dim, bias=False) if projection is None else projection
        self.student_dim = student_dim
        self.kappa, self.mixture, self.beta, self.temperature = kappa, mixture, beta, temperature

    @outside_graphs
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        student_features: Tensor,
        teacher_features: Tensor,
        index: Tensor | None,
        *,
        reduction: str = "mean",
    ) -> Tensor:
        """The loss of a batch, which in training mode enters the bank first; in evaluation mode nothing does.

        Always left out of a row are the entries of the same sample, however many there are: they hold the answer.

        Args:
            student: logits (B, C), float32, float16, bfloat16 or float64.
            teacher: logits (B, C); dtype may differ; must not require grad.
            student_features: (B, student_dim), floating point.
            teacher_features: (B, teacher_dim), floating point; must not require grad.
            index: (B,) int64, the samples' numbers in the data set; may be None in evaluation mode.
            reduction: "mean", "sum" or "none" (one value per row).

        Returns:
            0-d, or (B,) for reduction "none"; float32, float64 where the logits, the teacher's features or the
            projection's output are. Conventions are those of `auxiliary_divergence`.

        Raises:
            TypeError, ValueError: an argument breaks a rule above, or the projection's output does; the bank is as it
                was.
            RuntimeError: the bank is empty in evaluation mode (and the batch is not); torch.export or a tracer runs.
        """
        arguments.reduction(reduction)
        if self.training:
            arguments.given(index)
        rest = teacher_features, self.bank, self.settings, index
        check(student, teacher, *rest)
        device, count = self.bank.features.device, len(student)
        arguments.rows("student_features", student_features, self.student_dim, device, count)
        projected = self.project(student_features)
        if self.training:
            self.remember(teacher, teacher_features, index)
        return reduced(student, teacher, projected, *rest, reduction)

    @property
    def settings(self) -> Settings:
        return Settings(self.kappa, self.mixture, self.beta, self.temperature)

    def project(self, features: Tensor) -> Tensor:
        """The student's features (B, student_dim) among the teacher's, (B, teacher_dim), for `bank.posterior` too."""
        parameter = next(self.projection.parameters(), None)
        if parameter is not None and parameter.is_floating_point():
            features = features.to(parameter.dtype)
        projected = self.projection(features)
        arguments.projected(projected, len(features), self.bank.dim, self.bank.features.device)
        return projected

    @torch.no_grad()
    def remember(self, teacher: Tensor, teacher_features: Tensor, index: Tensor) -> None:
        """Push the teacher's features and softened predictions."""
        t = api.softmax(teacher.to(accumulation_dtype(teacher)), temperature=self.temperature)
        self.bank.push(teacher_features, t, index)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings._asdict().items())
