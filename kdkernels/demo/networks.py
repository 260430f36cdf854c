"""The two networks: the teacher has fifty times the parameters of the student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def teacher() -> nn.Sequential:
    """Two convolutions and a hidden layer, 71 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
    )


def student() -> nn.Sequential:
    """One convolution of eight channels and a linear layer, 1370 parameters."""
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def asked(network: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (n, 10), and the features (n, 128) that the last layer makes them of."""
    features = network[:-1](images)
    return network[-1](features), features


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What ``make`` builds when the global generator stands at ``seed``; the generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
