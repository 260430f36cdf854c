"""README, "Promises": on the CPU a row's numbers are the same bits for any threads, rows beside it and alignment."""

import pytest
import torch
from cases import ALL_LOSSES, BF16, F16, F32, F64, logits, name_of, per_class

import kdkernels as kd
from kdkernels import _C

# Short rows go sixteen to a vector, up to 192 columns; longer ones have ragged ends; the last is many blocks.
SHAPES = [(37, 1), (37, 10), (33, 100), (19, 193), (5, 1271), (3, 20011)]
LARGEST = max(vocab for _, vocab in SHAPES)
TABLES = {vocab: per_class(vocab, 3) for _, vocab in SHAPES}


def operations():
    """Each as a function of student, teacher, labels and a number per row that gives one row or number for each row."""
    options = {"reduction": "none", "backend": "native", "temperature": 2.0}
    ops = {name_of(loss): lambda z, t, y, u, loss=loss: kd.divergence(z, t, loss, **options) for loss in ALL_LOSSES}
    ops["per_class"] = lambda z, t, y, u: kd.divergence(z, t, TABLES[z.shape[-1]], weight=u, **options)
    ops["masked"] = lambda z, t, y, u: kd.divergence(z, t, mask=u > 0.3, **options)
    ops["distillation"] = lambda z, t, y, u: kd.distillation(z, t, y, kd.JensenShannon(), alpha=u, **options)
    for squared in (False, True):
        ops[f"trilateral-{squared}"] = lambda z, t, y, u, squared=squared: kd.trilateral_distances(
            z, t, y, squared=squared, backend="native"
        )
    ops["class_mean"] = lambda z, t, y, u: kd.trilateral_distances(z, t, y, means(z), backend="native")
    ops["softmax"] = lambda z, t, y, u: kd.softmax(z, temperature=0.5, backend="native")
    ops["log_softmax"] = lambda z, t, y, u: kd.log_softmax(z, temperature=0.5, backend="native")
    return ops


def means(student):
    vocab = student.shape[-1]
    return logits(1, LARGEST, seed=5)[:, :vocab].softmax(-1).expand(vocab, vocab)


OPERATIONS = operations()


def inputs(shape, dtype):
    rows, vocab = shape
    student, teacher = (logits(rows, vocab, dtype=dtype, seed=seed) for seed in (0, 1))
    return student, teacher, torch.arange(rows) % vocab, torch.linspace(0.1, 0.9, rows)


def results(name, student, teacher, labels, per_row):
    """What the operation gives, and its gradient for an upstream of each row's own."""
    student = student.detach().requires_grad_()
    output = OPERATIONS[name](student, teacher, labels, per_row)
    upstream = per_row.to(output.dtype)
    if output.dim() > 1:
        upstream = upstream[:, None] * torch.linspace(-1.0, 2.0, output.shape[-1], dtype=output.dtype)
    return output.detach(), *torch.autograd.grad(output, student, upstream)


def assert_same_bits(got, wanted, where):
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b), f"{where}: {(a != b).sum().item()} of {a.numel()} differ"


@pytest.fixture(params=_C.instruction_sets())
def isa(request):
    """One at a time: another instruction set may round otherwise."""
    usual = _C.instruction_set()
    _C.use_instruction_set(request.param)
    yield request.param
    _C.use_instruction_set(usual)


@pytest.fixture
def threads():
    usual = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(usual)


everything = pytest.mark.parametrize("name", OPERATIONS)
dtypes = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)


@everything
@dtypes
def test_any_number_of_threads(isa, threads, name, dtype):
    for shape in SHAPES:
        given = inputs(shape, dtype)
        threads(1)
        wanted = results(name, *given)
        for count in (2, 3, 8):
            threads(count)
            assert_same_bits(results(name, *given), wanted, (shape, count))


@everything
@dtypes
def test_any_rows_beside_it(isa, name, dtype):
    """Alone, in the middle of others, as the first and the last of a batch, and in another order."""
    for shape in SHAPES:
        given, rows = inputs(shape, dtype), shape[0]
        whole = results(name, *given)
        pieces = [slice(row, row + 1) for row in sorted({0, 1, rows // 2, 15, 16, rows - 1}) if row < rows]
        for piece in [*pieces, slice(1, None), slice(0, 17), slice(rows // 3, rows // 3 + 2), slice(None, None, 2)]:
            part = results(name, *(each[piece] for each in given))
            assert_same_bits(part, [each[piece] for each in whole], (shape, piece))
        backwards = results(name, *(each.flip(0) for each in given))
        assert_same_bits(backwards, [each.flip(0) for each in whole], (shape, "backwards"))


@everything
@dtypes
def test_any_alignment(isa, name, dtype):
    """Both sides moved by 1 to 16 elements, together and apart, and rows that lie an odd number of elements apart."""
    for shape in SHAPES:
        student, teacher, *per_row = inputs(shape, dtype)
        wanted = results(name, student, teacher, *per_row)
        for offset in range(1, 17):
            apart = moved(student, offset), moved(teacher, offset * 5 % 17), *per_row
            assert_same_bits(results(name, *apart), wanted, (shape, offset))
        padded = moved(student, 3, stride=shape[1] + 1), moved(teacher, 1, stride=shape[1] + 3), *per_row
        assert_same_bits(results(name, *padded), wanted, (shape, "padded"))


def moved(tensor, offset, stride=None):
    rows, vocab = tensor.shape
    stride = stride or vocab
    buffer = torch.full((offset + rows * stride,), torch.nan, dtype=tensor.dtype)
    return buffer.as_strided((rows, vocab), (stride, 1), offset).copy_(tensor)


@dtypes
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=name_of)
def test_in_place(isa, loss, dtype):
    for shape in SHAPES:
        student, teacher, labels, alpha = inputs(shape, dtype)

        def gradient(inplace, z=student, teacher=teacher, labels=labels, alpha=alpha):
            leaf = z.detach().requires_grad_()
            kd.distillation(leaf * 1, teacher, labels, loss, alpha=alpha, inplace=inplace, backend="native").backward()
            return leaf.grad

        assert torch.equal(gradient(True), gradient(False)), shape


@everything
def test_again_and_again(isa, threads, name):
    """Scheduling varies from run to run, the numbers do not; nor with what the memory held before."""
    threads(8)
    for shape in SHAPES:
        given = inputs(shape, F32)
        wanted = results(name, *given)
        for _ in range(5):
            assert_same_bits(results(name, *given), wanted, shape)


@pytest.mark.parametrize("rows", [32769, 100_003])
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_the_sum_over_many_rows(rows, reduction):
    """PyTorch's own sum of more than 32768 numbers depends on the number of threads."""
    student, teacher = logits(rows, 3), logits(rows, 3, seed=1)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(kd.divergence(student, teacher, reduction=reduction, backend="native"))
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(value, found[0]) for value in found)
    exact = kd.divergence(student.double(), teacher.double(), reduction=reduction, backend="reference")
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-6, atol=0.0)
