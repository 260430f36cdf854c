"""Criteria with coefficients, their batches, and what the function gives for them."""

import pytest
import torch
from cases import F32, logits

import kdkernels as kd

SHAPES = pytest.mark.parametrize("shape", [(3,), (20, 3)], ids=str)
KINDS = pytest.mark.parametrize("kind", [kd.DivergenceLoss, kd.DistillationLoss])


def coefficients(shape, seed=5, dtype=F32):
    return logits(*shape, seed=seed, dtype=dtype).abs()


def batch(kind, device="cpu"):
    student, teacher = (logits(4, 20, device=device, seed=seed) for seed in range(2))
    return (student, teacher) if kind is kd.DivergenceLoss else (student, teacher, torch.arange(4, device=device))


def expected(kind, eps, device="cpu", backend="auto"):
    function = kd.divergence if kind is kd.DivergenceLoss else kd.distillation
    return function(*batch(kind, device), loss=kd.Perturbed(eps.to(device)), backend=backend)
