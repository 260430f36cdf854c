"""Few long rows under the interpreter: each is split into parts, whose numbers three launches exchange."""

from __future__ import annotations

import pytest
import torch
from _triton_interpreter import INF, assert_near, empty_like, oracle, rows_of, run

from kdkernels.backends import launch
from kdkernels.kernels import config
from kdkernels.losses import LOSSES, ForwardKL, JensenShannon, Perturbed

LONG = 20011
LOSSES_TRIED = [Perturbed(torch.tensor([0.5, 2.0])) if name == "perturbed" else LOSSES[name]() for name in LOSSES]


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The names and grids of what is launched, on a device of 16 multiprocessors."""
    found, real = [], launch._launch

    def spy(kernel, grid, *rest):
        found.append((kernel.fn.__name__, grid))
        return real(kernel, grid, *rest)

    monkeypatch.setattr(launch, "processors", lambda tensor: 16)
    monkeypatch.setattr(launch, "_launch", spy)
    return found


@pytest.mark.parametrize("loss", LOSSES_TRIED, ids=lambda loss: loss.name)
@pytest.mark.parametrize("vocab", (9000, LONG))
def test_every_loss(launched, vocab, loss):
    student, teacher, labels = rows_of(2, vocab), rows_of(2, vocab, seed=1), torch.tensor([0, vocab - 1])
    gradient = empty_like(student)
    values = run(loss, student, teacher, gradient, labels, temperature=2.0)
    assert_near(values, gradient, oracle(loss, student, teacher, labels, temperature=2.0), peak=4.0)
    assert [name for name, _ in launched] == ["split_sums", "split_terms", "split_finish"]
    assert launched[0][1][1] > 1


def test_aligned_rows_of_half_precision():
    student, teacher = (rows_of(3, 32768, seed=seed).to(torch.bfloat16) for seed in (0, 1))
    gradient = torch.full_like(student, float("nan"))
    values = run(JensenShannon(), student, teacher, gradient)
    expected = oracle(JensenShannon(), student, teacher)
    torch.testing.assert_close(values.double(), expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-2, atol=1e-7)


def test_a_part_without_a_finite_logit():
    student, teacher = rows_of(2, LONG), rows_of(2, LONG, seed=1)
    student[:, :12000], teacher[:, :12000] = -INF, -INF
    gradient = empty_like(student)
    expected = oracle(ForwardKL(), student[:, 12000:], teacher[:, 12000:])
    values = run(ForwardKL(), student, teacher, gradient)
    assert_near(values, gradient[:, 12000:], expected)
    assert (gradient[:, :12000] == 0).all()


@pytest.mark.parametrize("loss", (ForwardKL(), JensenShannon()), ids=lambda loss: loss.name)
def test_in_place_and_masked_rows(loss):
    student, teacher, labels = rows_of(3, LONG), rows_of(3, LONG, seed=1), torch.tensor([5, 6, LONG - 1])
    weight = torch.tensor([1.0, 0.0, 2.0])
    student[1], teacher[1] = float("nan"), float("nan")
    apart = empty_like(student)
    values = run(loss, student, teacher, apart, labels, soft=weight, hard=weight)
    again = run(loss, student, teacher, student, labels, soft=weight, hard=weight)
    assert torch.equal(values, again) and torch.equal(apart, student)
    assert values[1] == 0 and (apart[1] == 0).all() and apart[0].any()


def test_enough_rows_are_not_split(launched):
    student, teacher = rows_of(16, LONG), rows_of(16, LONG, seed=1)
    run(ForwardKL(), student, teacher, None)
    assert [name for name, _ in launched] == ["divergence_streaming"]


def test_parts_fill_the_device_and_are_long_enough():
    tile = config.SPLIT.tile[0]
    for rows in (1, 3, 16, 66):
        for vocab in (8193, 32000, 128256, 1_000_000):
            parts = launch.parts_of(config.SPLIT, rows, vocab, tile, 132)
            assert parts & (parts - 1) == 0 and (parts == 1 or vocab / parts >= config.SPLIT.tiles * tile / 2)
    assert launch.parts_of(config.SPLIT, 67, 128256, tile, 132) == 1
    assert launch.parts_of(config.SPLIT, 1, 8192, tile, 132) == 1
    assert launch.parts_of(config.SPLIT, 4, 128256, tile, 132) > 8
