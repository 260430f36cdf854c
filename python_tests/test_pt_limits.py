"""Proxy teachers where the loss is extreme or not convex, what they are in known cases, and what is refused."""

import pytest
import torch
from cases import F32, F64
from conftest import DEVICES
from perturbed_definition import assert_near, gradient_at, loss_of, teachers, uniform

from kdkernels.methods import pt
from kdkernels.methods.pt import newton, proxy


def fraction(converged):
    return float(converged.double().mean())


@pytest.mark.parametrize("delta", [0.1, 0.5])
@pytest.mark.parametrize("classes", [2, 10])
def test_label_smoothing_is_reached_as_the_order_grows(delta, classes):
    """eps_{c,m} = (delta / m) (1/C - t_c) / t_c: sum_m tends to -log, and the proxy to (1 - delta) t + delta / C."""
    distances = []
    t = teachers(classes, spread=1.0)
    for order in range(1, 9):
        m = torch.arange(1, order + 1, dtype=F64)
        eps = delta / m * ((1 / classes - t) / t)[:, None]
        found = pt.proxy_teacher(t, eps)
        assert bool(found.converged)
        distances.append(float((found.probs - ((1 - delta) * t + delta / classes)).abs().max()))
    assert all(finer < coarser for coarser, finer in zip(distances, distances[1:], strict=False))
    untouched = float((t - ((1 - delta) * t + delta / classes)).abs().max())
    assert distances[-1] < 0.6 * distances[0]
    assert distances[0] < untouched


def test_one_order_and_two_classes_in_closed_form():
    """sum_c t_c / (lam - eps t_c) = 1 is (lam - eps a) (lam - eps b) = lam - 2 eps a b for t = (a, b)."""
    a = torch.tensor([0.9, 0.5, 0.3, 1e-9], dtype=F64)
    b = 1 - a
    for eps in (-0.9, 0.2, 10.0, 150.0):
        lam = (1 + eps) / 2 + torch.sqrt((1 + eps) ** 2 / 4 - eps * (2 + eps) * a * b)
        assert_near(
            pt.proxy_teacher(torch.stack([a, b], -1), torch.tensor([eps])).probs[:, 1], b / (lam - eps * b), 1e-6
        )


def test_a_positive_perturbation_of_the_first_order_sharpens_and_a_negative_one_flattens():
    t = teachers(50, 8, spread=1.0)
    entropies = [
        torch.special.entr(pt.proxy_teacher(t, torch.tensor([eps])).probs).sum(-1) for eps in (-0.9, 0.0, 0.5, 9.0)
    ]
    for flatter, sharper in zip(entropies, entropies[1:], strict=False):
        assert bool((sharper < flatter).all())


@pytest.mark.parametrize("order", [1, 2, 5, 8])
@pytest.mark.parametrize("spread", [1.0, 10.0, 30.0])
def test_coefficients_of_150(order, spread):
    t, eps = teachers(200, 30, spread=spread), torch.full((order,), 150.0)
    found = pt.proxy_teacher(t, eps)
    assert bool(found.converged.all())
    assert float(found.residual.max()) < 1e-12
    assert float(gradient_at(found.probs, t, eps).abs().max()) < 1e-9


def test_a_few_steps_do(monkeypatch):
    """A wrong second derivative would still converge, slowly."""
    monkeypatch.setattr(newton, "_STEPS", 7)
    monkeypatch.setattr(proxy, "_ROOT_STEPS", 9)
    for seed, spread in enumerate((1.0, 3.0, 10.0)):
        t, eps = teachers(500, 100, spread=spread), uniform(5, low=0.0, high=10.0, seed=seed)
        assert bool(pt.proxy_teacher(t, eps).converged.all())
        assert bool(pt.proxy_teacher(t, eps[:1]).converged.all())


def test_a_class_without_curvature_at_the_teacher():
    """1 + t^2 Q'' = 0 there, and r > R t, so that both of the solver's second derivatives vanish at its start."""
    t, eps = torch.tensor([0.5, 0.5], dtype=F64), torch.tensor([[3.0, -2.0], [0.0, 0.0]], dtype=F64)
    found = pt.proxy_teacher(t, eps)
    assert bool(found.converged)
    assert float(gradient_at(found.probs, t, eps).abs().max()) < 1e-14


def test_a_convex_loss_far_outside_any_use_is_minimised():
    """Full Newton steps alone would go round in circles on some of these rows."""
    generator = torch.Generator().manual_seed(2)
    for seed in range(40):
        eps = 1e4 * torch.rand(5, 2, generator=generator, dtype=F64)
        eps = torch.where(torch.rand(5, 2, generator=generator) < 0.3, torch.tensor([-1.0, -0.5], dtype=F64), eps)
        t = teachers(200, 5, seed=seed, spread=(0.1, 1.0, 5.0)[seed % 3])
        assert bool(pt.proxy_teacher(t, eps).converged.all())


@pytest.mark.parametrize("order", [2, 5])
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_two_classes_always_converge(order, spread):
    """Convex or not: however deep the valley on the way, and with one negative second derivative of the two."""
    for seed in range(30):
        t, eps = teachers(100, 2, seed=seed, spread=spread), uniform(order, low=-150.0, high=150.0, seed=seed)
        found = pt.proxy_teacher(t, eps)
        assert bool(found.converged.all())
        assert float(found.residual.max()) < 1e-12


@pytest.mark.parametrize("order", [2, 3, 5])
def test_what_is_not_convex_and_says_that_it_converged_is_a_local_minimum(order):
    t, eps = teachers(400, 5, spread=1.0), uniform(order, low=-6.0, high=1.0, seed=order)
    found = pt.proxy_teacher(t, eps)
    assert bool((eps < -1 / torch.arange(1, order + 1)).any())
    assert fraction(found.converged) > 0.9
    p = found.probs[found.converged]
    t = t[found.converged]
    assert float(gradient_at(p, t, eps).abs().max()) < 1e-7
    here = loss_of(p.log(), t, eps)
    assert bool((here <= loss_of(t.log(), t, eps)).all())
    for seed in range(20):
        nearby = (p.log() + 1e-3 * teachers(5, seed=seed).log()).log_softmax(-1)
        assert bool((loss_of(nearby, t, eps) >= here - 1e-9).all())


def test_a_saddle_is_not_reported_as_converged():
    """At a uniform teacher the gradient is zero by symmetry; with eps_2 = -10 every way from it is downwards."""
    t, eps = torch.full((3,), 1 / 3, dtype=F64), torch.tensor([0.0, -10.0], dtype=F64)
    found = pt.proxy_teacher(t, eps)
    assert float(found.residual) < 1e-12
    assert not bool(found.converged)
    away = torch.tensor([0.34, 0.33, 0.33], dtype=F64)
    assert float(loss_of(away.log(), t, eps)) < float(loss_of(found.probs.log(), t, eps))
    assert bool(pt.proxy_teacher(t, torch.tensor([0.0, 10.0])).converged)


@pytest.mark.parametrize(("second", "minimum"), [(-10.0, False), (-4.2, False), (-3.8, True), (1.0, True)])
def test_one_negative_curvature_of_two_is_weighed_against_the_other(second, minimum):
    """Along (1, -1) from t = (1/2, 1/2): 1/2 (4 + 2 second) + 1/2 4, with eps_1 = -second so that t is stationary."""
    t, eps = torch.tensor([0.5, 0.5], dtype=F64), torch.tensor([[-second, second], [0.0, 0.0]], dtype=F64)
    found = pt.proxy_teacher(t, eps)
    assert torch.equal(found.probs, t)
    assert bool(found.converged) == minimum
    away = torch.tensor([0.51, 0.49], dtype=F64)
    assert (float(loss_of(away.log(), t, eps)) > float(loss_of(t.log(), t, eps))) == minimum


def test_rows_that_do_not_converge_are_said_to_one_by_one():
    """Sharp teachers under strongly negative coefficients: mass leaves for classes of 1e-13, the minimum is flat."""
    easy, hard = teachers(50, 5, spread=0.3), teachers(50, 5, spread=12.0)
    eps = torch.tensor([-4.0, -4.0], dtype=F64)
    found = pt.proxy_teacher(torch.cat([easy, hard]), eps)
    assert fraction(found.converged[50:]) < 0.9
    assert bool(torch.isfinite(found.probs).all())
    assert_near(found.probs.sum(-1), torch.ones(100, dtype=F64), rtol=1e-14)
    stationary = gradient_at(found.probs, torch.cat([easy, hard]), eps).abs().amax(-1)
    assert bool((stationary[found.converged] < 1e-7).all())
    assert torch.equal(found.converged[:50], pt.proxy_teacher(easy, eps).converged)  # neighbours do not matter


@pytest.mark.parametrize("device", DEVICES)
def test_the_residual_is_the_gradient_relative_to_its_scale(device):
    """Also where it is large: the solver is stopped after one step."""
    t, eps = teachers(20, 6, device=device), uniform(3, low=0.0, high=9.0, device=device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newton, "_STEPS", 1)
        found = pt.proxy_teacher(t, eps)
    p = found.probs
    g = sum(m * eps[m - 1] * (1 - p) ** (m - 1) for m in (1, 2, 3))
    total = (t * (1 + p * g)).sum(-1)
    wanted = gradient_at(p, t, eps).abs().amax(-1) / total.abs().clamp(min=1.0)
    assert_near(found.residual, wanted, rtol=1e-9)
    assert float(wanted.min()) > 1e-4
    assert not bool(found.converged.any())


def test_rounding_is_no_reason_to_refuse():
    for dtype in (F32, torch.float16, torch.bfloat16, F64):
        t = teachers(3, 1000, spread=3.0).to(dtype)
        assert bool(pt.proxy_teacher(t, torch.ones(2)).converged.all())
