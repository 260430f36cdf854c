"""The gradient of a validation loss in the alphas of a training batch, through one step of the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from ... import api, checks
from ...backends.reference import accumulation_dtype
from ...losses import ForwardKL, Loss
from . import arguments
from .student import BoundStudent, Call, Weights, call_with, eagerly, replayed, tangents

FORWARD_KL = ForwardKL()


class Settings(NamedTuple):
    """What does not change from one step to the next."""

    inner_lr: float
    temperature: float
    loss: Loss
    call: Call | None


def hypergradient(
    student: nn.Module,
    alpha: Tensor,
    train: tuple[Any, Tensor, Tensor],
    validation: tuple[Any, Tensor],
    *,
    inner_lr: float,
    temperature: float,
    loss: Loss = FORWARD_KL,
    call: Call | None = None,
) -> Tensor:
    """dJ_val(theta')/dalpha, one value per row, for theta' = theta - inner_lr grad J_train(theta; alpha).

    J_train = 1/N sum_i [alpha_i T^2 D_i + (1 - alpha_i) CE_i] over the N counted rows, `kdkernels.distillation`, and
    J_val is the mean cross-entropy. With d_i the gradient of T^2 D_i - CE_i in the logits z_i (for ForwardKL
    T (s_i - t_i) - (S_i - G_i)),

        dJ_val/dalpha_i = -(inner_lr / N) sum_c [(dz_i/dtheta) grad J_val(theta')]_c d_ic

    Equivalent to backward through the unrolled step (``create_graph=True``), exactly, at the cost of one forward and
    backward over each batch and one forward-mode product over the training batch: no second derivative is taken, and
    neither theta nor its ``.grad`` is touched.

    Args:
        student: a module of which the parameters that require grad are theta; the others stay as they are. It runs in
            the mode, training or evaluation, in which it is.
        alpha: floating point, one value per row, the shape of the training labels. Its own graph is not followed.
        train: (inputs, teacher logits, labels); logits (N, vocab) or (B, T, vocab). Labels of -100 count nowhere.
        validation: (inputs, labels), of the same kind.
        inner_lr: learning rate of the step, > 0.
        temperature: T > 0 of the divergence.
        loss: a loss of this package.
        call: (module, inputs) -> logits; by default ``module(*inputs)`` for a tuple, ``module(**inputs)`` for a
            mapping, ``module(inputs)`` otherwise.

    Returns:
        the shape and dtype of alpha; 0 where the label is -100.

    Conventions: buffers (BatchNorm's running statistics) and the random state of the CPU and of the student's devices
    are as they were afterwards; dropout draws the same masks in both passes over the training batch, which are those
    that the student will draw next, and others over the validation batch. Compiled modules run eagerly, and
    scaled_dot_product_attention by its plain formula over the training batch, since its fused ones have no forward
    mode. In half precision theta' is rounded as a step in that dtype is.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; alpha of (B, 1) against (B,) does.
        RuntimeError: an operation of the student has no forward-mode formula.

    Source: ours. The paper (Hu et al., ICLR 2024, arXiv 2312.15112, equations 4-5) states the bilevel problem and no
    algorithm; one unrolled step is that of DARTS (Liu et al., ICLR 2019, section 2.3), without its finite difference.
    """
    arguments.learning_rate(inner_lr)
    settings = Settings(inner_lr, temperature, loss, call)
    return unrolled(student, lambda *batch: alpha, train, validation, settings)[1]


def unrolled(
    student: nn.Module,
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor],
    train: tuple[Any, Tensor, Tensor],
    validation: tuple[Any, Tensor],
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """alpha = ratio(student logits, teacher logits, labels), with the graph that it has, and `hypergradient` at it."""
    arguments.student(student)
    arguments.batch("train", train, ("inputs", "teacher logits", "labels"))
    arguments.batch("validation", validation, ("inputs", "labels"))
    bound, call = BoundStudent(student), settings.call or call_with
    inputs, teacher, labels = train
    with torch.enable_grad(), eagerly(), replayed(student) as rewind:
        with sdpa_kernel(SDPBackend.MATH):
            inner = bound.run(_inner, bound.weights, call, inputs, teacher, labels, ratio, settings)
        direction, length = bound.run(_outer, inner.stepped, call, *validation)
        rewind()
        with sdpa_kernel(SDPBackend.MATH):
            tangent = tangents(bound, call, inputs, direction)
    product = (tangent.to(inner.share.dtype) * inner.difference).sum(-1)
    gradient = -inner.share * length.to(inner.share.device) * product
    return inner.alpha, gradient.to(inner.alpha.dtype)


class _Inner(NamedTuple):
    """Of the pass over the training batch."""

    alpha: Tensor
    difference: Tensor
    """d / sqrt(N), (..., vocab), the gradient of T^2 D - CE in the logits, in their dtype."""
    share: Tensor
    """inner_lr / sqrt(N), 0-d in the dtype of the arithmetic."""
    stepped: Weights
    """theta'"""


def _inner(module, weights, call, inputs, teacher, labels, ratio, settings) -> _Inner:
    logits = call(module, inputs)
    arguments.student_logits(logits)
    leaf, root = logits.detach().requires_grad_(), _root(labels, logits)
    options = {"temperature": settings.temperature, "normalizer": root}
    terms = (api.distillation(leaf, teacher, labels, settings.loss, alpha=share, **options) for share in (1.0, 0.0))
    soft, hard = (torch.autograd.grad(term, leaf)[0] for term in terms)
    alpha = ratio(logits.detach(), teacher, labels)
    arguments.alpha(alpha, logits)
    difference = soft.sub_(hard)
    gradient = _gradient(logits, weights, hard.addcmul_(difference, alpha.detach().unsqueeze(-1).to(hard.dtype)))
    share = settings.inner_lr / root
    stepped = {
        name: (weight.detach() - share.to(weight.device) * gradient[name]).requires_grad_()
        for name, weight in weights.items()
    }
    return _Inner(alpha, difference, share, stepped)


def _outer(module, weights, call, inputs, labels) -> tuple[Weights, Tensor]:
    """grad J_val at these weights: a direction of length 1, so that its tangents fit into float16, and its length."""
    logits = call(module, inputs)
    arguments.student_logits(logits)
    root = _root(labels, logits)
    # Without a weight on its divergence, a distillation is the cross-entropy, and the teacher may be anything.
    gradient = _gradient(api.distillation(logits, logits.detach(), labels, alpha=0.0, normalizer=root), weights)
    length = get_total_norm(list(gradient.values()))
    length.clamp_(min=torch.finfo(length.dtype).tiny)
    return {name: each / length.to(each.device) for name, each in gradient.items()}, length.to(root.device) / root


def _gradient(value: Tensor, weights: Weights, upstream: Tensor | None = None) -> Weights:
    with torch.autocast(value.device.type, enabled=False):  # backward repeats the dtypes of forward by itself
        found = torch.autograd.grad(value, list(weights.values()), upstream, allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def _root(labels: Tensor, logits: Tensor) -> Tensor:
    """sqrt(N), N the counted rows (at least 1), 0-d in the dtype of the arithmetic.

    A mean's divisor enters by one root before a backward pass and by the other after it: in float16 the logits'
    gradients would underflow if divided by N, and the weights', sums over the rows, overflow if not divided at all.
    """
    checks.labels(labels, logits)
    return (labels.long() != arguments.IGNORED).sum().clamp_(min=1).to(accumulation_dtype(logits)).sqrt()
