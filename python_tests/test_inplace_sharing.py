"""inplace=True where other arguments share the student's memory: row by row, or refused before anything is written."""

import pytest
import torch
from cases import F16, F32, name_of

import kdkernels as kd

ROWS, VOCAB = 10, 50
LABELS = torch.arange(ROWS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)


def buffer(dtype=F32):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, 2 * VOCAB, generator=generator).to(dtype).requires_grad_()


APART = {
    "beside each other": lambda z: (z[:, :VOCAB], z.detach()[:, VOCAB:], {}),
    "above each other": lambda z: (z[:5], z.detach()[5:], {}),
    "every other row": lambda z: (z[0::2], z.detach()[1::2], {}),
    "the same rows": lambda z: (z, z.detach(), {}),
    "a weight in another column": lambda z: (z[:, :VOCAB], torch.ones(ROWS, VOCAB), {"weight": z.detach()[:, -1]}),
}
TOGETHER = {
    "teacher rows shifted": lambda z: (z[1:], z.detach()[:-1], {}),
    "teacher rows reversed in pairs": lambda z: (z[:6], z.detach()[2:8], {}),
    "teacher columns shifted": lambda z: (z[:, :VOCAB], z.detach()[:, 1 : VOCAB + 1], {}),
    "teacher of one row": lambda z: (z[:, :VOCAB], z.detach()[3, :VOCAB].expand(ROWS, VOCAB), {}),
    "weight a column": lambda z: (z[:, :VOCAB], torch.ones(ROWS, VOCAB, dtype=z.dtype), {"weight": z.detach()[:, 7]}),
    "weight a row": lambda z: (z[:, :VOCAB], torch.ones(ROWS, VOCAB, dtype=z.dtype), {"weight": z.detach()[2, :ROWS]}),
    "normalizer": lambda z: (z, torch.ones(ROWS, 2 * VOCAB, dtype=z.dtype), {"normalizer": z.detach()[0, 1]}),
}


def gradient(arguments, dtype, inplace):
    leaf = buffer(dtype)
    student, teacher, options = arguments(leaf * 1)
    value = kd.divergence(student, teacher, kd.SkewKL(), temperature=2.0, inplace=inplace, **options)
    value.backward()
    return value.detach(), leaf.grad


@EVERY_DTYPE
@pytest.mark.parametrize("arguments", APART.values(), ids=APART)
def test_memory_of_its_own_or_row_by_row(arguments, dtype):
    for found, expected in zip(gradient(arguments, dtype, True), gradient(arguments, dtype, False), strict=True):
        torch.testing.assert_close(found, expected)


@EVERY_DTYPE
@pytest.mark.parametrize("arguments", TOGETHER.values(), ids=TOGETHER)
def test_shared_otherwise(arguments, dtype):
    z = buffer(dtype) * 1
    before = z.detach().clone()
    student, teacher, options = arguments(z)
    name = next(iter(options), "teacher")
    with pytest.raises(ValueError, match=rf"would overwrite {name}, which shares memory.*pass {name}.clone\(\)"):
        kd.divergence(student, teacher, inplace=True, **options)
    assert torch.equal(z.detach(), before)


def test_labels_and_alpha():
    z = buffer() * 1
    labels = z.detach().view(torch.int64)[:, 3].fill_(2)
    with pytest.raises(ValueError, match="would overwrite labels"):
        kd.distillation(z, torch.ones(ROWS, 2 * VOCAB), labels, inplace=True)
    alpha = z.detach()[:, 3].fill_(0.5)
    with pytest.raises(ValueError, match="would overwrite alpha"):
        kd.distillation(z, torch.ones(ROWS, 2 * VOCAB), LABELS, alpha=alpha, inplace=True)
