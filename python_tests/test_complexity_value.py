"""Supervision complexity: its definition by eigenvalues, and what the paper's mathematics says about it."""

import math

import pytest
import torch
from cases import F32, F64
from complexity_grams import definition, jittered, seeded, spd, vectors
from complexity_models import OUTPUTS, inputs, network
from conftest import DEVICES

from kdkernels.methods import complexity
from kdkernels.methods.complexity import supervision_complexity

EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES)
ADJUSTED = pytest.mark.parametrize("adjusted", [True, False], ids=["adjusted", "plain"])
EPS = 2.0**-52


def value(gram, targets, **options):
    result = supervision_complexity(gram, targets, **options)
    assert isinstance(result, tuple) and result._fields == ("value", "jitter", "condition")
    assert result.value.dtype == F64 and result.value.device == gram.device
    assert type(result.jitter) is float and type(result.condition) is float
    return result.value


@EVERY_DEVICE
@ADJUSTED
@pytest.mark.parametrize("condition", [1.0, 30.0, 1e6])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 4), (12, 1), (6, 3)])
def test_the_solve_against_the_eigendecomposition(device, adjusted, condition, n, d):
    """Both are backward stable: each is off by a few N condition roundings at most."""
    gram, targets = spd(n * d, condition, device=device), vectors(n, d, device=device)
    got = value(gram, targets, adjusted=adjusted, jitter=0)
    assert got.shape == ()
    assert float(got) == pytest.approx(definition(gram, targets, n, adjusted), rel=10 * n * d * condition * EPS)


@ADJUSTED
@pytest.mark.parametrize("jitter", [1e-8, 1e-3, 2.0, 1])
def test_the_kernel_is_the_jittered_one_trace_included(adjusted, jitter):
    gram, targets = spd(12, scale=5.0), vectors(4, 3)
    got = value(gram, targets, adjusted=adjusted, jitter=jitter)
    assert float(got) == pytest.approx(definition(gram, targets, 4, adjusted, jitter), rel=1e-12)
    assert supervision_complexity(gram, targets, jitter=jitter).jitter == jitter


@pytest.mark.parametrize("factor", [1e-30, 2.0**-20, 0.3, 7.0, 1e12])
@pytest.mark.parametrize("jitter", [0, 1e-6, "auto"])
def test_the_scale_of_the_kernel(factor, jitter):
    """Adjusted: invariant. Plain: divided by the root of it. A jitter is relative, so it changes neither."""
    gram, targets = spd(15), vectors(5, 3)
    first, second = (supervision_complexity(k, targets, jitter=jitter) for k in (gram, factor * gram))
    assert float(second.value) == pytest.approx(float(first.value), rel=1e-12)
    assert first.jitter == second.jitter
    plain, scaled = (value(k, targets, adjusted=False, jitter=jitter) for k in (gram, factor * gram))
    assert float(scaled) * math.sqrt(factor) == pytest.approx(float(plain), rel=1e-12)


def test_the_scale_of_the_targets():
    gram, targets = spd(15), vectors(15)
    assert float(value(gram, -3 * targets)) == pytest.approx(3 * float(value(gram, targets)), rel=1e-13)
    assert float(value(gram, 0 * targets)) == 0.0 == float(value(gram, 0 * targets, adjusted=False))


@pytest.mark.parametrize("n", [1, 9, 100])
def test_the_identity(n):
    """||y|| / sqrt(n), and ||y|| without the adjustment."""
    y = vectors(n)
    norm = float(y.norm())
    for jitter in (0, 0.5, "auto"):
        got = float(value(torch.eye(n, dtype=F64), y, jitter=jitter))
        assert got == pytest.approx(norm / math.sqrt(n), rel=1e-13)
    assert float(value(torch.eye(n, dtype=F64), y, adjusted=False, jitter=0)) == pytest.approx(norm, rel=1e-13)
    got = float(value(torch.eye(n, dtype=F64), y, adjusted=False, jitter=3.0))
    assert got == pytest.approx(norm / 2, rel=1e-13)


def test_n_counts_examples_and_not_outputs():
    """K = I of six examples with three outputs: (1/6) sqrt(||Y||^2 18); taken as 18 examples, a third of it."""
    y, gram = vectors(6, 3), torch.eye(18, dtype=F64)
    assert float(value(gram, y, jitter=0)) == pytest.approx(float(y.norm()) * math.sqrt(18) / 6, rel=1e-13)
    assert float(value(gram, y.reshape(-1), jitter=0)) == pytest.approx(float(y.norm()) / math.sqrt(18), rel=1e-13)
    assert torch.equal(value(gram, y.reshape(-1)), value(gram, y.reshape(-1, 1)))


@pytest.mark.parametrize("k", [1e-20, 0.3, 5.0])
def test_one_example(k):
    """|y|, whatever its kernel is."""
    gram, y = torch.tensor([[k]], dtype=F64), torch.tensor([-1.7], dtype=F64)
    for jitter in (0, 0.1, "auto"):
        assert float(value(gram, y, jitter=jitter)) == pytest.approx(1.7, rel=1e-14)
    assert float(value(gram, y, adjusted=False, jitter=0)) == pytest.approx(1.7 / math.sqrt(k), rel=1e-14)


@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("jitter", ["auto", 1e-5, 0.1])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_the_lower_bound(rank, jitter, dtype):
    """||y|| / n, since no eigenvalue exceeds the trace; singular kernels too."""
    for seed in range(5):
        features = vectors(12, rank, seed=seed)
        gram, y = (features @ features.T).to(dtype), vectors(12, seed=seed + 50)
        gram = (gram + gram.T) / 2
        for targets in (y, features[:, 0]):
            got = float(value(gram, targets, jitter=jitter))
            assert got >= float(targets.norm()) / 12 * (1 - 1e-12)


@pytest.mark.parametrize("jitter", ["auto", 1e-9, 1e-3])
def test_where_the_lower_bound_is_attained(jitter):
    """K = y y^T: ||y|| / n times sqrt((1 + j) / (1 + j / n)), with the jitter in kernel and trace alike. y is a power
    of two, so that K has rank one exactly; its inverse acts on its own range, so the condition does not enter."""
    n, y = 8, 2.0 ** torch.arange(-4, 4, dtype=F64)
    result = supervision_complexity(torch.outer(y, y), y, jitter=jitter)
    j = result.jitter
    assert float(result.value) == pytest.approx(float(y.norm()) / n * math.sqrt((1 + j) / (1 + j / n)), rel=1e-9)


@ADJUSTED
def test_permutations(adjusted):
    """Of examples, of outputs, of both: in kernel and targets together."""
    n, d = 6, 3
    gram, targets = spd(n * d), vectors(n, d)
    wanted = float(value(gram, targets, adjusted=adjusted))
    examples, outputs = torch.randperm(n, generator=seeded(3)), torch.randperm(d, generator=seeded(5))
    assert examples.tolist() != list(range(n)) and outputs.tolist() != list(range(d))
    for rows, columns in ((examples, range(d)), (range(n), outputs), (examples, outputs)):
        rows, columns = torch.as_tensor(rows), torch.as_tensor(columns)
        order = (rows[:, None] * d + columns).reshape(-1)
        moved = float(value(gram[order][:, order], targets[rows][:, columns], adjusted=adjusted))
        assert moved == pytest.approx(wanted, rel=1e-12)
    assert float(value(gram, targets[examples], adjusted=adjusted)) != pytest.approx(wanted, rel=1e-3)


@ADJUSTED
@pytest.mark.parametrize(("shape", "n"), [((5, 12, 1), 12), ((2, 3, 4, 3), 4), ((1, 6, 2), 6), ((0, 6, 2), 6)])
def test_many_sets_are_one_by_one(adjusted, shape, n):
    gram, sets = spd(12), vectors(*shape)
    got = value(gram, sets, adjusted=adjusted)
    assert got.shape == shape[:-2]
    one = [value(gram, each, adjusted=adjusted) for each in sets.reshape(-1, *shape[-2:])]
    for single, several in zip(one, got.reshape(-1), strict=True):
        assert float(several) == pytest.approx(float(single), rel=1e-13)
        assert float(several) != 0.0
    if sets.numel():
        whole, first = supervision_complexity(gram, sets), supervision_complexity(gram, sets.reshape(-1, n, 12 // n)[0])
        assert whole[1:] == first[1:]


def test_single_precision_grams_are_factorised_in_double():
    """At condition 1e5 a float32 solve would be off by some 1e-2."""
    gram, targets = spd(30, 1e5, dtype=F32), vectors(10, 3, dtype=F32)
    result = supervision_complexity(gram, targets)
    assert float(result.value) == pytest.approx(definition(gram, targets, 10, jitter=result.jitter), rel=1e-9)
    got = value(gram, targets, jitter=0)
    assert float(got) == pytest.approx(definition(gram, targets, 10), rel=1e-9)


def test_nothing_is_written():
    gram, targets = spd(12), vectors(2, 4, 3)
    copies = gram.clone(), targets.clone()
    supervision_complexity(gram, targets, jitter=0.1)
    supervision_complexity(gram, targets)
    assert torch.equal(gram, copies[0]) and torch.equal(targets, copies[1])


def test_strided_arguments():
    gram, targets = spd(12), vectors(4, 3)
    wide, tall = torch.zeros(24, 24, dtype=F64), torch.zeros(3, 8, dtype=F64)
    wide[::2, ::2], tall[:, ::2] = gram, targets.T
    assert float(value(wide[::2, ::2], tall[:, ::2].T)) == pytest.approx(float(value(gram, targets)), rel=1e-13)


def test_from_a_network_to_its_complexity():
    """The kernel of all outputs goes with the residual as it is: rows and targets are in one order."""
    model, x = network("mlp"), inputs("mlp", 4)
    gram = complexity.empirical_ntk(model, x, progress=False)
    targets = complexity.residual(model.eval()(x), torch.tensor([0, 2, 1, 1]))
    result = supervision_complexity(gram, targets)
    y = torch.stack([targets[i, c] for i in range(4) for c in range(OUTPUTS)])
    kernel = jittered(gram, result.jitter)
    wanted = (y @ torch.linalg.solve(kernel, y) * kernel.trace()).sqrt() / 4
    assert float(result.value) == pytest.approx(float(wanted), rel=1e-9)
    assert result.condition < 1e6  # so that the tolerance above means something
