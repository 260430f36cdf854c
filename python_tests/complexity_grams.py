"""Gram matrices with a known spectrum, and what supervision complexity is: an eigendecomposition in float64."""

import torch
from cases import F64
from torch import Tensor


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spd(size, condition=30.0, seed=0, dtype=F64, device="cpu", scale=1.0) -> Tensor:
    """Random eigenvectors; eigenvalues from scale / condition to scale, evenly in logarithm. Exactly symmetric."""
    vectors = torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=seeded(seed)))[0]
    values = scale * torch.logspace(0, -1, size, base=condition, dtype=F64)
    gram = (vectors * values) @ vectors.T
    return ((gram + gram.T) / 2).to(device, dtype)


def vectors(*shape, seed=1, dtype=F64, device="cpu") -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(device, dtype)


def jittered(gram: Tensor, jitter: float) -> Tensor:
    gram = gram.double()
    return gram + jitter * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=F64, device=gram.device)


def definition(gram: Tensor, targets: Tensor, examples: int, adjusted=True, jitter=0.0) -> float:
    """sqrt(Y^T K^-1 Y) or (1/n) sqrt(Y^T K^-1 Y tr K), in the eigenvectors of the jittered kernel."""
    values, basis = torch.linalg.eigh(jittered(gram, jitter))
    energy = ((basis.T @ targets.double().reshape(-1)) ** 2 / values).sum()
    return float((energy * values.sum()).sqrt() / examples if adjusted else energy.sqrt())
