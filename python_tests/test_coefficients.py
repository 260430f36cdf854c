"""The coefficients of the perturbed series: how they are kept, what they fit, and what is refused."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of, pair
from test_perturbed import SHAPES, close, coefficients, run

import kdkernels as kd


@pytest.fixture
def batch():
    return logits(5, 100, dtype=F64), logits(5, 100, dtype=F64, seed=1)


@SHAPES
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)
def test_dtypes_of_the_coefficients(where, batch, shape, dtype):
    """They are widened and never narrowed below the arithmetic: float64 logits see all their digits."""
    eps = coefficients(*shape, dtype=dtype)
    close(run(where, eps, *batch), run(where, eps.double(), *batch), 1e-14, 1e-15)
    single = [x.float() for x in batch]
    close(run(where, eps, *single), run(where, eps.double(), *single), 2e-6, 1e-6)


@SHAPES
def test_a_later_change_of_the_tensor_changes_nothing(where, batch, shape):
    eps = coefficients(*shape).to(where.device)
    loss = kd.Perturbed(eps)
    before = run(where, loss, *batch)
    eps.fill_(torch.nan)
    close(run(where, loss, *batch), before, 0.0, 0.0)


def test_the_table_ends_where_vocab_size_says(where, batch):
    student, teacher = batch[0].clone(), batch[1].clone()
    eps = coefficients(60, 3)
    wanted = run(where, eps, student[:, :60], teacher[:, :60])
    student[:, 60:], teacher[:, 60:] = torch.nan, torch.inf
    values, gradient = run(where, eps, student, teacher, vocab_size=60)
    close((values, gradient[:, :60]), wanted)
    assert bool((gradient[:, 60:] == 0).all())


def test_the_table_is_padded_with_zeros_to_sixteen():
    """What kernels get: (M, 1), or (M, W) with W the classes rounded up."""
    shared = kd.Perturbed(coefficients(3))
    assert shared.classes is None
    assert torch.equal(shared.table(F32), coefficients(3, dtype=F32)[:, None])
    for vocab, width in ((1, 16), (16, 16), (100, 112), (1271, 1280)):
        loss = kd.Perturbed(coefficients(vocab, 3))
        table = loss.table(F64)
        assert loss.classes == vocab
        assert table.shape == (3, width)
        assert table.is_contiguous()
        assert torch.equal(table[:, :vocab], coefficients(vocab, 3).T)
        assert bool((table[:, vocab:] == 0).all())


def test_losses_with_other_coefficients_are_other_losses():
    """Equality and hash decide what caches hand out: compiled code, an answer, a sampler's weight."""
    one, other = kd.Perturbed(torch.tensor([1.0])), kd.Perturbed(torch.tensor([2.0]))
    assert one == one
    assert one != other
    assert len({one, other, kd.ForwardKL()}) == 3
    with pytest.raises(AttributeError):
        one.coefficients = torch.tensor([2.0])


@SHAPES
@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "deepcopy", "pickle"]
)
def test_copies(where, batch, shape, twin):
    """What a trainer's worker or a deep-copied criterion gets."""
    loss = kd.Perturbed(coefficients(*shape).to(where.device))
    close(run(where, twin(loss), *batch), run(where, loss, *batch), 0.0, 0.0)
    criterion = twin(kd.DivergenceLoss(loss, backend=where.backend))
    student, teacher = (x.to(where.device) for x in batch)
    assert torch.equal(criterion(student, teacher), kd.divergence(student, teacher, loss, backend=where.backend))


SHAPE = "coefficients must have shape (M,) or (C, M) with 1 <= M <= 8, got "
BAD_COEFFICIENTS = [
    (torch.tensor(1.0), ValueError, f"{SHAPE}()"),
    (torch.ones(0), ValueError, f"{SHAPE}(0,)"),
    (torch.ones(9), ValueError, f"{SHAPE}(9,)"),
    (torch.ones(3, 9), ValueError, f"{SHAPE}(3, 9)"),
    (torch.ones(3, 0), ValueError, f"{SHAPE}(3, 0)"),
    (torch.ones(0, 3), ValueError, f"{SHAPE}(0, 3)"),
    (torch.ones(2, 3, 4), ValueError, f"{SHAPE}(2, 3, 4)"),
    ([0.5, 0.2], TypeError, "coefficients must be a torch.Tensor, got list"),
    (0.5, TypeError, "coefficients must be a torch.Tensor, got float"),
    (None, TypeError, "coefficients must be a torch.Tensor, got NoneType"),
    (torch.tensor([1, 2]), TypeError, "coefficients must be float32, float16, bfloat16 or float64, got torch.int64"),
    (torch.tensor([True]), TypeError, "coefficients must be float32, float16, bfloat16 or float64, got torch.bool"),
    (
        torch.ones(2, dtype=torch.complex64),
        TypeError,
        "coefficients must be float32, float16, bfloat16 or float64, got torch.complex64",
    ),
    (torch.tensor([0.5, torch.nan]), ValueError, "coefficients must be finite in float32, got"),
    (torch.tensor([[torch.inf], [0.0]]), ValueError, "coefficients must be finite in float32, got"),
    (torch.tensor([-torch.inf]), ValueError, "coefficients must be finite in float32, got"),
    (torch.ones(2, requires_grad=True), ValueError, "coefficients must not require grad"),
    (torch.nn.Parameter(torch.ones(7, 2)), ValueError, "coefficients.detach()"),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_COEFFICIENTS, ids=lambda x: str(x)[:24].replace("\n", ""))
def test_messages(value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        kd.Perturbed(value)


@pytest.mark.parametrize("op", ["divergence", "distillation"])
def test_messages_where_the_table_does_not_fit(where, op):
    student, teacher = pair(4, 7, device=where.device)
    labels = () if op == "divergence" else (torch.zeros(4, dtype=torch.int64, device=where.device),)
    for classes, cut in ((8, None), (6, None), (1, None), (16, None), (7, 5), (16, 7)):
        loss = kd.Perturbed(torch.ones(classes, 2, device=where.device))
        message = rf"coefficients must have one row per class, {cut or 7} of them, got {classes}"
        with pytest.raises(ValueError, match=message):
            getattr(kd, op)(student, teacher, *labels, loss=loss, vocab_size=cut, backend=where.backend)
    away = torch.ones(4, 7, device="meta")
    with pytest.raises(ValueError, match="coefficients must be on the student's device meta, got cpu"):
        kd.divergence(away, away, kd.Perturbed(torch.ones(2)))


@pytest.mark.parametrize(
    ("value", "warned"),
    [
        (torch.tensor([-1.0, -0.5, -1 / 3]), False),  # the logarithm's own terms, exactly taken away
        (torch.tensor([10.0, 0.0]), False),
        (torch.tensor([-1.001]), True),
        (torch.tensor([0.0, -0.51]), True),  # -1/m and not -1
        (torch.tensor([[0.0, 0.0], [0.0, -0.6]]), True),
        (torch.tensor([-1.01, 5.0], dtype=BF16), True),
    ],
    ids=str,
)
def test_warns_where_the_series_is_negative(value, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kd.Perturbed(value)
    assert [w.category for w in caught] == ([UserWarning] if warned else [])
    assert all("-1/m" in str(w.message) and w.filename == __file__ for w in caught)
