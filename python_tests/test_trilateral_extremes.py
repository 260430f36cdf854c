"""Trilateral distances at their edges: equal rows, certain students, -inf, NaN, huge logits, ignored rows, nothing."""

import math

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of, pair
from oracle_trilateral import eager, trilateral
from tolerance import FLOORS, arithmetic, check_distances, check_gradient

import kdkernels as kd

INF = math.inf
SQUARED = pytest.mark.parametrize("squared", [False, True], ids=["lengths", "squares"])


def run(target, student, teacher, labels, table=None, squared=False, upstream=None, **options):
    """(distances, gradient) on the CPU; an upstream of ones unless one is given."""
    leaf = student.detach().to(target.device).requires_grad_()
    teacher, labels, table = (x if x is None else x.to(target.device) for x in (teacher, labels, table))
    got = kd.trilateral_distances(leaf, teacher, labels, table, squared, backend=target.backend, **options)
    (gradient,) = torch.autograd.grad(got, leaf, torch.ones_like(got) if upstream is None else upstream.to(got))
    return got.detach().cpu(), gradient.cpu()


def check(target, student, teacher, labels, table=None, squared=False, which=None, depth=1.0):
    """The rule of tolerance.py for all distances together, or with the gradient of one of them."""
    columns = 3 if table is None else 5
    upstream = logits(student.shape[0], columns, dtype=arithmetic(student, teacher), seed=7)
    if which is not None:
        upstream = torch.where(torch.arange(columns) == which, upstream, 0.0)
    arguments = (student, teacher, labels, upstream, table, squared)
    (answer, size), peer = trilateral(*arguments), eager(*arguments, target.device)
    values, gradient = run(target, student, teacher, labels, table, squared, upstream)
    assert bool(values.isfinite().all())
    assert bool(gradient.isfinite().all())
    compute = arithmetic(student, teacher)
    check_distances(values, answer, peer, size.times(depth), compute)
    check_gradient(gradient, answer, peer, size.deeper(depth), compute)


def confident(rest, vocab=100, dtype=F32, seed=0):
    """Logits whose softmax leaves ``rest`` to all classes but class 3, and that label."""
    z = logits(2, vocab, dtype=F64, seed=seed)
    others = torch.cat([z[:, :3], z[:, 4:]], -1).logsumexp(-1)
    z[:, 3] = others + math.log1p(-rest) - math.log(rest)
    return z.to(dtype), torch.tensor([3, 3])


@SQUARED
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
@pytest.mark.parametrize("vocab", [7, 100, 1271])
def test_equal_student_and_teacher(target, vocab, dtype, squared):
    """|S - P| = 0 exactly, with the zero subgradient: what is left of the gradient is that of the others."""
    student, labels = logits(3, vocab, dtype=dtype), torch.tensor([0, vocab - 1, vocab // 2])
    upstream = torch.tensor([[0.0, 0.0, 5.0]] * 3)
    values, gradient = run(target, student, student.clone(), labels, squared=squared, upstream=upstream)
    assert bool((values[:, 2] == 0).all())
    assert torch.equal(values[:, 0], values[:, 1])
    # Of a square it is 2 (S - P), which may keep a rounding; a length divides it by d, and any is too much.
    assert float(gradient.abs().max()) <= (FLOORS[arithmetic(student, student)].value if squared else 0.0)
    check(target, student, student.clone(), labels, squared=squared)


@SQUARED
def test_a_student_that_is_its_class_mean_and_one_that_is_its_label(target, squared):
    """d4 = 0 and d1 = 0: no 0 / 0 in either."""
    student = torch.full((2, 8), -INF)
    student[:, 3], labels, table = 0.0, torch.tensor([3, 3]), torch.eye(8)
    values, gradient = run(target, student, logits(2, 8), labels, table, squared)
    assert bool((values[:, [0, 3, 4]] == 0).all())
    assert torch.equal(values[:, 1], values[:, 2])
    assert bool((gradient == 0).all())
    uniform = torch.full((8, 8), 0.125)
    values, gradient = run(target, torch.zeros(2, 8), logits(2, 8), labels, uniform, squared, torch.eye(5)[[3, 3]])
    assert bool((values[:, 3] == 0).all())
    assert bool((gradient == 0).all())


@SQUARED
@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-12], ids=str)
@pytest.mark.parametrize("vocab", [7, 100, 1271])
def test_a_confident_student_keeps_its_digits(target, vocab, rest, squared):
    """d1 and its gradient, relative: 1 - S_y in float32 would lose some digits at 1e-3, and all of them at 1e-9."""
    student, labels = confident(rest, vocab)
    teacher, upstream = logits(2, vocab, seed=1), torch.tensor([[1.0, 0.0, 0.0]] * 2)
    if target.backend == "reference":  # PyTorch's own differences, which are held to be no worse than they are
        check(target, student, teacher, labels, squared=squared, which=0)
        return
    answer, _ = trilateral(student, teacher, labels, upstream, squared=squared)
    values, gradient = run(target, student, teacher, labels, squared=squared, upstream=upstream)
    # The exponent, some 30, is rounded to 2e-6, and its square counts twice.
    torch.testing.assert_close(values[:, 0].double(), answer.values[:, 0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double(), answer.gradient, rtol=2e-5, atol=1e-37)


def test_float32_of_pytorch_does_lose_them():
    """The trap that the test above is about is there."""
    student, labels = confident(1e-9)
    arguments = (student, logits(2, 100, seed=1), labels, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    answer, plain = trilateral(*arguments)[0], eager(*arguments)
    assert bool(((plain.values - answer.values).abs()[:, 0] > 0.1 * answer.values[:, 0]).all())
    assert float((plain.gradient - answer.gradient).norm()) > 0.1 * float(answer.gradient.norm())


@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=name_of)
def test_a_confident_student_of_other_dtypes(target, dtype):
    student, labels = confident(1e-5, dtype=dtype)
    teacher = logits(2, 100, dtype=dtype, seed=1)
    if target.backend == "reference":
        check(target, student, teacher, labels)
        return
    values, _ = run(target, student, teacher, labels)
    exact, _ = trilateral(student, student, labels, torch.ones(2, 3))
    torch.testing.assert_close(values[:, 0].double(), exact.values[:, 0], rtol=5e-6, atol=0.0)


@SQUARED
@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9], ids=str)
def test_student_and_teacher_both_confident(target, rest, squared):
    """All distances are small: the class mean's too, which is what such a teacher gives to the class."""
    student, labels = confident(rest)
    teacher, _ = confident(3 * rest, seed=1)
    table = torch.zeros(100, 100)
    table[3] = 2 * rest / 99
    table[3, 3] = 1 - 2 * rest
    for means in (None, table):
        check(target, student, teacher, labels, means, squared)
    check(target, student, teacher, labels, None, squared, which=2)


@SQUARED
@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6], ids=str)
@pytest.mark.parametrize("upstream", [(0.0, 0.0, 1.0), (1.0, -2.0, 3.0)], ids=["d3", "all"])
def test_student_close_to_the_teacher(target, distance, upstream, squared):
    """Late in training S - P is made of last digits: its gradient is as exact as PyTorch's, to one rounding of S."""
    teacher, labels = logits(5, 1000), torch.arange(5)
    student = teacher + distance * logits(5, 1000, seed=3)
    upstream = torch.tensor([upstream] * 5)
    arguments = (student, teacher, labels, upstream, None, squared)
    (answer, size), peer = trilateral(*arguments), eager(*arguments, target.device)
    values, gradient = run(target, student, teacher, labels, None, squared, upstream)
    check_distances(values, answer, peer, size, F32)
    error, lent = gradient.double() - answer.gradient, peer.gradient - answer.gradient
    assert bool((error.abs() <= lent.abs() + FLOORS[F32].probability * size.gradient).all())
    assert float(error.norm()) <= float(lent.norm()) + 2**-24 * float(size.gradient.norm())


@SQUARED
@pytest.mark.parametrize("side", ["student", "teacher", "both", "student's label"])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_minus_infinity(target, dtype, side, squared):
    """A class without mass, the label's own included, is one like any other: all distances stay finite."""
    student, teacher = logits(3, 100, dtype=dtype), logits(3, 100, dtype=dtype, seed=1)
    table, labels = logits(100, 100, seed=2).softmax(-1), torch.tensor([5, 98, 50])
    if side == "student's label":
        student[torch.arange(3), labels] = -INF
    else:
        for name, z in (("student", student), ("teacher", teacher)):
            z[:, ::4] = z[:, ::4] if side not in (name, "both") else -INF
    check(target, student, teacher, labels, table, squared)


@SQUARED
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
def test_logits_of_ten_thousand(target, dtype, squared):
    student, teacher = (
        (logits(3, 1000, dtype=F64, seed=seed).sign() * 1e4 + logits(3, 1000, dtype=F64)).to(dtype) for seed in (2, 3)
    )
    check(target, student, teacher, torch.tensor([0, 999, 500]), squared=squared, depth=1.0 + 2e4 / 4)


def test_huge_logits_of_one_sign_only_shift(target):
    for offset in (2.0**13, -(2.0**13)):
        check(target, logits(3, 100) + offset, logits(3, 100, seed=1) - offset, torch.tensor([0, 99, 50]))


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("poison", [math.nan, INF], ids=str)
@pytest.mark.parametrize("column", [0, 5, 700, 1270])
@pytest.mark.parametrize("means", [False, True], ids=["three", "five"])
def test_nan_stays_in_its_row(target, side, poison, column, means):
    """NaN in, or +inf (whose softmax is NaN): NaN in what it enters, the gradient included, and in no other row."""
    student, teacher, labels = logits(3, 1271), logits(3, 1271, seed=1), torch.tensor([0, 5, 2])
    table = torch.full((1, 1271), 1 / 1271).expand(1271, 1271) if means else None
    clean = run(target, student, teacher, labels, table)
    (student if side == "student" else teacher)[1, column] = poison
    values, gradient = run(target, student, teacher, labels, table)
    entered = torch.tensor([True, False, True, True, False] if side == "student" else [False, True, True, False, False])
    assert bool((values[1].isnan() == entered[: values.shape[1]]).all())
    assert bool(gradient[1].isnan().all())
    for row in (0, 2):
        assert torch.equal(values[row], clean[0][row])
        assert torch.equal(gradient[row], clean[1][row])


def test_a_row_of_minus_infinity_is_nan_as_in_pytorch(target):
    student = logits(2, 100)
    student[1] = -INF
    values, gradient = run(target, student, logits(2, 100, seed=1), torch.tensor([0, 1]))
    assert values.isnan().tolist() == [[False] * 3, [True, False, True]]
    assert gradient.isnan().all(-1).tolist() == [False, True]


@SQUARED
@pytest.mark.parametrize("ignore_index", [-100, -1, 7, 1000])
@pytest.mark.parametrize("poison", [math.nan, INF, -INF], ids=str)
def test_ignored_rows_are_not_read(target, poison, ignore_index, squared):
    student, teacher = logits(5, 100), logits(5, 100, seed=1)
    labels, table = torch.tensor([3, ignore_index, 0, ignore_index, 99]), logits(100, 100, seed=2).softmax(-1)
    upstream = logits(5, 5, seed=7)
    options = {"squared": squared, "upstream": upstream, "ignore_index": ignore_index}
    clean = run(target, student, teacher, labels, table, **options)
    student[[1, 3]], teacher[[1, 3]] = poison, poison
    upstream[[1, 3]] = poison
    table[7] = table[7] if ignore_index == 7 else poison
    dirty = run(target, student, teacher, labels, table, **options)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert bool((b[[1, 3]] == 0).all())
        assert bool((b[[0, 2, 4]] != 0).any(-1).all())


@pytest.mark.parametrize("leading", [(), (1,), (0,), (2, 0), (2, 3), (2, 1, 3, 2)], ids=str)
def test_any_leading_shape(where, leading):
    student, teacher = pair(*leading, 7, device=where.device)
    labels = torch.randint(7, leading, generator=torch.Generator().manual_seed(0)).to(where.device)
    for columns, table in ((3, None), (5, torch.eye(7, device=where.device))):
        got = kd.trilateral_distances(student, teacher, labels, table, backend=where.backend)
        (gradient,) = torch.autograd.grad(got.sum(), student)
        assert got.shape == (*leading, columns)
        assert gradient.shape == student.shape
        flat = kd.trilateral_distances(
            student.reshape(-1, 7), teacher.reshape(-1, 7), labels.reshape(-1), table, backend=where.backend
        )
        assert torch.equal(got.reshape(-1, columns), flat)
