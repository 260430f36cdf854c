"""Controllers and batches that the tests of the fusion ratio share."""

import torch
from cases import F32, logits

from kdkernels.methods import tgeo

CLASSES, ROWS, HIDDEN = 11, 9, 6


def table(classes=CLASSES, dtype=F32):
    return logits(classes, classes, dtype=dtype, seed=9).softmax(-1)


def ratio(device="cpu", dtype=F32, classes=CLASSES, hidden=HIDDEN, **options):
    torch.manual_seed(0)
    options = {"class_mean": table(classes)} | options
    return tgeo.FusionRatio(classes, hidden, **options).to(device, dtype)


def batch(rows=ROWS, dtype=F32, device="cpu", classes=CLASSES):
    student, teacher = (logits(rows, classes, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    return student, teacher, torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(3)).to(device)


def with_gradients(module, *arguments, upstream=None):
    """alpha, and the gradient of each parameter for an upstream gradient that differs by row."""
    alpha = module(*arguments)
    upstream = torch.linspace(-1, 1, alpha.numel()).to(alpha).view(alpha.shape) if upstream is None else upstream
    return [alpha.detach(), *torch.autograd.grad(alpha, list(module.parameters()), upstream)]
