"""Derivatives of the auxiliary-variable loss: gradcheck, kept graphs, one derivative only, and what wants none."""

import pytest
import torch
from auxiliary_cases import ROWS, SETTINGS, batch, entries, make_bank, run
from cases import BF16, F16, F32, F64, logits, name_of
from tgeo_students import EVERY_DEVICE

import kdkernels as kd
from kdkernels.methods import auxiliary

DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)


def leaves(given):
    """The batch, with a student and features that want their gradients."""
    student, teacher, h, ht = given
    return student.detach().requires_grad_(), teacher, h.detach().requires_grad_(), ht


def loss(given, bank, **settings):
    return auxiliary.auxiliary_divergence(*given, bank, **(SETTINGS | settings))


@pytest.mark.parametrize("excluded", ["none", "some", "a whole row's"])
@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_gradcheck(where, mixture, beta, excluded):
    features, probs, index = entries(6, 3, 5, device=where.device, dtype=F64)
    index[:3] = 100
    number = torch.tensor([100, 104, 7, 9], device=where.device)
    if excluded == "a whole row's":
        index[:] = 7
        if mixture == 1.0:
            number[2] = 8  # +inf has no derivative
    bank = make_bank((features, probs, index), dtype=F64)
    student, teacher, h, ht = batch(4, 3, 5, device=where.device, dtype=F64)
    settings = {"mixture": mixture, "beta": beta, "kappa": 0.5, "temperature": 1.7}
    settings["index"] = None if excluded == "none" else number
    with kd.use_backend(where.backend):
        assert torch.autograd.gradcheck(
            lambda z, h: loss((z, teacher, h, ht), bank, **settings), (student.requires_grad_(), h.requires_grad_())
        )


@EVERY_DEVICE
@DTYPES
def test_repeated_backward(device, dtype):
    """A kept graph gives the same gradients again, whatever has become of those that were handed out."""
    bank, given = make_bank(entries(device=device)), leaves(batch(device=device, dtype=dtype))
    upstream = logits(ROWS, seed=3, device=device, dtype=F64 if dtype == F64 else F32)
    value, wanted = loss(given, bank), run(given, bank, upstream)[1:]
    for _ in range(3):
        got = torch.autograd.grad(value, given[::2], upstream, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)
            a.fill_(torch.nan)
    other = torch.autograd.grad(value, given[::2], -2.0 * upstream)  # and a graph that is let go
    for a, b in zip(other, wanted, strict=True):
        assert torch.equal(a, -2.0 * b)  # a power of two rounds nothing
    with pytest.raises(RuntimeError, match="(?i)second time|freed"):
        torch.autograd.grad(value, given[::2], upstream)


def test_gradients_accumulate():
    bank, given = make_bank(entries()), leaves(batch())
    _, z, h = run(given, bank)
    value = loss(given, bank).sum()
    value.backward(retain_graph=True)
    value.backward()
    assert torch.equal(given[0].grad, 2 * z) and torch.equal(given[2].grad, 2 * h)


@pytest.mark.parametrize("how", ["of the gradient alone", "beside a loss"])
@pytest.mark.parametrize("leaf", [0, 2], ids=["student", "features"])
@pytest.mark.parametrize("mixture", [0.5, 1.0])
def test_a_second_derivative_raises(kernel, leaf, mixture, how):
    """A penalty on the gradient, beside a loss that has one, would else be left out in silence."""
    given, bank = leaves(batch(device=kernel.device)), make_bank(entries(device=kernel.device))
    with kd.use_backend(kernel.backend):
        value = loss(given, bank, mixture=mixture)
        (gradient,) = torch.autograd.grad(value[:4].sum(), given[leaf], create_graph=True)
        penalty = gradient.pow(2).sum()
        with pytest.raises(RuntimeError, match="(?i)second|double|twice|once_differentiable"):
            torch.autograd.grad(penalty if how == "of the gradient alone" else value.sum() + penalty, given[leaf])


def test_create_graph_alone_is_harmless():
    given, bank = leaves(batch()), make_bank(entries())
    wanted = run(given, bank)[1:]
    got = torch.autograd.grad(loss(given, bank).sum(), given[::2], create_graph=True)
    assert all(torch.equal(a.detach(), b) for a, b in zip(got, wanted, strict=True))


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_only_what_wants_a_gradient_gets_one(device, mixture):
    bank, given = make_bank(entries(device=device)), batch(device=device)
    values, *gradients = run(given, bank, mixture=mixture)
    for which in (0, 2):
        leaf = given[which].detach().requires_grad_()
        arguments = [leaf if i == which else x for i, x in enumerate(given)]
        value = loss(arguments, bank, mixture=mixture)
        torch.testing.assert_close(value.detach(), values, rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
        torch.testing.assert_close(gradient, gradients[which // 2], rtol=1e-6, atol=1e-6)


@EVERY_DEVICE
@DTYPES
@pytest.mark.parametrize("settings", [{}, {"mixture": 0.0}, {"mixture": 1.0, "beta": 0.0}], ids=str)
def test_without_grad(device, dtype, settings):
    """The same values, and nothing to differentiate; float32, or float64 where the inputs are."""
    bank, given = make_bank(entries(device=device)), leaves(batch(device=device, dtype=dtype))
    wanted = loss(given, bank, **settings)
    assert wanted.requires_grad and wanted.shape == (ROWS,) and wanted.dtype == (F64 if dtype == F64 else F32)
    with torch.no_grad():
        inside = loss(given, bank, **settings)
    with torch.inference_mode():
        inference = loss([x.detach() for x in given], bank, **settings)
    plain = loss([x.detach() for x in given], bank, **settings)
    rounding = 1e-13 if dtype == F64 else 1e-6
    for got in (inside, inference.clone(), plain):
        assert not got.requires_grad
        torch.testing.assert_close(got, wanted.detach(), rtol=rounding, atol=rounding)


def test_gradients_reach_what_is_before():
    """Through a layer on either side, as in training: the chain rule of PyTorch continues where the loss ends."""
    bank, (student, teacher, h, ht) = make_bank(entries()), batch()
    torch.manual_seed(0)
    layer = torch.nn.Linear(h.shape[-1], h.shape[-1])
    _, z, g = run((student, teacher, layer(h).detach(), ht), bank)
    scale = torch.tensor(2.0, requires_grad=True)
    loss((scale * student / 2, teacher, layer(h), ht), bank).sum().backward()
    torch.testing.assert_close(layer.weight.grad, g.T @ h, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale.grad, (z * student / 2).sum(), rtol=1e-5, atol=1e-5)


def test_two_losses_of_one_bank():
    """A bank may move on between forward and backward: the gradient is that of the bank that forward saw."""
    bank, given = make_bank(entries()), leaves(batch())
    wanted = run(given, bank)[1:]
    value = loss(given, bank)
    bank.push(*entries(7, seed=90))
    got = torch.autograd.grad(value.sum(), given[::2])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert not torch.equal(run(given, bank)[0], value.detach())
