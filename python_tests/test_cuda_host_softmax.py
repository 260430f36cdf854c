"""The CUDA softmax schedules run by host threads, forward and backward, against float64."""

from __future__ import annotations

import cuda_host
import pytest
import torch
from cases import BF16, F16, F32, logits, name_of
from cuda_host import placed
from test_cuda_host import LAYOUTS, TEAMS, VOCABS

INF = float("inf")
EVERY_TEAM = pytest.mark.parametrize("team", TEAMS, ids=str)
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name_of)
LOG = pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
ARITHMETIC = 2**-23


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return cuda_host.load(tmp_path_factory.getbasetemp())


def softmax(host, team, z, temperature, log, layout="misaligned"):
    sides = (z, torch.full_like(z, torch.nan))
    z, output = (placed(each, *place) for each, place in zip(sides, LAYOUTS[layout][1:], strict=True))
    host.softmax(team, z.view, output.view, temperature, log)
    assert output.padding_is_untouched()
    assert z.padding_is_untouched()
    return output.view.contiguous()


def backward(host, team, output, upstream, temperature, log, layout="misaligned"):
    sides = (output, upstream, torch.full_like(output, torch.nan))
    y, u, gradient = (placed(each, *place) for each, place in zip(sides, LAYOUTS[layout], strict=True))
    host.softmax_backward(team, y.view, u.view, gradient.view, temperature, log)
    assert gradient.padding_is_untouched()
    return gradient.view.contiguous()


def definition(z, temperature, log):
    return ((z / temperature).log_softmax if log else (z / temperature).softmax)(-1)


def check_softmax(got, z, temperature, log):
    """Half a unit of what is stored, and six roundings of the arithmetic in the logarithm, the deeper the coarser."""
    wanted = definition(z.double(), temperature, log)
    eps, tiny = torch.finfo(z.dtype).eps, torch.finfo(z.dtype).smallest_normal * torch.finfo(z.dtype).eps
    deep = 6 * ARITHMETIC * (1 + wanted.abs()) if log else 6 * ARITHMETIC * (1 - wanted.log()).clamp_max(200) * wanted
    flushed = 0.0 if log else 2.0**-126  # exp2 has no subnormal results
    error = (got.double() - wanted).abs()
    assert bool((error <= 0.5 * eps * wanted.abs() + deep + tiny + flushed).all()), float(error.max())


def check_backward(got, output, upstream, temperature, log):
    """Against the formula at the stored output: what a division by T, a sum and a product round."""
    y, u = output.double(), upstream.double()
    if log:
        wanted, size = u - y.exp() * u.sum(-1, keepdim=True), u.abs() + y.exp() * u.abs().sum(-1, keepdim=True)
    else:
        wanted = y * (u - (u * y).sum(-1, keepdim=True))
        size = y * (u.abs() + (u * y).abs().sum(-1, keepdim=True))
    depth = 4 + (y.abs() if log else 0.0)
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    limit = 0.5 * torch.finfo(got.dtype).eps * wanted.abs() + depth * ARITHMETIC * size
    error = (got.double() - wanted / temperature).abs()
    assert bool((error <= limit / temperature + tiny).all()), float(error.max())


@EVERY_TEAM
@DTYPES
@LOG
def test_every_vocabulary_and_layout(host, log, dtype, team):
    for vocab in VOCABS:
        z, upstream = logits(3, vocab, dtype=dtype), logits(3, vocab, dtype=dtype, seed=9)
        for layout in LAYOUTS:
            output = softmax(host, team, z, 2.0, log, layout)
            check_softmax(output, z, 2.0, log)
            gradient = backward(host, team, output, upstream, 2.0, log, layout)
            check_backward(gradient, output, upstream, 2.0, log)


@EVERY_TEAM
@LOG
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
def test_temperatures(host, log, temperature, team):
    z, upstream = logits(3, 1271), logits(3, 1271, seed=9)
    output = softmax(host, team, z, temperature, log)
    check_softmax(output, z, temperature, log)
    check_backward(backward(host, team, output, upstream, temperature, log), output, upstream, temperature, log)


@EVERY_TEAM
@DTYPES
@LOG
def test_outputs_in_an_inputs_place(host, log, dtype, team):
    """softmax into its logits, its backward into the output or into the upstream gradient: bit for bit the same."""
    for vocab in (17, 1271):
        z, upstream = logits(3, vocab, dtype=dtype), logits(3, vocab, dtype=dtype, seed=9)
        output = softmax(host, team, z, 2.0, log)
        gradient = backward(host, team, output, upstream, 2.0, log)
        place = placed(z, *LAYOUTS["misaligned"][1]).view
        host.softmax(team, place, place, 2.0, log)
        assert torch.equal(place, output)
        for which in range(2):
            sides = [placed(each, *place).view for each, place in ((output, (1, 2)), (upstream, (3, 4)))]
            host.softmax_backward(team, *sides, sides[which], 2.0, log)
            assert torch.equal(sides[which], gradient)


@EVERY_TEAM
@LOG
def test_minus_infinity_and_nan(host, log, team):
    z = logits(5, 1271)
    z[0, :900], z[1, ::2], z[2, :-1], z[3], z[4, 640] = -INF, -INF, -INF, -INF, torch.nan
    got = softmax(host, team, z, 2.0, log)
    wanted = definition(z[:3].double(), 2.0, log)
    torch.testing.assert_close(got[:3].double(), wanted, rtol=1e-5, atol=1e-9)
    assert torch.equal(got[:3] == (-INF if log else 0.0), z[:3] == -INF)
    assert bool(got[3:].isnan().all())
