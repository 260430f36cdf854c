"""What trilateral distances are as geometry, what may be passed, and what is refused and how."""

import re

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of, pair, value_and_gradient
from oracle_trilateral import trilateral

import kdkernels as kd

LABELS = torch.tensor([3, 0, 99, 50, 7])


def batch(where, rows=5, vocab=100, dtype=F64):
    """Student, teacher, labels and class mean; float64, so that what is compared is the definition."""
    student, teacher = (logits(rows, vocab, dtype=dtype, device=where.device, seed=seed) for seed in (0, 1))
    table = logits(vocab, vocab, dtype=F64, device=where.device, seed=3).softmax(-1)
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(5))
    return student, teacher, labels.to(where.device), table


def call(where, student, teacher, labels, table=None, **options):
    return kd.trilateral_distances(student, teacher, labels, table, backend=where.backend, **options)


def close(got, wanted, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(got.cpu().double(), wanted.cpu().double(), rtol=rtol, atol=atol)


def test_triangle_inequalities(where):
    """S, P, G and M are four points: e_sg = e_tg + e_st and its like bound each distance by the two others."""
    for spread in (0.1, 1.0, 10.0):
        student, teacher, labels, table = batch(where, 200, 7)
        sg, pg, sp, sm, mg = call(where, spread * student, teacher / spread, labels, table).unbind(-1)
        for a, b, c in ((sg, pg, sp), (sg, sm, mg)):
            for longest, one, other in ((a, b, c), (b, c, a), (c, a, b)):
                assert bool((longest <= one + other + 1e-14).all())
        assert float(torch.stack([sg, pg, sp, sm, mg]).max()) <= 2**0.5 + 1e-14  # the simplex's diameter


def test_law_of_cosines(where):
    """|S - G|^2 = |P - G|^2 + |S - P|^2 + 2 <P - G, S - P>: e_sg = e_tg + e_st, and not only its bound."""
    student, teacher, labels, _ = batch(where)
    sg, pg, sp = call(where, student, teacher, labels, squared=True).unbind(-1)
    s, p = student.softmax(-1), teacher.softmax(-1)
    g = torch.nn.functional.one_hot(labels, 100)
    close(sg, pg + sp + 2 * ((p - g) * (s - p)).sum(-1))


def test_student_and_teacher_may_change_places(where):
    student, teacher, labels, _ = batch(where)
    there, back = call(where, student, teacher, labels), call(where, teacher, student, labels)
    close(back[:, [1, 0, 2]], there)


def test_the_class_mean_in_the_teacher_s_place(where):
    """S - M and M - G of a table whose rows are the teachers of the samples are S - P and P - G."""
    student, teacher, labels, table = batch(where)
    labels = torch.arange(5, device=where.device)
    table[:5] = teacher.softmax(-1)
    distances = call(where, student, teacher, labels, table)
    close(distances[:, [3, 4]], distances[:, [2, 1]])


@pytest.mark.parametrize("squared", [False, True])
def test_squares_and_the_first_three_are_the_same_numbers(where, squared):
    student, teacher, labels, table = batch(where)
    five = call(where, student, teacher, labels, table, squared=squared)
    assert torch.equal(five[:, :3], call(where, student, teacher, labels, squared=squared))
    close(five.square() if not squared else five, call(where, student, teacher, labels, table, squared=True))


def test_a_constant_per_row_changes_nothing(where):
    """softmax does not know it. Shifts that are powers of two lose no bits of these logits' first 17."""
    student, teacher, labels, table = batch(where, 3, dtype=F32)
    student, teacher = ((x * 256).round() / 256 for x in (student, teacher))
    shift = torch.tensor([[-64.0], [0.0], [128.0]], device=where.device)
    plain = value_and_gradient(lambda z: call(where, z, teacher, labels, table), student)
    shifted = value_and_gradient(lambda z: call(where, z, teacher - 2 * shift, labels, table), student + shift)
    for a, b in zip(plain, shifted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


def test_classes_may_be_permuted(where):
    student, teacher, labels, table = batch(where)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).to(where.device)
    there = value_and_gradient(lambda z: call(where, z, teacher, labels, table), student)
    moved, means = order.argsort()[labels], table[order][:, order]
    permuted = value_and_gradient(lambda z: call(where, z, teacher[:, order], moved, means), student[:, order])
    close(permuted[0], there[0])
    close(permuted[1], there[1][:, order])


def test_gradient_rows_sum_to_zero(where):
    student, teacher, labels, table = batch(where)
    _, gradient = value_and_gradient(lambda z: call(where, z, teacher, labels, table), student)
    assert bool((gradient.sum(-1).abs() <= 1e-14 * gradient.abs().sum(-1).clamp(min=1.0)).all())


def test_vocab_size_cuts_both_and_leaves_the_rest_without_gradient(where):
    student, teacher = logits(5, 130, device=where.device), logits(5, 111, device=where.device, seed=1)
    student[:, 100:], teacher[:, 100:] = torch.nan, 1e30  # what padding may hold
    labels, table = LABELS.to(where.device), logits(100, 100, seed=3).softmax(-1)
    value, gradient = value_and_gradient(
        lambda z: call(where, z, teacher, labels, table.to(where.device), vocab_size=100), student
    )
    answer, _ = trilateral(student[:, :100].cpu(), teacher[:, :100].cpu(), LABELS, torch.ones(5, 5), table)
    close(value, answer.values, 1e-5, 1e-6)
    close(gradient[:, :100], answer.gradient, 1e-4, 1e-6)
    assert bool((gradient[:, 100:] == 0).all())


@pytest.mark.parametrize("label", [-1, 100, 2**40, -(2**40)])
def test_label_outside_the_vocabulary(where, label):
    """Raises on a CPU; on a GPU, which is not waited for, its row is NaN and nothing is read beyond the row."""
    student, teacher, labels, table = batch(where)
    labels[2] = label
    if where.device == "cpu":
        for means in (None, table):
            with pytest.raises(
                ValueError, match=rf"labels must lie in \[0, 100\) or equal ignore_index=-100, got {label}"
            ):
                call(where, student, teacher, labels, means)
    else:
        values, gradient = value_and_gradient(lambda z: call(where, z, teacher, labels, table), student)
        for x in (values, gradient):
            assert x.isnan().all(-1).tolist() == x.isnan().any(-1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("label", [-1, 100, 2**40, -(2**40)])
def test_the_operator_reads_nothing_beyond_the_row(kernel, label):
    """Compiled code comes to it without the check above: NaN for this row, on every device, and for no other."""
    student, teacher, labels, table = batch(kernel)
    labels[2] = label
    arguments = (teacher, table, labels, False, -100, 100, kernel.backend)
    values, gradient = value_and_gradient(lambda z: torch.ops.kdkernels.trilateral(z, *arguments)[0], student)
    for x in (values, gradient):
        assert x.isnan().all(-1).tolist() == x.isnan().any(-1).tolist() == [False, False, True, False, False]


def test_labels_beyond_vocab_size_are_outside(where):
    student, teacher, labels, _ = batch(where)
    labels[2] = 60
    if where.device == "cpu":
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 60\)"):
            call(where, student, teacher, labels.clamp(max=60), vocab_size=60)
    assert bool(call(where, student, teacher, labels.clamp(max=59), vocab_size=60).isfinite().all())


@pytest.mark.parametrize("student", [F16, BF16])
@pytest.mark.parametrize("teacher", [F32, F16, BF16])
def test_half_precision_inside_autocast(where, student, teacher):
    """Nothing is computed in the half precision: only what is stored has been rounded to it."""
    z, t = (
        logits(5, 100, dtype=student, device=where.device),
        logits(5, 100, dtype=teacher, device=where.device, seed=1),
    )
    labels = LABELS.to(where.device)
    with torch.autocast(where.device, dtype=BF16):
        inside = value_and_gradient(lambda z: call(where, z, t, labels), z)
    exact = value_and_gradient(lambda z: call(where, z, t.float(), labels), z.float())
    assert inside[0].dtype == F32
    assert inside[1].dtype == student
    close(inside[0], exact[0], 2e-6)
    close(inside[1], exact[1], 2**-8 if student == BF16 else 2**-10, 1e-7)


def test_nothing_that_came_in_is_changed(where):
    student, teacher, labels, table = batch(where)
    labels[1] = -100
    before = [x.clone() for x in (student, teacher, labels, table)]
    value_and_gradient(lambda z: call(where, z, teacher, labels, table), student)
    assert all(torch.equal(x, y) for x, y in zip((student, teacher, labels, table), before, strict=True))


MEAN = "class_mean must "
BAD_CALLS = [
    ({"student": [1.0]}, TypeError, "student must be a torch.Tensor of logits, got list"),
    ({"teacher": None}, TypeError, "teacher must be a torch.Tensor of logits, got NoneType"),
    ({"student": torch.ones(4, 7, dtype=torch.int64)}, TypeError, "student must be float32, float16, bfloat16"),
    ({"teacher": torch.ones(5, 7)}, ValueError, "teacher must have the shape of student (4, 7), got (5, 7)"),
    ({"teacher": torch.ones(4, 8)}, ValueError, "vocab_size="),
    ({"teacher": torch.ones(4, 7, requires_grad=True)}, ValueError, "teacher must not require grad"),
    ({"teacher": torch.ones(4, 7, device="meta")}, ValueError, "teacher must be on the student's device cpu, got meta"),
    ({"labels": [0, 1, 2, 3]}, TypeError, "labels must be a torch.Tensor, got list"),
    ({"labels": torch.ones(4)}, TypeError, "labels must be integers (int64), got torch.float32"),
    ({"labels": torch.zeros(4, 1).long()}, ValueError, "labels must have one value per row, shape (4,), got (4, 1)"),
    ({"labels": torch.tensor([0, 1, 2, 7])}, ValueError, "labels must lie in [0, 7) or equal ignore_index=-100, got 7"),
    ({"class_mean": [1.0]}, TypeError, f"{MEAN}be a torch.Tensor, got list"),
    (
        {"class_mean": torch.eye(7).long()},
        TypeError,
        f"{MEAN}be float32, float16, bfloat16 or float64, got torch.int64",
    ),
    ({"class_mean": torch.ones(7)}, ValueError, f"{MEAN}have shape (C, C) = (7, 7), got (7,)"),
    ({"class_mean": torch.ones(4, 7)}, ValueError, f"{MEAN}have shape (C, C) = (7, 7), got (4, 7)"),  # not gathered
    ({"class_mean": torch.ones(8, 8)}, ValueError, f"{MEAN}have shape (C, C) = (7, 7), got (8, 8)"),
    ({"class_mean": torch.eye(7), "vocab_size": 5}, ValueError, f"{MEAN}have shape (C, C) = (5, 5), got (7, 7)"),
    ({"class_mean": torch.eye(7, requires_grad=True)}, ValueError, f"{MEAN}not require grad"),
    ({"class_mean": torch.eye(7, device="meta")}, ValueError, f"{MEAN}be on the student's device cpu, got meta"),
    ({"vocab_size": 8}, ValueError, "vocab_size must lie in [1, 7], the smaller of the two vocabularies, got 8"),
    ({"backend": "cudnn"}, ValueError, "must be one of 'auto', 'reference', 'native', 'triton', got 'cudnn'"),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"), BAD_CALLS, ids=lambda x: "-".join(x) if isinstance(x, dict) else ""
)
def test_messages(changes, error, message):
    good = {"student": logits(4, 7), "teacher": logits(4, 7, seed=1), "labels": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(error, match=re.escape(message)):
        kd.trilateral_distances(**good | changes)


def test_ignore_index_and_the_rest_are_keywords():
    with pytest.raises(TypeError):
        kd.trilateral_distances(logits(4, 7), logits(4, 7), LABELS[:4] % 7, None, False, -100)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=name_of)
def test_label_dtypes(where, dtype):
    student, teacher = pair(5, 100, device=where.device)
    got = call(where, student, teacher, LABELS.to(where.device, dtype))
    assert torch.equal(got, call(where, student, teacher, LABELS.to(where.device)))
