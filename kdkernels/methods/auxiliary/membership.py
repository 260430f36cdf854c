"""The second term of the loss: which instances a sample resembles, to the student as to the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from ...backends import reference, resolve
from ...losses import ForwardKL

_LOSS = ForwardKL()


def membership_divergence(
    u: Tensor, teacher: Tensor, kappa: float, beta: float, others: Tensor | None, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """beta KL(softmax(teacher / kappa) || softmax(u / kappa)), (rows,), and where it is wanted d/du, (rows, n).

    The gradient takes the memory of u. Rows that are not `others`, (rows,), have no value and no gradient.
    """
    weight = None if others is None else others.to(u.dtype)
    name = resolve("auto", u.device, (u.dtype, teacher.dtype))
    if name == "reference":
        with torch.set_grad_enabled(differentiate):
            leaf = u.detach().requires_grad_(differentiate)
            rows = (weight, None, beta, 0.0)
            values = reference.divergence(leaf, teacher, None, *rows, loss=_LOSS, temperature=kappa)
            return values.detach(), torch.autograd.grad(values.sum(), leaf)[0] if differentiate else None
    scalars = ops.Scalars(_LOSS.parameter(), kappa, beta, 0.0)
    call = ops.Call(teacher, None, weight, None, None, scalars, _LOSS.name, u.shape[1], False)
    if differentiate:
        return ops.values_and_gradient(u, call, name)
    return ops.divergence(u, call, False, name), None
