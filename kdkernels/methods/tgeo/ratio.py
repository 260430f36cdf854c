"""The controller of TGeo-KD: how much of the teacher each sample gets, from the geometry of its three points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import api, checks
from ...backends import transformed
from ...distances import trilateral_distances
from . import arguments

FEATURES = ("relations", "distances")


class FusionRatio(nn.Module):
    """alpha = sigmoid(MLP(Delta)), one value in (0, 1) per row, from student logits, teacher logits and label.

    With S and P the softmax of student and teacher at temperature 1, G the one-hot label and Tbar the teacher's mean
    prediction of the label's class, the features of a row are

        "relations": Delta = [G - S, G - P, P - S, G - Tbar, Tbar - S, S, P, Tbar, G] in R^{9C}
        "distances": Delta = [||S - G||, ||P - G||, ||S - P||, ||S - Tbar||, ||Tbar - G||]_2, without class_mean the
            first three: `kdkernels.trilateral_distances`, one walk over the logits, for any vocabulary

    and the MLP is Linear(hidden) - ReLU - Linear(1). Equivalent, for "relations", to the concatenation followed by
    ``nn.Linear(9 * C, hidden)``, but Delta (rows, 9C) is never built: being linear in S, P, Tbar and G, the first layer
    folds into four blocks of C columns, of which G's is a gather and Tbar's a product of (C, C) looked up by label.

    Args:
        num_classes: C, the vocabulary of both logits.
        hidden: width of the hidden layer (paper: 128 for CIFAR-100 and ImageNet, 32 and 64 for its small tasks).
        features: "relations" or "distances".
        folded: False builds Delta, which gives the same values and gradients to rounding from the same state_dict.
        class_mean: Tbar (C, C), floating point, row by class: `class_means`. Needed for "relations". It is copied
            into a buffer, which the state_dict carries.

    Call: ``ratio(student, teacher, labels)``, see `forward`.

    Raises: TypeError, ValueError where an argument breaks a rule above.

    Source: Hu et al., ICLR 2024 (arXiv 2312.15112), equations 3 and 6-10. Folding and "distances" are ours.
    """

    class_mean: Tensor | None

    def __init__(
        self,
        num_classes: int,
        hidden: int = 128,
        features: str = "relations",
        folded: bool = True,
        class_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        arguments.at_least_one("num_classes", num_classes)
        arguments.at_least_one("hidden", hidden)
        if features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(map(repr, FEATURES))}, got {features!r}")
        if class_mean is not None:
            checks.class_mean(class_mean, class_mean, num_classes)
            class_mean = class_mean.clone()
        elif features == "relations":
            raise ValueError("class_mean must be given for features='relations' (see class_means), got None")
        self.num_classes, self.features, self.folded = num_classes, features, folded
        width = 9 * num_classes if features == "relations" else 3 if class_mean is None else 5
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, 1)
        self.register_buffer("class_mean", class_mean)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """alpha of each row of a batch.

        Args:
            student, teacher: logits (..., C), of which no gradient is taken.
            labels: int64 (...), in [0, C) or -100. A row of the latter is not read; its alpha means nothing, and adds
                nothing to a gradient that is 0 there. Another label outside [0, C) raises on a CPU and makes alpha NaN
                on a GPU or under a tracer.

        Returns:
            (...), in (0, 1), in the dtype of the parameters (autocast's under autocast).

        Raises: TypeError, ValueError where an argument breaks a rule above.
        """
        arguments.classes("student", student, self.num_classes)
        arguments.classes("teacher", teacher, self.num_classes)
        student, teacher = student.detach(), teacher.detach()
        checks.pair(student, teacher, None)
        checks.labels(labels, student)
        if self.features == "distances":
            distances = trilateral_distances(student, teacher, labels, self.class_mean)
            return self._alpha(self.first(distances.to(self.first.weight.dtype)))
        labels = labels.reshape(-1).long()
        ignored = labels == arguments.IGNORED
        checks.label_range(labels, ~ignored, self.num_classes, arguments.IGNORED)
        known = (labels >= 0) & (labels < self.num_classes)
        label = torch.where(known, labels, 0)
        S, P = (self._probabilities(logits, ignored) for logits in (student, teacher))
        alpha = self._alpha(self._folded(S, P, label) if self.folded else self._unfolded(S, P, label))
        return torch.where(known | ignored, alpha, torch.nan).view(student.shape[:-1])

    def _alpha(self, first: Tensor) -> Tensor:
        return torch.sigmoid(self.second(torch.relu(first))).squeeze(-1)

    def _probabilities(self, logits: Tensor, ignored: Tensor) -> Tensor:
        """softmax (rows, C) in the dtype of the parameters; zeros where ignored, since 0 times a NaN would be NaN."""
        rows = logits.reshape(-1, self.num_classes).to(self.first.weight.dtype)
        softmax, ignored = api.softmax(rows), ignored.unsqueeze(-1)
        # In place where that is allowed: vmap over the labels alone does not write into what it does not batch.
        return softmax.masked_fill(ignored, 0.0) if transformed() else softmax.masked_fill_(ignored, 0.0)

    def _folded(self, S: Tensor, P: Tensor, label: Tensor) -> Tensor:
        """The first layer's output (rows, hidden); each block of its weight is (hidden, C)."""
        blocks = self.first.weight.view(-1, 9, self.num_classes).unbind(1)
        g_minus_s, g_minus_p, p_minus_s, g_minus_tbar, tbar_minus_s, s, p, tbar, g = blocks
        from_s = s - g_minus_s - p_minus_s - tbar_minus_s
        from_p = p - g_minus_p + p_minus_s
        from_tbar = tbar - g_minus_tbar + tbar_minus_s
        from_g = g + g_minus_s + g_minus_p + g_minus_tbar
        means = self.class_mean.to(from_tbar.dtype)
        # Every class's product, of which rows take theirs, or every row's: whichever are fewer.
        few = label.numel() < self.num_classes
        inter = F.linear(means[label], from_tbar) if few else F.embedding(label, F.linear(means, from_tbar))
        return F.linear(S, from_s, self.first.bias) + F.linear(P, from_p) + inter + F.embedding(label, from_g.T)

    def _unfolded(self, S: Tensor, P: Tensor, label: Tensor) -> Tensor:
        G = F.one_hot(label, self.num_classes).to(S.dtype)
        T = self.class_mean.to(S.dtype)[label]
        return self.first(torch.cat([G - S, G - P, P - S, G - T, T - S, S, P, T, G], dim=-1))

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, features={self.features!r}, folded={self.folded}"
