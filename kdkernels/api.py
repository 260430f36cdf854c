"""What users call: logits go in, a loss or probabilities come out; the gradient is made in the same walk."""

from __future__ import annotations

from torch import Tensor

from . import checks, ops
from .backends import reference, resolve
from .backends.calls import Divergence, Softmax
from .losses import ForwardKL, Loss
from .sharded import on_shards
from .weights import flat, row_weights, split

_FORWARD_KL = ForwardKL()


def divergence(
    student: Tensor,
    teacher: Tensor,
    loss: Loss = _FORWARD_KL,
    *,
    temperature: float = 1.0,
    tau_squared: bool = True,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    vocab_size: int | None = None,
    inplace: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Divergence of softmax(student / T) from softmax(teacher / T), times T^2 unless ``tau_squared=False``.

    Equivalent to, for ForwardKL and without a mask::

        log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
        T**2 * F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()

    but no (rows x vocab) intermediate is stored: value and gradient come out of one walk over each row, and the only
    large allocation is the gradient (none without grad, none with ``inplace=True``). A float16 student is walked a
    second time in backward instead, so that a loss scale reaches the gradient before it is rounded.

    Args:
        student: logits (..., vocab), float32, float16, bfloat16 or float64. Rows may be strided. Probabilities are not
            logits; log-probabilities may serve as them. (N, C, H, W) is softmaxed over W: move the classes to the end.
            A DTensor may lie sharded over its rows, not over the vocabulary.
        teacher: logits of the same leading shape; dtype may differ; must not require grad.
        loss: a loss of this package, e.g. ``ForwardKL()``, ``JensenShannon(beta=0.5)``.
        temperature: T > 0, a number; divides both sides.
        tau_squared: multiply the result by T^2, so that gradients keep their scale over T (Hinton et al. 2015).
        mask: bool (...), True = counted. A row that is not counted is not read: even NaN in it changes nothing.
        weight: floating point (...), multiplies each row; it does not enter the divisor of a mean. Must not require
            grad. A row of weight 0 is not read, but it is counted.
        reduction: "none" (one value per row, shape (...)), "sum", "mean" (over counted rows; 0 where there are none)
            or "batchmean" (the sum divided by ``student.shape[0]``, by 1 where there are no leading dimensions).
        normalizer: positive number or tensor of one (checked on a CPU) that replaces the divisor of "mean", e.g. the
            number of tokens of a whole accumulated batch; 0 where no row counts.
        vocab_size: only the first entries of both vocabularies enter (for vocabularies of different sizes); the
            gradient of the others is 0.
        inplace: let the gradient take the student's buffer. The logits are lost: take metrics of them, such as an
            accuracy, before the call. Autograd is told, so that the backward pass of a later differentiable use raises;
            a later use without one reads the gradient. Eager mode only: ``torch.compile`` plans memory itself and
            ignores it.
            Not for a slice such as ``logits[:, :-1]``: shift the labels, ``F.pad(labels[:, 1:], (0, 1), value=-100)``,
            which also spares the gradient that the slice's own backward makes. Memory that another argument shares
            otherwise than row by row is refused.
        backend: "auto", or one of ``kd.backends()``; one that was named and cannot run raises.

    Returns:
        float32 (float64 where an input is), in nats times T^2; gradients have the student's dtype.

    Conventions: ``0 log 0 = 0`` (a -inf logit on both sides adds nothing to value or gradient); an infinite value has
    no defined gradient, except ForwardKL's; a NaN makes its row's value and gradient NaN. Double backward raises (the
    reference backend has one).

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has been computed or written.
        RuntimeError: the backend that was named cannot run; a second derivative was asked for.
    """
    if checks.distributed(student):
        return on_shards(divergence, locals())
    checks.loss(loss)
    vocab, temperature, normalizer = _check_common(
        student, teacher, temperature, tau_squared, mask, weight, reduction, normalizer, vocab_size, inplace
    )
    if inplace:
        checks.inplace(student, teacher=teacher, mask=mask, weight=weight, normalizer=normalizer)
    counted = None if mask is None else flat(mask)
    weights, scale = row_weights(student, teacher, counted, weight, reduction, normalizer)
    call = Divergence(
        soft_weight=weights,
        temperature=temperature,
        soft_scale=scale * checks.squared(temperature) if tau_squared else scale,
        hard_scale=0.0,
        **_settings(student, teacher, loss, vocab, vocab_size, reduction, backend),
    )
    return _evaluate(student, teacher, call, loss, inplace)


def distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    loss: Loss = _FORWARD_KL,
    *,
    alpha: float | Tensor = 0.5,
    temperature: float = 1.0,
    tau_squared: bool = True,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    vocab_size: int | None = None,
    inplace: bool = False,
    backend: str = "auto",
) -> Tensor:
    """alpha T^2 D(teacher, student at T) + (1 - alpha) CE(labels, student at 1) per row, without T^2 if told so.

    Equivalent to ``alpha * divergence(...) + (1 - alpha) * F.cross_entropy(student, labels)`` row by row, in one walk:
    both terms share the student's read and one gradient is written.

    Args:
        labels: int64 (...), in [0, vocab) or ``ignore_index``; of one-hot rows ``.argmax(-1)``. A row that is ignored
            counts in neither term, as if masked. On a CPU a label outside raises; on a GPU, or under a tracer, its row
            is NaN.
        alpha: share of the divergence: a number in [0, 1], or one value per row (...), checked on a CPU; must not
            require grad.
        student, teacher, loss, temperature, tau_squared, mask, weight, reduction, normalizer, vocab_size, inplace,
            backend, conventions and errors: as for `divergence`: probabilities are not logits, log-probabilities may
            serve as them; (N, C, H, W) is softmaxed over W.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2; one alpha per row:
    Hu et al., "Less or More From Teacher", ICLR 2024 (arXiv 2312.15112), equations 1-3.
    """
    if checks.distributed(student):
        return on_shards(distillation, locals())
    checks.loss(loss)
    vocab, temperature, normalizer = _check_common(
        student, teacher, temperature, tau_squared, mask, weight, reduction, normalizer, vocab_size, inplace
    )
    checks.labels(labels, student)
    ignore_index, alpha = checks.ignore_index(ignore_index), checks.alpha(alpha, student)
    if inplace:
        beside = {"mask": mask, "weight": weight, "normalizer": normalizer, "alpha": alpha}
        checks.inplace(student, teacher=teacher, labels=labels, **beside)
    labels = flat(labels).long()
    counted = checks.counted_labels(labels, mask, vocab, ignore_index)
    weights, scale = row_weights(student, teacher, counted, weight, reduction, normalizer)
    soft, hard, soft_scale, hard_scale = split(weights, alpha, scale, student, teacher)
    call = Divergence(
        labels=labels,
        soft_weight=soft,
        hard_weight=hard,
        temperature=temperature,
        soft_scale=soft_scale * checks.squared(temperature) if tau_squared else soft_scale,
        hard_scale=hard_scale,
        **_settings(student, teacher, loss, vocab, vocab_size, reduction, backend),
    )
    return _evaluate(student, teacher, call, loss, inplace)


def softmax(logits: Tensor, *, temperature: float = 1.0, backend: str = "auto") -> Tensor:
    """softmax(logits / T) over the last dimension.

    Equivalent to ``torch.softmax(logits / T, -1)`` without the scaled copy: one read and one write; arithmetic in
    float32 (float64 for float64), result in the dtype of the logits.

    Args:
        logits: (..., vocab), float32, float16, bfloat16 or float64. Rows may be strided.
        temperature: T > 0, a number.
        backend: "auto", or one of ``kd.backends()``.

    Conventions: a logit of -inf gives 0; a row that is -inf throughout gives NaN, as in PyTorch. Double backward
    raises. Raises: TypeError, ValueError, RuntimeError as `divergence` does.
    """
    return _softmax(logits, temperature, False, backend)


def log_softmax(logits: Tensor, *, temperature: float = 1.0, backend: str = "auto") -> Tensor:
    """log softmax(logits / T) over the last dimension, in nats.

    Equivalent to ``F.log_softmax(logits / T, -1)`` without the scaled copy. Arguments, conventions and errors as for
    `softmax`.
    """
    return _softmax(logits, temperature, True, backend)


def _softmax(logits: Tensor, temperature: float, log: bool, backend: str) -> Tensor:
    if checks.distributed(logits):
        return on_shards(_softmax, locals())
    checks.logits("logits", logits)
    temperature = checks.temperature(temperature)
    call = Softmax(temperature, log, resolve(backend, logits.device, (logits.dtype,), logits))
    return reference.softmax(logits, call) if call.backend == "reference" else ops.softmax(logits, call)


def _check_common(
    student, teacher, temperature, tau_squared, mask, weight, reduction, normalizer, vocab_size, inplace
) -> tuple[int, float, float | Tensor | None]:
    """Columns that count, temperature and divisor as Python's numbers or a 0-d tensor."""
    vocab = checks.pair(student, teacher, vocab_size)
    temperature = checks.temperature(temperature)
    checks.flag("tau_squared", tau_squared)
    checks.flag("inplace", inplace)
    normalizer = checks.reduction(reduction, normalizer, student)
    checks.mask(mask, student)
    checks.weight(weight, student)
    return vocab, temperature, normalizer


def _settings(student, teacher, loss: Loss, vocab: int, vocab_size: int | None, reduction: str, backend: str) -> dict:
    """The fields of a call that every divergence fills alike."""
    return {
        "table": checks.loss_fits(loss, student, teacher, vocab),
        "loss": loss.name,
        "parameter": loss.parameter(),
        "vocab": None if vocab_size is None else vocab,
        "reduce": reduction != "none",
        "backend": resolve(backend, student.device, (student.dtype, teacher.dtype), student),
    }


def _evaluate(student: Tensor, teacher: Tensor, call: Divergence, loss: Loss, inplace: bool) -> Tensor:
    if call.backend != "reference":
        return ops.divergence(student, teacher, call, inplace)
    vocab = student.shape[-1] if call.vocab is None else call.vocab
    student2d, teacher2d = (tensor[..., :vocab].reshape(-1, vocab) for tensor in (student, teacher))
    values = reference.divergence(student2d, teacher2d, call, loss)
    return ops.total(values) if call.reduce else values.reshape(student.shape[:-1])
