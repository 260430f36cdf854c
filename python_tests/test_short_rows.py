"""Short rows: every vocabulary up to 200, on both sides of where CPU kernels take sixteen rows at a time (192, 104).

All inputs lie at odd addresses in buffers of NaN, so that a column or a row too many shows.
"""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from cases import ALL_LOSSES, BF16, F16, F32, F64, logits, name_of, per_class
from conftest import _C, TARGETS
from oracle import distillation, divergence, eager
from oracle_trilateral import eager as eager_trilateral
from oracle_trilateral import trilateral
from run_examples import python
from tolerance import FLOORS, arithmetic, check_distances, check_gradient, check_values, scale

import kdkernels as kd

VOCABS = range(1, 201)
ROWS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 61)  # fewer than a group, whole groups, and what is left of one
PAIRS = pytest.mark.parametrize(
    "dtypes", [(F32, F32), (BF16, F16), (F64, F64)], ids=lambda pair: "-".join(map(name_of, pair))
)
# A row's length between multiples of 4 and 16, at both ends of what either direction takes in groups, and beyond.
EDGES = (1, 3, 4, 5, 15, 16, 17, 31, 100, 103, 104, 105, 112, 191, 192, 193)
ALONE = [target for target in TARGETS if target[:2] == ("cpu", "native")]  # a GPU has no groups
KERNELS = pytest.mark.parametrize("target", ALONE, ids=str, indirect=True)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def kernels(said):
    """Each kernel in turn, and its name and `said` before what fails: the answers are made once for all of them."""
    for target in ALONE:
        usual = _C.instruction_set()
        _C.use_instruction_set(target.isa or usual)
        try:
            yield target
        except AssertionError as error:
            raise AssertionError(f"{target}, {said}: {error}") from error
        finally:
            _C.use_instruction_set(usual)


def buried(x):
    """The same entries at an odd address of a buffer that holds NaN before, between and behind the rows."""
    rows, columns = x.shape
    buffer = x.new_full((rows * (columns + 3) + 1 + columns,), torch.nan)
    view = buffer[1 : 1 + rows * (columns + 3)].view(rows, columns + 3)[:, :columns]
    view.copy_(x)
    return view


def inputs(vocab, dtypes):
    """Student, teacher (rows, vocab) and labels; the number of rows goes with the vocabulary."""
    rows = ROWS[vocab % len(ROWS)]
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(vocab))
    sides = (buried(logits(rows, vocab, dtype=dtype, seed=2 * vocab + i)) for i, dtype in enumerate(dtypes))
    return *sides, labels


def forward_and_backward(call, student, upstream=None):
    leaf = student.detach().requires_grad_()
    values = call(leaf)
    (gradient,) = torch.autograd.grad(values, leaf, torch.ones_like(values) if upstream is None else upstream)
    return values.detach(), gradient


def repeated(*values, rows):
    return torch.tensor(values).repeat(rows // len(values) + 1)[:rows]


@PAIRS
def test_distillation(dtypes):
    """Rows with both terms, with either one and with none; every loss in turn, its hard side the student's or not."""
    for vocab in VOCABS:
        student, teacher, labels = inputs(vocab, dtypes)
        loss = [*ALL_LOSSES, per_class(vocab, 1 + vocab % 8)][vocab % (len(ALL_LOSSES) + 1)]
        temperature, rows, compute = (1.0, 2.0)[vocab // 3 % 2], len(labels), arithmetic(student, teacher)
        alpha, weight = repeated(0.3, 1.0, 0.0, 0.5, rows=rows), repeated(1.0, 2.0, 0.0, 0.5, 1.5, rows=rows)
        options = {"alpha": alpha, "temperature": temperature, "weight": weight, "reduction": "none"}
        answer = distillation(loss, student, teacher, labels, alpha.double(), temperature).times(weight.double())
        peer = eager(loss, student, teacher, temperature, labels, alpha).times(weight.double())
        soft, hard = scale(student, teacher, temperature, loss), scale(student, student)
        hard.gradient[torch.arange(rows), labels] += 1.0  # that element rounds the 1 that it subtracts
        student[weight == 0], teacher[alpha * weight == 0] = torch.nan, torch.nan  # what does not count is not read
        for target in kernels(f"{loss}, vocab {vocab}, rows {rows}, T {temperature}"):
            call = partial(kd.distillation, backend=target.backend, **options)
            got = forward_and_backward(lambda z: call(z, teacher, labels, loss), student)  # noqa: B023
            check_values(got[0], answer, peer, soft.plus(hard).times(2.0), compute)
            check_gradient(got[1], answer, peer, soft.plus(hard).times(2.0), compute)


def test_divergence():
    """No labels, no weights."""
    for vocab in VOCABS:
        student, teacher, _ = inputs(vocab, (F32, F32))
        loss = ALL_LOSSES[vocab % len(ALL_LOSSES)]
        answer, peer = (f(loss, student, teacher, 2.0) for f in (divergence, eager))
        size = scale(student, teacher, 2.0, loss)
        for target in kernels(f"{loss}, vocab {vocab}, rows {len(student)}"):
            call = partial(kd.divergence, temperature=2.0, reduction="none", backend=target.backend)
            got = forward_and_backward(lambda z: call(z, teacher, loss), student)  # noqa: B023
            check_values(got[0], answer, peer, size, F32)
            check_gradient(got[1], answer, peer, size, F32)


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_softmax(log, dtype):
    compute = FLOORS[F64 if dtype == F64 else F32].value
    for vocab in VOCABS:
        z = inputs(vocab, (dtype, dtype))[0]
        wide = [x / 2.0 for x in (z.double(), z.to(torch.promote_types(dtype, F32)))]
        wanted, peer = ((x.log_softmax(-1) if log else x.softmax(-1)).double() for x in wide)
        limit = (peer - wanted).abs() + FLOORS[dtype].rounding * wanted.abs() + FLOORS[dtype].smallest
        limit = limit + compute * (wanted.abs() + 1 if log else wanted * (1 - wanted.log()))  # of the logarithm
        for target in kernels(f"vocab {vocab}, rows {len(z)}"):
            got = (kd.log_softmax if log else kd.softmax)(z, temperature=2.0, backend=target.backend)
            assert got.dtype == dtype and bool(((got.double() - wanted).abs() <= limit).all())


@pytest.mark.parametrize(
    ("dtypes", "means"),
    [((F32, F32), False), ((F32, F32), True), ((BF16, F16), False), ((F64, F64), True)],
    ids=name_of,
)
def test_trilateral_distances(dtypes, means):
    for vocab in VOCABS:
        student, teacher, labels = inputs(vocab, dtypes)
        table, squared = None, vocab // 3 % 2 == 1
        if means:
            table = buried(logits(vocab, vocab, seed=3).softmax(-1).to((F32, F16, F64)[vocab % 3]))
        compute = arithmetic(student, teacher)
        # Of one sign: in a single row, pulls that cancel leave less than the rule of the whole gradient's norm is for.
        upstream = logits(len(labels), 5 if means else 3, dtype=compute, seed=7).abs()
        arguments = (student, teacher, labels, upstream, table, squared)
        (answer, size), peer = trilateral(*arguments), eager_trilateral(*arguments)
        for target in kernels(f"vocab {vocab}, rows {len(labels)}, squared {squared}"):
            call = partial(kd.trilateral_distances, backend=target.backend)
            got = forward_and_backward(lambda z: call(z, teacher, labels, table, squared), student, upstream)  # noqa: B023
            check_distances(got[0], answer, peer, size, compute)
            check_gradient(got[1], answer, peer, size, compute)


@KERNELS
@pytest.mark.parametrize("vocab", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan, -torch.inf])
def test_no_distribution_no_distance(target, vocab, bad):
    """Also where the label's column is all that there is; the teacher's distance to the label is not concerned."""
    student, teacher = torch.full((3, vocab), bad), logits(3, vocab)
    call = partial(kd.trilateral_distances, teacher=teacher, labels=torch.arange(3) % vocab, backend=target.backend)
    distances, gradient = forward_and_backward(lambda z: call(z), student)
    assert bool(distances[:, ::2].isnan().all() and distances[:, 1].isfinite().all() and gradient.isnan().all())


SMALL_STACK = """
import threading, torch, kdkernels as kd
torch.set_num_threads(1)
student, teacher, labels = torch.randn(40, 192).double(), torch.randn(40, 192).double(), torch.arange(40)
leaf, done = student.clone().requires_grad_(), []
def work():
    kd.distillation(student, teacher, labels)
    kd.softmax(student)
    kd.trilateral_distances(student, teacher, labels)
    torch.autograd.grad(distances.sum(), leaf)
    done.append(True)
distances = kd.trilateral_distances(leaf, teacher, labels)
threading.stack_size(128 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(done)
"""


def test_threads_with_a_small_stack(tmp_path):
    """What some C libraries give a thread; the lanes of a group alone would be more."""
    assert "[True]" in python(tmp_path, "-c", SMALL_STACK)


def results(student, teacher, labels, table, target):
    """Everything that goes by rows: values and gradients of all that sixteen rows are taken at a time for."""
    alpha, where = 0.25 * (labels % 5).to(torch.float64), {"backend": target.backend}
    alpha = alpha.to(arithmetic(student, teacher))
    yield from forward_and_backward(
        lambda z: kd.distillation(z, teacher, labels, alpha=alpha, temperature=2.0, reduction="none", **where), student
    )
    yield from forward_and_backward(
        lambda z: kd.divergence(z, teacher, kd.JensenShannon(), reduction="none", **where), student
    )
    yield from forward_and_backward(lambda z: kd.trilateral_distances(z, teacher, labels, table, **where), student)
    yield kd.softmax(student, temperature=3.0, **where)
    yield kd.log_softmax(student, **where)


@KERNELS
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_a_row_does_not_know_its_neighbours(target, dtype):
    """The same bits in another lane, group and thread, beside rows of NaN and of either infinity."""
    for vocab in EDGES:
        student, teacher = (logits(300, vocab, dtype=dtype, seed=seed) for seed in (0, 1))
        labels = torch.arange(300) % vocab
        table = logits(vocab, vocab, seed=3).softmax(-1)
        with threads(1):
            wanted = list(results(student, teacher, labels, table, target))
        for count, kept in ((1, 131), (2, 300)):
            order = torch.randperm(300, generator=torch.Generator().manual_seed(vocab))[:kept]
            moved, other = buried(student[order]), buried(teacher[order])
            for first, value in enumerate((torch.nan, torch.inf, -torch.inf)):
                moved[first::12, first % vocab :], other[first + 3 :: 12, : first + 1] = value, value
            clean = moved.isfinite().all(-1) & other.isfinite().all(-1)
            with threads(count):
                got = results(moved, other, labels[order], table, target)
            for before, after in zip(wanted, got, strict=True):
                assert torch.equal(before[order][clean], after[clean]), (vocab, count)


@KERNELS
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_nothing_is_written_beside_the_rows(target, dtype):
    """A gradient in the student's place, and that the NaN around it is still there."""
    for vocab in VOCABS:
        rows = (1, 17, 48)[vocab % 3]
        plain, teacher = (logits(rows, vocab, dtype=dtype, seed=seed) for seed in (0, 1))
        given = {"backend": target.backend, "reduction": "sum"}
        _, wanted = forward_and_backward(lambda z, p=teacher, given=given: kd.divergence(z, p, **given), plain)
        wide = torch.nn.functional.pad(plain.requires_grad_(), (3, 37, 1, 17), value=torch.nan)
        kd.divergence(wide[1 : 1 + rows, 3 : 3 + vocab], teacher, inplace=True, **given)
        around = torch.nn.functional.pad(wanted, (3, 37, 1, 17), value=torch.nan)
        assert torch.equal(wide.detach().nan_to_num(7.0), around.nan_to_num(7.0)), vocab
