"""Numbers as trainers and NumPy have them: counts of one element, counts of nothing, NumPy's scalars."""

import numpy as np
import pytest
import torch
from cases import logits, value_and_gradient

import kdkernels as kd

X, T, Y = logits(9, 50), logits(9, 50, seed=1), torch.arange(9)
NONE = torch.zeros(9, dtype=torch.bool)


def same(left, right):
    for found, expected in zip(value_and_gradient(left, X), value_and_gradient(right, X), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), np.float16(2), np.int64(2), np.uint8(2)], ids=repr)
def test_numpy_scalars(where, number):
    backend = {"backend": where.backend}
    if where.device != "cpu":
        pytest.skip("what a number is does not depend on the device")
    same(lambda z: kd.divergence(z, T, temperature=number, **backend), lambda z: kd.divergence(z, T, temperature=2.0))
    same(lambda z: kd.softmax(z, temperature=number, **backend), lambda z: kd.softmax(z, temperature=2.0))
    same(lambda z: kd.divergence(z, T, normalizer=number, **backend), lambda z: kd.divergence(z, T, normalizer=2.0))
    half = type(number)(1) / 4
    same(
        lambda z: kd.distillation(z, T, Y, kd.JensenShannon(half), alpha=half, **backend),
        lambda z: kd.distillation(z, T, Y, kd.JensenShannon(0.25), alpha=0.25),
    )


def test_numpy_integers():
    twenty, three = np.int64(20), np.int32(3)
    same(
        lambda z: kd.distillation(z, T, Y, vocab_size=twenty, ignore_index=three),
        lambda z: kd.distillation(z, T, Y, vocab_size=20, ignore_index=3),
    )
    same(
        lambda z: kd.trilateral_distances(z, T, Y, vocab_size=twenty, ignore_index=three),
        lambda z: kd.trilateral_distances(z, T, Y, vocab_size=20, ignore_index=3),
    )


@pytest.mark.parametrize("value", [np.bool_(True), np.array([2.0, 3.0]), "2", None], ids=repr)
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="temperature must be a number"):
        kd.divergence(X, T, temperature=value)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_count_of_one_element_in_any_shape(where, shape):
    count = torch.full(shape, 7, device=where.device)
    same(
        lambda z: kd.divergence(z.to(where.device), T.to(where.device), normalizer=count, backend=where.backend).cpu(),
        lambda z: kd.divergence(z, T, normalizer=7),
    )


@pytest.mark.parametrize(
    "nothing", [0, 0.0, np.int64(0), torch.tensor(0), torch.tensor([0]), torch.tensor([[0.0]])], ids=repr
)
def test_a_count_of_nothing(where, nothing):
    """Every row masked or ignored and a count of 0, as an accumulated batch of padding has it: 0, and no gradient."""
    student, teacher, mask = (x.to(where.device) for x in (X, T, NONE))
    ignored = torch.full((9,), -100, device=where.device)
    options = {"normalizer": nothing, "backend": where.backend}
    for call in (
        lambda z: kd.divergence(z, teacher, mask=mask, **options),
        lambda z: kd.distillation(z, teacher, ignored, **options),
    ):
        value, gradient = value_and_gradient(call, student)
        assert value == 0 and (gradient == 0).all()


def test_a_count_of_nothing_while_rows_count():
    for options in ({}, {"mask": ~NONE}):
        with pytest.raises(ValueError, match="normalizer must be positive and finite, got 0 while rows are counted"):
            kd.divergence(X, T, normalizer=0, **options)
