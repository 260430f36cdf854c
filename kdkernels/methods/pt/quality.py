"""How good a proxy teacher is on labelled data."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .proxy import ProxyTeacher


@torch.no_grad()
def quality(proxy: ProxyTeacher | Tensor, labels: Tensor) -> Tensor:
    """Q = (mean_n ||p(x_n) - y_n||_2)^2 + mean_n (p(x_n)^T log p(x_n))^2; lower is better.

    The first term is how far the proxy teacher is from the truth, the second, its squared entropy (nats^2), stands for
    its variance. Equivalent to::

        error = (probs - F.one_hot(labels, C)).norm(dim=-1).mean()
        error**2 + torch.special.entr(probs).sum(-1).square().mean()

    in float64, with 0 log 0 = 0.

    Args:
        proxy: a `ProxyTeacher` whose rows have all converged, or probabilities (N, C), N >= 1, rows summing to one.
        labels: (N,) integers in [0, C), on the device of the probabilities.

    Returns:
        0-d float64 tensor, on that device.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value.
        RuntimeError: rows of the `ProxyTeacher` did not converge; pass its ``probs`` to have Q all the same.

    Source: Zhang et al., KDD 2024 (arXiv 2305.05010), theorem 4.1 and equation 20.
    """
    probs = proxy.probs if isinstance(proxy, ProxyTeacher) else proxy
    checks.probabilities("proxy", probs)
    checks.examples("proxy", probs, labels)
    if isinstance(proxy, ProxyTeacher) and not bool(proxy.converged.all()):
        failed = int((~proxy.converged).sum())
        raise RuntimeError(
            f"proxy must have converged, got {failed} rows that have not; to measure it so, pass its probs"
        )
    return measure(probs.double(), labels)


def measure(probs: Tensor, labels: Tensor) -> Tensor:
    """Q of probabilities (N, C) in float64."""
    index = labels.long().unsqueeze(-1)
    error = probs.scatter(-1, index, probs.gather(-1, index) - 1.0).norm(dim=-1).mean()
    return error.square() + torch.special.entr(probs).sum(-1).square().mean()
