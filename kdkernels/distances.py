"""The trilateral distances between a student, a teacher and the label, which TGeo-KD reads its fusion ratio from."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, ops
from .backends import reference, resolve
from .backends.calls import Trilateral
from .sharded import on_shards


def trilateral_distances(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    class_mean: Tensor | None = None,
    squared: bool = False,
    *,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Euclidean distances between S = softmax(student), P = softmax(teacher) and the one-hot label G, per row.

    (|S - G|, |P - G|, |S - P|), and with a class mean M = class_mean[label] also (|S - M|, |M - G|).
    Equivalent to::

        S, P, G = student.softmax(-1), teacher.softmax(-1), F.one_hot(labels, C)
        torch.stack([(S - G).norm(dim=-1), (P - G).norm(dim=-1), (S - P).norm(dim=-1)], -1)

    but no (rows x vocab) tensor is stored in forward (one walk, ten numbers a row are kept), and backward is one walk
    for any upstream gradient; the class mean is read inside, never gathered to (rows, C). The kernels (not the
    reference) sum 1 - S_y from the other classes, so that a confident student's distance does not drown in rounding.

    Args:
        student: logits (..., C), float32, float16, bfloat16 or float64. Rows may be strided. Probabilities are not
            logits; log-probabilities may serve as them. (N, C, H, W) is softmaxed over W: move the classes to the end.
        teacher: logits of the same shape; dtype may differ; must not require grad.
        labels: int64 (...), in [0, C) or ``ignore_index``. A row that is ignored is not read: its distances and its
            gradient are 0. On a CPU a label outside raises; on a GPU, or under a tracer, its row becomes NaN.
        class_mean: (C, C), floating point, row c the teacher's mean probabilities over the samples of class c
            (`kdkernels.methods.tgeo.class_means`); must not require grad.
        squared: return the squares, whose gradient has no root.
        vocab_size: only the first entries of both vocabularies enter, C of them then; the gradient of the others is 0.
        backend: "auto", or one of ``kd.backends()``; one that was named and cannot run raises.

    Returns:
        (..., 3) or (..., 5), float32 (float64 where a logit tensor is). The gradient flows to the student only, in its
        dtype; where a distance is 0 (below 1e-18 in float32, where its square has underflowed) it is the zero
        subgradient, as for `torch.linalg.vector_norm`.

    Conventions: temperature 1; a NaN among a row's logits makes the distances that it enters, and the gradient, NaN.
    Double backward raises (the reference backend has one).

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has been computed or written.
        RuntimeError: the backend that was named cannot run; a second derivative was asked for.

    Source: Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024
    (arXiv 2312.15112), equations 6-10, where the edges are difference vectors; their lengths in one walk are ours.
    """
    if checks.distributed(student):
        return on_shards(trilateral_distances, locals())
    vocab = checks.pair(student, teacher, vocab_size)
    checks.labels(labels, student)
    checks.flag("squared", squared)
    ignore_index = checks.ignore_index(ignore_index)
    checks.class_mean(class_mean, student, vocab)
    if labels.dim() != 1 or labels.dtype != torch.int64:
        labels = labels.reshape(-1).long()
    checks.counted_labels(labels, None, vocab, ignore_index)
    name = resolve(backend, student.device, (student.dtype, teacher.dtype), student)
    call = Trilateral(labels, squared, ignore_index, None if vocab_size is None else vocab, name)
    if name != "reference":
        return ops.trilateral(student, teacher, class_mean, call)
    student2d, teacher2d = (tensor[..., :vocab].reshape(-1, vocab) for tensor in (student, teacher))
    distances = reference.trilateral(student2d, teacher2d, class_mean, call)
    return distances.reshape(*student.shape[:-1], distances.shape[-1])
