"""The teacher's mean prediction of each class, Tbar in TGeo-KD, collected batch by batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, distributed, nn

from ... import api, checks
from . import arguments

_CHUNK = 1 << 22  # probabilities held at a time: 32 MiB in float64


class ClassMeans(nn.Module):
    """Tbar_c = mean of softmax(teacher logits) over the rows of class c: a (classes, classes) table, row by class.

    Usage: ``update`` for every batch of the training set, then ``table()``. The sums are buffers, so ``state_dict``
    carries them. Rounding does not grow with the number of samples: sums are float64 unless another dtype is asked for.

    Args:
        num_classes: C >= 1.
        dtype: of the sums; float32 where a device has no float64.

    Source: Tbar of the inter-sample edges in Hu et al., ICLR 2024 (arXiv 2312.15112), equations 6-10, at temperature 1.
    The uniform mean of an empty class is ours.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        arguments.at_least_one("num_classes", num_classes)
        if dtype not in checks.LOGIT_DTYPES:
            raise TypeError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}")
        self.num_classes = num_classes
        self.register_buffer("sums", torch.zeros(num_classes, num_classes, dtype=dtype))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, teacher_logits: Tensor, labels: Tensor, ignore_index: int = arguments.IGNORED) -> None:
        """Add a batch: logits (..., C) of any float dtype, int64 labels (...), both on the module's device.

        A row whose label is ``ignore_index`` is not read. Raises ValueError for a label outside [0, C), also on a GPU,
        which is waited for: nothing is added then.
        """
        arguments.classes("teacher_logits", teacher_logits, self.num_classes)
        checks.labels(labels, teacher_logits)
        if teacher_logits.device != self.sums.device:
            here = self.sums.device
            raise ValueError(f"teacher_logits must be on the module's device {here}, got {teacher_logits.device}")
        labels = labels.reshape(-1).long()
        counted = labels != ignore_index
        checks.label_range(labels, counted, self.num_classes, ignore_index)
        rows = teacher_logits.reshape(-1, self.num_classes)
        step = max(1, _CHUNK // self.num_classes)
        for part, label, keep in zip(rows.split(step), labels.split(step), counted.split(step), strict=True):
            label = label[keep]
            self.sums.index_add_(0, label, api.softmax(part[keep].to(self.sums.dtype)))
            self.counts += torch.bincount(label, minlength=self.num_classes)

    def table(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The means, (C, C) in `dtype`; row c holds Tbar_c.

        Where torch.distributed is initialised, sums and counts of all processes enter: every process has to call it,
        and each gets the same table. The module's own sums stay its own, so calling it again is right. A class
        without samples gets the uniform distribution, and a UserWarning says how many there are.
        """
        sums, counts = self.sums, self.counts
        if distributed.is_available() and distributed.is_initialized():
            sums, counts = sums.clone(), counts.clone()
            distributed.all_reduce(sums)
            distributed.all_reduce(counts)
        counts = counts.unsqueeze(-1)
        empty = counts == 0
        missing = int(empty.sum())
        if missing:
            message = f"{missing} of {self.num_classes} classes have no sample: the mean of each is uniform"
            warnings.warn(message, UserWarning, stacklevel=2)
        means = sums / counts.clamp(min=1).to(sums.dtype)
        return torch.where(empty, 1.0 / self.num_classes, means).to(dtype)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, dtype={self.sums.dtype}"


def class_means(teacher_logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """`ClassMeans` in one call: teacher logits (..., C), labels (...) to the float32 table (C, C), on their device.

    A row whose label is -100 is not read. Errors, the warning, and what several processes do are `ClassMeans`'s.
    """
    checks.logits("teacher_logits", teacher_logits)
    means = ClassMeans(num_classes).to(teacher_logits.device)
    means.update(teacher_logits, labels)
    return means.table()
