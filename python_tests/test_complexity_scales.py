"""Numbers at the ends of float64: what has no scale has none there either, and the rest follows it."""

import pytest
import torch
from cases import F64
from complexity_grams import definition, spd, vectors

from kdkernels.methods.complexity import kernel_alignment, ntk_similarity, supervision_complexity

SCALES = pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])


@SCALES
def test_alignment_has_no_scale(scale):
    gram, targets = spd(6), vectors(6)
    wanted = kernel_alignment(gram, targets)
    assert 0.01 < float(wanted) < 0.99
    for scaled in ((gram * scale, targets), (gram, targets * scale), (gram * scale, targets / scale)):
        torch.testing.assert_close(kernel_alignment(*scaled), wanted, rtol=1e-12, atol=0)


@SCALES
def test_similarity_has_no_scale(scale):
    one, other = spd(6, seed=1), spd(6, seed=2)
    wanted = ntk_similarity(one, other)
    assert 0.01 < float(wanted) < 0.99
    for pair in ((one * scale, other), (one, other * scale), (one * scale, other / scale)):
        torch.testing.assert_close(ntk_similarity(*pair), wanted, rtol=1e-12, atol=0)


@SCALES
@pytest.mark.parametrize("adjusted", [True, False])
@pytest.mark.parametrize("jitter", [1e-6, "auto"])
def test_complexity_is_proportional_to_its_targets(scale, adjusted, jitter):
    gram, targets = spd(6), vectors(6)
    wanted = definition(gram, targets, 6, adjusted, 1e-6 if jitter == 1e-6 else 0.0)
    got = supervision_complexity(gram, targets * scale, adjusted=adjusted, jitter=jitter)
    assert float(got.value) == pytest.approx(wanted * scale, rel=1e-11, abs=0)


@SCALES
def test_complexity_and_the_scale_of_its_kernel(scale):
    """None for the adjusted one; 1 / sqrt(scale) for the plain one."""
    gram, targets = spd(6), vectors(6)
    for adjusted, factor in ((True, 1.0), (False, scale**-0.5)):
        wanted = factor * definition(gram, targets, 6, adjusted)
        got = supervision_complexity(gram * scale, targets, adjusted=adjusted, jitter=0)
        assert float(got.value) == pytest.approx(wanted, rel=1e-11)


def test_a_square_beyond_float64_whose_root_is_not():
    """Y^T K^-1 Y is 1e312."""
    gram = torch.diag(torch.tensor([1e-300, 1e-312], dtype=F64))
    got = supervision_complexity(gram, torch.tensor([0.0, 1.0], dtype=F64), adjusted=False, jitter=0)
    assert float(got.value) == pytest.approx(1e156, rel=1e-10)  # a number as small as 1e-312 has eleven digits


def test_a_diagonal_whose_sum_is_infinite():
    gram, targets = torch.eye(4, dtype=F64) * 1.5e308, vectors(4)
    result = supervision_complexity(gram, targets, jitter=0)
    assert float(result.value) == pytest.approx(float(targets.norm()) / 2, rel=1e-13)


def test_sets_of_targets_have_scales_of_their_own():
    gram, sizes = spd(6), torch.tensor([1e-300, 0.0, 1.0, 1e300], dtype=F64)
    sets = vectors(6, 1) * sizes[:, None, None]
    wanted = supervision_complexity(gram, sets[2]).value * sizes
    torch.testing.assert_close(supervision_complexity(gram, sets).value, wanted, rtol=1e-12, atol=0)
    own = kernel_alignment(gram, sets[2]).expand(3)
    torch.testing.assert_close(kernel_alignment(gram, sets[[0, 2, 3]]), own, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="targets must not be zero throughout"):
        kernel_alignment(gram, sets)
