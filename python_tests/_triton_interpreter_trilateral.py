"""The trilateral kernels under the interpreter, against the reference backend in float64."""

from __future__ import annotations

import pytest
import torch
from _triton_interpreter import EPSILON, INF, NAN, VOCABS, empty_like, rows_of

from kdkernels.backends import STATISTICS, reference
from kdkernels.backends import triton as backend
from kdkernels.backends.calls import Trilateral

IGNORED = -100


def class_means(rows, vocab, dtype=torch.float32, seed=7):
    """The first rows of a table: only a label's own row is ever read."""
    return rows_of(rows, vocab, scale=1.0, seed=seed).softmax(-1).to(dtype)


def run(student, teacher, labels, mean=None, squared=False, gradient=None, ignore_index=IGNORED):
    """(distances, gradient, upstream, statistics)."""
    call = Trilateral(labels, squared, ignore_index)
    statistics = torch.full((len(student), STATISTICS), NAN)
    gradient = empty_like(student) if gradient is None else gradient
    distances = backend.trilateral(student, teacher, mean, statistics, call)
    upstream = torch.randn(distances.shape, generator=torch.Generator().manual_seed(3))
    backend.trilateral_backward(student, teacher, mean, statistics, distances, upstream, gradient, call)
    return distances, gradient, upstream, statistics


def oracle(student, teacher, labels, upstream, mean=None, squared=False, ignore_index=IGNORED):
    z = student.double().requires_grad_()
    mean = None if mean is None else mean.double()
    expected = reference.trilateral(z, teacher.double(), mean, Trilateral(labels, squared, ignore_index))
    expected.backward(upstream.double())
    return expected.detach(), z.grad


def assert_right(student, teacher, labels, mean=None, squared=False, gradient=None, ignore_index=IGNORED):
    distances, gradient, upstream, _ = run(student, teacher, labels, mean, squared, gradient, ignore_index)
    expected = oracle(student, teacher, labels, upstream, mean, squared, ignore_index)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances.double(), expected[0], rtol=2e-6, atol=1e-6, equal_nan=True)
    rounding = EPSILON[gradient.dtype]
    torch.testing.assert_close(
        gradient.double(), expected[1], rtol=rounding + 2e-5, atol=1e-6 + rounding / 256, equal_nan=True
    )
    return distances, gradient


@pytest.mark.parametrize("with_mean, squared", ((False, False), (True, False), (True, True)))
@pytest.mark.parametrize("vocab", VOCABS)
def test_distances_and_gradients(form, vocab, with_mean, squared):
    known = min(vocab, 100)
    labels = torch.tensor([known // 2, IGNORED, known - 1])
    mean = class_means(known, vocab) if with_mean else None
    assert_right(rows_of(3, vocab), rows_of(3, vocab, seed=1), labels, mean, squared)


@pytest.mark.parametrize("vocab", (20000, 20001))
def test_a_long_row_in_real_tiles(vocab):
    student, teacher = rows_of(1, vocab), rows_of(1, vocab, seed=1)
    assert_right(student, teacher, torch.tensor([3]), class_means(4, vocab))
    assert_right(student, teacher, torch.tensor([vocab - 1]))


@pytest.mark.parametrize(
    "dtypes",
    (
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.bfloat16, torch.float64),
    ),
    ids=str,
)
def test_dtypes(form, dtypes):
    student, teacher = rows_of(2, 144, dtypes[0]), rows_of(2, 144, dtypes[1], seed=1)
    assert_right(student, teacher, torch.tensor([143, 0]), class_means(144, 144, dtypes[2]))


@pytest.mark.parametrize("aligned", (True, False))
def test_strided_rows(form, aligned):
    """Rows of wider buffers on every side; nothing beside the gradient is touched."""
    vocab, beside = (272, 16) if aligned else (271, 3)
    student, teacher = rows_of(3, vocab + beside)[:, :vocab], rows_of(3, 2 * vocab, seed=1)[:, vocab:]
    mean = class_means(8, vocab + beside)[:, :vocab]
    wide = torch.full((3, vocab + beside), NAN)
    assert_right(student, teacher, torch.tensor([7, 0, 5]), mean, gradient=wide[:, :vocab])
    assert wide[:, vocab:].isnan().all()


def test_masked_columns(form):
    """-inf on both sides, on one, and in all of a first tile; the gradient there is 0."""
    student, teacher = rows_of(2, 300), rows_of(2, 300, seed=1)
    student[0, :140], teacher[0, :140] = -INF, -INF
    student[1, 5], teacher[1, 9] = -INF, -INF
    _, gradient = assert_right(student, teacher, torch.tensor([200, 9]), class_means(300, 300))
    assert (gradient[0, :140] == 0).all() and gradient[1, 5] == 0


def test_a_label_of_no_mass(form):
    student, teacher = rows_of(1, 300), rows_of(1, 300, seed=1)
    student[0, 4], teacher[0, 4] = -INF, -INF
    assert_right(student, teacher, torch.tensor([4]))


@pytest.mark.parametrize("label, squared", ((-1, False), (100, True), (2**31 + 5, False), (-(2**63), True)))
def test_labels_that_are_no_class(form, label, squared):
    """Ignored rows are not read and 0, other labels make NaN rows; the neighbours are unharmed."""
    student, teacher = rows_of(4, 100), rows_of(4, 100, seed=1)
    student[1], teacher[1] = NAN, INF
    labels = torch.tensor([99, IGNORED, label, 0])
    distances, gradient, _, statistics = run(student, teacher, labels, class_means(100, 100), squared)
    assert (distances[1] == 0).all() and (gradient[1] == 0).all() and (statistics[1] == 0).all()
    assert distances[2].isnan().all() and gradient[2].isnan().all() and statistics[2].isnan().all()
    counted = torch.tensor([0, 3])
    assert distances[counted].isfinite().all() and gradient[counted].isfinite().all()


def test_an_ignored_class(form):
    student, teacher = rows_of(3, 100), rows_of(3, 100, seed=1)
    student[1] = NAN
    distances, _ = assert_right(student, teacher, torch.tensor([4, 3, 2]), class_means(100, 100), ignore_index=3)
    assert (distances[1] == 0).all()


@pytest.mark.parametrize("gap", (5.0, 30.0))
def test_a_confident_student_keeps_its_digits(form, gap):
    """1 - S_y and S_y - P_y of probabilities that round to 1 in float32: small relative errors, not absolute ones.

    The reference backend has them as differences, which leave float64 no digits either: here they are sums.
    """
    student, teacher = rows_of(2, 300), rows_of(2, 300, seed=1)
    student[:, 7], teacher[0, 7] = student.max() + gap, teacher.max() + gap + 1
    distances, gradient, upstream, statistics = run(student, teacher, torch.tensor([7, 7]))
    z, others = student.double().requires_grad_(), torch.arange(300) != 7
    q, p = z.softmax(-1)[:, others], teacher.double().softmax(-1)[:, others]
    rest_q, rest_p = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
    edges = torch.cat((q, rest_q), -1), torch.cat((p, rest_p), -1), torch.cat((q - p, rest_p - rest_q), -1)
    expected = torch.stack([torch.linalg.vector_norm(edge, dim=-1) for edge in edges], -1)
    expected.backward(upstream.double())
    torch.testing.assert_close(distances.double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), z.grad, rtol=1e-4, atol=1e-5 * z.grad.abs().max().item())
    torch.testing.assert_close(statistics[:, 4].double(), rest_q[:, 0].detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics[:, 5].double(), (rest_p - rest_q)[:, 0].detach(), rtol=1e-5, atol=0)


def test_statistics(form):
    student, teacher, mean = rows_of(3, 200), rows_of(3, 200, seed=1), class_means(200, 200)
    student[0, 5] += 20.0
    labels = torch.tensor([5, 9, 199])
    *_, found = run(student, teacher, labels, mean)
    q, p, m = student.double().softmax(-1), teacher.double().softmax(-1), mean[labels].double()
    other = torch.arange(200) != labels[:, None]
    at_label = [x.gather(-1, labels[:, None])[:, 0] for x in (q, p, m)]
    expected = [
        student.double().amax(-1),
        1 / (student.double() - student.double().amax(-1, keepdim=True)).exp().sum(-1),
        teacher.double().amax(-1),
        1 / (teacher.double() - teacher.double().amax(-1, keepdim=True)).exp().sum(-1),
        (q * other).sum(-1),
        at_label[0] - at_label[1],
        at_label[0] - at_label[2],
        (q * q * other).sum(-1),
        (q * (q - p) * other).sum(-1),
        (q * (q - m) * other).sum(-1),
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected, -1), rtol=5e-6, atol=1e-9)


def test_statistics_are_not_needed(form):
    student, teacher, labels = rows_of(2, 300), rows_of(2, 300, seed=1), torch.tensor([0, 299])
    for mean in (None, class_means(300, 300)):
        alone = backend.trilateral(student, teacher, mean, None, Trilateral(labels))
        assert torch.equal(alone, run(student, teacher, labels, mean)[0])


def test_distances_of_zero_have_the_zero_subgradient(form):
    """A student equal to the teacher; one that is the label; a class mean that is the student."""
    student = rows_of(3, 128)
    student[1], student[2] = -INF, 0.0
    student[1, 3] = 0.0
    mean = torch.full((4, 128), 1 / 128)
    distances, gradient = assert_right(student, student.clone(), torch.tensor([1, 3, 2]), mean)
    assert (distances[:, 2] == 0).all() and distances[1, 0] == 0 and distances[2, 3] == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("vocab", (1, 200))
@pytest.mark.parametrize("poison, squared", ((NAN, True), (NAN, False), (INF, False), ("all -inf", False)))
def test_undefined_rows_are_nan_and_stay_alone(form, poison, vocab, squared):
    for side, touched in ((0, (0, 2)), (1, (1, 2))):
        logits = [rows_of(2, vocab), rows_of(2, vocab, seed=1)]
        if poison == "all -inf":
            logits[side][1] = -INF
        else:
            logits[side][1, vocab // 2] = poison
        distances, gradient, *_ = run(*logits, torch.tensor([0, vocab // 2]), None, squared)
        assert distances[1, list(touched)].isnan().all() and gradient[1].isnan().all()
        assert distances[0].isfinite().all() and gradient[0].isfinite().all()


def test_a_class_mean_beyond_31_bits(tmp_path, form):
    """Row 2 of a table that starts 2^31 elements into a sparse file: the offset must not wrap."""
    vocab, stride = 100, 2**30 + 16
    storage = torch.from_file(str(tmp_path / "mean"), shared=True, size=2 * stride + vocab, dtype=torch.float16)
    mean = storage.as_strided((3, vocab), (stride, 1))
    mean[2] = class_means(1, vocab, torch.float16)[0]
    student, teacher, labels = rows_of(1, vocab), rows_of(1, vocab, seed=1), torch.tensor([2])
    found = run(student, teacher, labels, mean)
    near = run(student, teacher, labels, mean[2].expand(3, vocab))
    assert torch.equal(found[0], near[0]) and torch.equal(found[1], near[1])


def test_no_rows_launch_nothing():
    empty, labels = torch.empty(0, 10), torch.empty(0, dtype=torch.int64)
    distances, *_ = run(empty, empty, labels, class_means(10, 10))
    assert distances.shape == (0, 5)
