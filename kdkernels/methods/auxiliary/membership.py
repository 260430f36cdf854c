"""The second term of the loss: which instances a sample resembles, to the student as to the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from ...backends import reference, resolve
from ...backends.calls import Divergence
from ...losses import ForwardKL

_LOSS = ForwardKL()


def membership_divergence(
    u: Tensor, teacher: Tensor, kappa: float, beta: float, others: Tensor | None, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """beta KL(softmax(teacher / kappa) || softmax(u / kappa)), (rows,), and where it is wanted d/du, (rows, n).

    The gradient takes the memory of u. Rows that are not `others`, (rows,), have no value and no gradient.
    """
    weight = None if others is None else others.to(u.dtype)
    name = resolve("auto", u.device, (u.dtype, teacher.dtype), u)
    call = Divergence(soft_weight=weight, loss=_LOSS.name, temperature=kappa, soft_scale=beta, backend=name)
    if name == "reference":
        with torch.set_grad_enabled(differentiate):
            leaf = u.detach().requires_grad_(differentiate)
            values = reference.divergence(leaf, teacher, call, _LOSS)
            return values.detach(), torch.autograd.grad(values.sum(), leaf)[0] if differentiate else None
    if differentiate:
        return ops.values_and_gradient(u, teacher, call)
    return ops.divergence(u, teacher, call), None
