"""The data: scikit-learn's 1797 handwritten digits of 8 x 8 pixels, split once, and shifted at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in [0, 1] and labels (n,) in 0..9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, size: int | float, seed: int) -> tuple[Digits, Digits]:
        """A part of that size (a count or a share) and the rest, every class in its proportion."""
        halves = train_test_split(np.arange(len(self)), train_size=size, stratify=self.labels, random_state=seed)
        first, rest = (Digits(self.images[rows], self.labels[rows]) for rows in map(torch.as_tensor, halves))
        return first, rest


class Splits(NamedTuple):
    train: Digits
    validation: Digits
    test: Digits


def load() -> Splits:
    """Half for training, a fifth for validation, the rest for the test: the same for every seed."""
    pixels, target = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    train, rest = Digits(images, torch.as_tensor(target).long()).split(0.5, seed=0)
    return Splits(train, *rest.split(0.4, seed=0))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions, zeros moving in."""
    n, _, height, width = images.shape
    down, right = torch.randint(0, 3, (2, n, 1), generator=generator)
    rows = (down + torch.arange(height))[:, :, None]
    columns = (right + torch.arange(width))[:, None, :]
    return F.pad(images, (1, 1, 1, 1))[torch.arange(n)[:, None, None], 0, rows, columns].unsqueeze(1)
