"""Strides: what a trainer slices, transposes or expands has to give what its contiguous copy gives."""

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F32, F64, logits, name_of, value_and_gradient

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)


def _wide(x):
    """The first columns of a wider buffer, which holds NaN beyond: rows are strided, their entries are adjacent."""
    buffer = torch.full((*x.shape[:-1], x.shape[-1] + 13), torch.nan, dtype=x.dtype, device=x.device)
    buffer[..., : x.shape[-1]] = x
    return buffer[..., : x.shape[-1]]


def _offset(x):
    """As `_wide`, from an odd column on, so that no row starts at an aligned address."""
    buffer = torch.full((*x.shape[:-1], x.shape[-1] + 8), torch.nan, dtype=x.dtype, device=x.device)
    buffer[..., 1 : x.shape[-1] + 1] = x
    return buffer[..., 1 : x.shape[-1] + 1]


def _every_other_row(x):
    buffer = torch.full((x.shape[0] * 2, *x.shape[1:]), torch.nan, dtype=x.dtype, device=x.device)
    buffer[::2] = x
    return buffer[::2]


def _every_other_column(x):
    buffer = torch.full((*x.shape[:-1], x.shape[-1] * 2), torch.nan, dtype=x.dtype, device=x.device)
    buffer[..., ::2] = x
    return buffer[..., ::2]


def _transposed(x):
    """The vocabulary is not the fastest dimension, as in an image's (batch, class, pixel)."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _batch_second(x):
    """(time, batch, vocab) read as (batch, time, vocab): the leading dimensions do not merge into one stride."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _next_token(x):
    """logits[:, :-1]: what every causal language model does before its loss."""
    return torch.cat([x, torch.full_like(x[:, :1], torch.nan)], 1)[:, :-1]


LAYOUTS = [_wide, _offset, _every_other_row, _every_other_column, _transposed, _batch_second, _next_token]
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__.strip("_"))


@EVERY_LAYOUT
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=name_of)
def test_layouts_give_what_their_copies_give(where, layout, which, dtype):
    student, teacher = (logits(4, 3, 100, dtype=dtype, device=where.device, seed=seed) for seed in (0, 1))
    options = {"temperature": 2.0, "reduction": "none", "backend": where.backend}
    wanted = value_and_gradient(lambda z: kd.divergence(z, teacher, **options), student)
    strided = layout(student) if which != "teacher" else student
    other = layout(teacher) if which != "student" else teacher
    assert torch.equal(strided, student)
    got = value_and_gradient(lambda z: kd.divergence(z, other, **options), strided)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert torch.equal(strided, student)  # and neither was written


@EVERY_LOSS
@EVERY_LAYOUT
def test_gradient_reaches_the_buffer_behind_a_view(where, layout, loss):
    """The whole chain: a view of a computed tensor, the loss, and back through the view."""
    base, teacher = (logits(4, 3, 7, dtype=F64, device=where.device, seed=seed) for seed in (0, 1))

    def through(layout):
        return value_and_gradient(
            lambda x: kd.divergence(layout(x * 1.5), teacher, loss, temperature=2.0, backend=where.backend), base
        )

    for a, b in zip(through(layout), through(lambda x: x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_expanded_rows(where, which):
    """Stride 0: one teacher row for every student row, or one student row seen by several teachers."""
    one, many = logits(1, 100, device=where.device), logits(5, 100, device=where.device, seed=1)
    expanded, copied = one.expand(5, 100), one.repeat(5, 1)
    options = {"reduction": "none", "backend": where.backend}
    if which == "teacher":
        got, wanted = (
            value_and_gradient(lambda z, t=t: kd.divergence(z, t, **options), many) for t in (expanded, copied)
        )
    else:
        got, wanted = (
            value_and_gradient(lambda z, size=size: kd.divergence(z.expand(5, 100), many, **options), one)
            for size in (0, 1)
        )
        each = value_and_gradient(lambda z: kd.divergence(z, many, **options), copied)
        wanted = each[0], each[1].sum(0, keepdim=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


def test_a_constant_along_the_vocabulary_is_uniform(where):
    """Stride 0 along the vocabulary: the uniform distribution, of which only one number is stored."""
    flat = logits(3, 1, device=where.device).expand(3, 100)
    student = logits(3, 100, device=where.device, seed=1)
    copied = value_and_gradient(lambda z: kd.divergence(z, flat.contiguous(), backend=where.backend), student)
    for a, b in zip(
        value_and_gradient(lambda z: kd.divergence(z, flat, backend=where.backend), student), copied, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["mask", "weight", "labels", "alpha"])
def test_per_row_arguments_may_be_strided(where, kind):
    student, teacher = (logits(4, 3, 7, device=where.device, seed=seed) for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    value = {
        "mask": torch.rand(4, 3, generator=generator) > 0.4,
        "weight": torch.rand(4, 3, generator=generator),
        "labels": torch.randint(7, (4, 3), generator=generator),
        "alpha": torch.rand(4, 3, generator=generator),
    }[kind].to(where.device)
    labels = torch.zeros(4, 3, dtype=torch.int64, device=where.device)

    def run(argument):
        keywords = {"labels": labels, "reduction": "none", "backend": where.backend} | {kind: argument}
        return value_and_gradient(lambda z: kd.distillation(z, teacher, **keywords), student)

    for a, b in zip(run(value.t().contiguous().t()), run(value), strict=True):
        assert torch.equal(a, b)


@EVERY_LAYOUT
@pytest.mark.parametrize("function", [kd.softmax, kd.log_softmax])
def test_softmax_layouts(where, layout, function):
    z, upstream = (logits(4, 3, 100, device=where.device, seed=seed) for seed in (0, 1))

    def run(z, upstream):
        z = z.detach().requires_grad_()
        out = function(z, temperature=2.0, backend=where.backend)
        return out.detach(), *torch.autograd.grad(out, z, upstream)

    wanted = run(z, upstream)
    for got in (run(layout(z), upstream), run(z, layout(upstream)), run(z, upstream.clone())):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@EVERY_LAYOUT
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=name_of)
def test_trilateral_layouts(where, layout, which, dtype):
    student, teacher = (logits(4, 3, 100, dtype=dtype, device=where.device, seed=seed) for seed in (0, 1))
    labels = (torch.arange(12, device=where.device) * 7 - 100 * (torch.arange(12, device=where.device) == 0)).view(4, 3)
    table = logits(100, 100, device=where.device, seed=2).softmax(-1)
    distances = lambda z, t: kd.trilateral_distances(z, t, labels, table, backend=where.backend)  # noqa: E731
    wanted = value_and_gradient(lambda z: distances(z, teacher), student)
    strided = layout(student) if which != "teacher" else student
    other = layout(teacher) if which != "student" else teacher
    got = value_and_gradient(lambda z: distances(z, other), strided)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if dtype == BF16 else 2e-6, atol=1e-7)
    assert torch.equal(strided, student)  # and neither was written
    assert torch.equal(other, teacher)


@pytest.mark.parametrize(
    "layout", [_wide, _offset, _every_other_column, _transposed], ids=lambda f: f.__name__.strip("_")
)
def test_layouts_of_tables(where, layout):
    """The class mean, and coefficients of each class, as views; labels that are strided."""
    student, teacher = (logits(4, 3, 7, dtype=F64, device=where.device, seed=seed) for seed in (0, 1))
    labels, table = torch.arange(12, device=where.device).view(3, 4).t() % 7, torch.eye(7, device=where.device)
    coefficients = logits(7, 4, device=where.device, seed=3).abs()

    def run(table, labels, coefficients):
        def call(z):
            soft = kd.divergence(z, teacher, kd.Perturbed(coefficients), backend=where.backend)
            return soft + kd.trilateral_distances(z, teacher, labels, table, backend=where.backend).square().sum()

        return value_and_gradient(call, student)

    got = run(layout(table), labels, layout(coefficients))
    for a, b in zip(got, run(table, labels.contiguous(), coefficients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("which", ["student", "teacher", "upstream"])
def test_trilateral_of_expanded_rows(where, which):
    """Stride 0: one row of logits, or of the upstream gradient, for all."""
    rows = {
        name: logits(5, 100, dtype=F64, device=where.device, seed=seed)
        for seed, name in enumerate(["student", "teacher"])
    }
    rows["upstream"] = logits(5, 3, dtype=F64, device=where.device, seed=2)
    rows[which] = rows[which][:1].expand_as(rows[which])
    labels = torch.arange(5, device=where.device)

    def run(student, teacher, upstream):
        leaf = student.detach().requires_grad_()
        value = kd.trilateral_distances(leaf, teacher, labels, backend=where.backend)
        return value.detach(), *torch.autograd.grad(value, leaf, upstream)

    got = run(**rows)
    for a, b in zip(got, run(**{name: x.contiguous() for name, x in rows.items()}), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
