"""Students with their controllers, and the batches that a run sees."""

import torch
from cases import F32, logits
from torch import nn

from kdkernels.methods import tgeo

CLASSES, ROWS, TEMPERATURE = 5, 8, 4.0

SETTINGS = {"inner_lr": 0.3, "temperature": TEMPERATURE}


def make_student():
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES)
    )  # fmt: skip


def make_ratio(**options):
    return tgeo.FusionRatio(CLASSES, 4, class_mean=torch.eye(CLASSES), **options)


def make(device="cpu", dtype=F32, ratio=None, student=None, rate=0.1, **options):
    torch.manual_seed(0)
    student = (student or make_student)().to(device, dtype)
    ratio = (ratio or make_ratio)().to(device, dtype)
    return tgeo.BilevelStep(student, ratio, torch.optim.SGD(ratio.parameters(), rate), **(SETTINGS | options))


def train_batch(seed=0, device="cpu", dtype=F32):
    inputs = logits(ROWS, 8, seed=seed, device=device, dtype=dtype)
    teacher = logits(ROWS, CLASSES, seed=seed + 1000, device=device, dtype=dtype)
    return inputs, teacher, ((torch.arange(ROWS) + seed) % CLASSES).to(device)


def validation_batch(seed=0, device="cpu", dtype=F32):
    inputs, _, labels = train_batch(seed + 500, device, dtype)
    return inputs, labels


class Given(nn.Module):
    """A controller whose alpha is its parameter, made into any shape."""

    def __init__(self, value, shape=(ROWS,)):
        super().__init__()
        self.value, self.shape = nn.Parameter(torch.as_tensor(value)), shape

    def forward(self, student, teacher, labels):
        return self.value.expand(self.shape)


def parameters(module):
    return [each.detach().clone() for each in module.parameters()]
