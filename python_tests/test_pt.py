"""Proxy teachers, from their definition: argmin_p KL(t || p) + sum_c t_c sum_m eps_{c,m} (1 - p_c)^m."""

import pytest
import torch
from cases import BF16, F16, F32, F64, logits
from conftest import DEVICES
from perturbed_definition import assert_near, gradient_at, loss_of, teachers, uniform

import kdkernels as kd
from kdkernels.methods import pt
from kdkernels.methods.pt import proxy as implementation

DEVICE = pytest.mark.parametrize("device", DEVICES)


# (orders, lowest, highest): convex with every eps_m >= -1/m; the paper's interval mostly is.
RANGES = [(1, -1.0, 10.0), (2, -0.5, 10.0), (3, -0.3, 0.0), (5, 0.0, 10.0), (8, -0.125, 150.0), (1, -150.0, 150.0)]
CONVEX = pytest.mark.parametrize(("order", "low", "high"), RANGES, ids=str)


@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("classes", [1, 2, 100])
def test_without_a_perturbation_the_proxy_is_the_teacher(order, classes):
    t = teachers(5, classes, spread=6.0)
    for eps in (torch.zeros(order), torch.zeros(classes, order)):
        found = pt.proxy_teacher(t, eps)
        assert_near(found.probs, t, rtol=1e-14, atol=0.0)
        assert float(found.residual.max()) < 1e-15
        assert bool(found.converged.all())


@CONVEX
def test_a_one_hot_teacher_is_its_own_proxy(order, low, high):
    t = torch.eye(7, dtype=F64)
    for eps in (
        uniform(order, low=low, high=high),
        uniform(7, order, low=low, high=high),
        torch.full((order,), -150.0),
    ):
        found = pt.proxy_teacher(t, eps)
        assert torch.equal(found.probs, t)
        assert bool(found.converged.all())


@DEVICE
@CONVEX
@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "per class"])
@pytest.mark.parametrize("classes", [2, 3, 100])
def test_the_gradient_of_the_loss_vanishes_at_the_proxy(device, order, low, high, per_class, classes):
    t = teachers(64, classes, device=device, spread=4.0)
    eps = uniform(*((classes,) if per_class else ()), order, low=low, high=high, device=device)
    found = pt.proxy_teacher(t, eps)
    gradient = gradient_at(found.probs, t, eps)
    scale = 1.0 + float(eps.abs().max())
    assert float(gradient.abs().max()) < 1e-12 * scale
    assert bool(found.converged.all())
    assert_near(found.probs.sum(-1), torch.ones(64, dtype=F64, device=device), rtol=1e-14)
    assert float(gradient_at(t, t, eps).abs().max()) > 1e-3  # the teacher is not the answer


@pytest.mark.filterwarnings("ignore:some coefficient")
def test_the_gradient_of_the_fused_loss_vanishes_there_too(where):
    t, eps = teachers(9, 33, device=where.device), torch.tensor([2.0, -0.4, 3.0, 5.0], dtype=F64, device=where.device)
    for dtype, bound in [(F64, 1e-14), (F32, 1e-5)]:
        student = pt.proxy_teacher(t, eps).probs.log().to(dtype).requires_grad_()
        loss = kd.Perturbed(eps.to(dtype))
        kd.divergence(student, t.log().to(dtype), loss, reduction="sum", backend=where.backend).backward()
        assert float(student.grad.abs().max()) < bound


@CONVEX
@pytest.mark.parametrize("classes", [2, 5, 12])
def test_no_other_distribution_has_a_lower_loss(order, low, high, classes):
    """L-BFGS from three random starts, on the logits, by autograd alone."""
    t, eps = teachers(4, classes, spread=1.0), uniform(classes, order, low=low, high=min(high, 20.0))
    found = pt.proxy_teacher(t, eps)
    for seed in range(3):
        z = logits(4, classes, dtype=F64, seed=10 + seed).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [z], max_iter=500, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0
        )

        def closure(z=z, optimiser=optimiser):
            optimiser.zero_grad()
            loss = loss_of(z.log_softmax(-1), t, eps).sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        assert float(gradient_at(z.detach().softmax(-1), t, eps).abs().max()) < 1e-6  # L-BFGS has arrived
        least = loss_of(z.detach().log_softmax(-1), t, eps)
        assert bool((loss_of(found.probs.log(), t, eps) <= least + 1e-12).all())
        assert_near(found.probs, z.detach().softmax(-1), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    "eps", [[5.0], [-40.0], [1.0, 8.0], [-1.0, -0.5, 0.0, 3.0], [10.0] * 8, [-3.0, 9.0, -2.0, 4.0]]
)
def test_two_classes_against_a_grid(eps):
    eps, t = torch.tensor(eps, dtype=F64), torch.tensor([0.83, 0.17], dtype=F64)
    grid = torch.linspace(0, 1, 2_000_001, dtype=F64)[1:-1]
    values = loss_of(torch.stack([grid, 1 - grid], -1).log(), t, eps)
    found = pt.proxy_teacher(t, eps)
    assert abs(float(found.probs[0] - grid[values.argmin()])) < 1e-6
    assert bool(found.converged)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_a_dense_newton_with_a_pinned_logit_gives_the_same(order):
    t, eps = teachers(6, spread=1.0), uniform(6, order, low=0.0, high=10.0)

    def pinned(z):
        return loss_of(torch.cat([z, z.new_zeros(1)]).log_softmax(-1), t, eps)

    z = (t / t[-1]).log()[:-1]
    for _ in range(50):
        gradient, hessian = torch.func.grad(pinned)(z), torch.func.hessian(pinned)(z)
        values, vectors = torch.linalg.eigh(hessian)
        step = vectors @ ((vectors.T @ gradient) / values.abs().clamp(min=1e-3))
        length = next(a for a in 0.5 ** torch.arange(40) if float(pinned(z - a * step)) <= float(pinned(z)) + 1e-14)
        z = z - length * step
    dense = torch.cat([z, z.new_zeros(1)]).softmax(-1)
    assert_near(pt.proxy_teacher(t, eps).probs, dense, rtol=1e-11)


@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "per class"])
def test_the_root_of_one_order_agrees_with_the_general_solver(per_class):
    """A second order with coefficients of zero changes the loss by nothing, and the way to its minimum entirely."""
    t = teachers(300, 10, spread=8.0)
    for low, high in [(-1.0, 10.0), (0.0, 150.0), (-5.0, 0.0)]:
        eps = uniform(*((10,) if per_class else ()), 1, low=low, high=high)
        root, general = pt.proxy_teacher(t, eps), pt.proxy_teacher(t, torch.cat([eps, torch.zeros_like(eps)], -1))
        assert bool(root.converged.all())
        excess = loss_of(general.probs.log(), t, eps) - loss_of(root.probs.log(), t, eps)
        assert bool((excess >= -1e-12).all())  # one order is convex, whatever its sign
        assert bool((excess[general.converged] < 1e-9).all())
        if low >= -1.0:  # below, the minimum may be too flat for the general solver
            assert bool(general.converged.all())
            assert_near(root.probs, general.probs)


@pytest.mark.parametrize("order", [1, 4])
def test_classes_may_be_permuted(order):
    t, eps, turn = teachers(6, 20), uniform(20, order, low=-0.2, high=10.0), torch.arange(20).roll(7)
    for coefficients, permuted in [(eps, eps[turn]), (eps[0], eps[0])]:
        straight, turned = pt.proxy_teacher(t, coefficients), pt.proxy_teacher(t[:, turn], permuted)
        assert_near(turned.probs, straight.probs[:, turn])
    assert not torch.allclose(
        pt.proxy_teacher(t[:, turn], eps).probs, pt.proxy_teacher(t, eps).probs[:, turn], rtol=1e-3
    )


@pytest.mark.parametrize("order", [1, 3, 8])
def test_classes_without_teacher_probability_stay_without_and_do_not_count(order):
    t, eps = teachers(5, 4), uniform(6, order, low=-0.1, high=10.0)
    padded = torch.zeros(5, 6, dtype=F64)
    padded[:, [0, 2, 3, 5]] = t
    found, small = pt.proxy_teacher(padded, eps), pt.proxy_teacher(t, eps[[0, 2, 3, 5]])
    assert bool((found.probs[:, [1, 4]] == 0).all())
    assert_near(found.probs[:, [0, 2, 3, 5]], small.probs)
    assert bool(found.converged.all())


@pytest.mark.parametrize("order", [1, 3, 8])
def test_a_class_of_next_to_no_probability_keeps_its_relative_precision(order):
    """p_c = r_c / R, and r_c = t_c where p_c g_c is nothing beside 1."""
    t = torch.tensor([0.7, 0.3, 1e-30, 1e-200], dtype=F64)
    eps = uniform(4, order, low=-0.1, high=10.0)
    p = pt.proxy_teacher(t, eps).probs
    g = (eps * torch.stack([m * (1 - p) ** (m - 1) for m in range(1, order + 1)], -1)).sum(-1)
    total = (t * (1 + p * g)).sum()
    assert_near(p[2:] * total / t[2:], torch.ones(2, dtype=F64), rtol=1e-9)


@DEVICE
@pytest.mark.parametrize("order", [1, 5])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 5), (2, 0, 5), (4, 1), (1,)], ids=str)
def test_any_leading_shape(device, order, shape):
    t, eps = teachers(*shape, device=device), uniform(order, low=0.0, high=9.0, device=device)
    found = pt.proxy_teacher(t, eps)
    assert found.probs.shape == t.shape
    assert found.residual.shape == found.converged.shape == shape[:-1]
    assert (found.residual.dtype, found.converged.dtype) == (F64, torch.bool)
    assert {part.device for part in found} == {t.device}
    rows = [pt.proxy_teacher(row, eps).probs for row in t.reshape(-1, shape[-1])]
    if rows:
        assert_near(found.probs.reshape(-1, shape[-1]), torch.stack(rows), rtol=1e-12)
    if shape[-1] == 1:
        assert torch.equal(found.probs, torch.ones_like(t))


@DEVICE
@pytest.mark.parametrize(("dtype", "rounding"), [(F64, 1e-13), (F32, 2**-23), (BF16, 2**-8), (F16, 2**-10)], ids=str)
def test_the_dtype_is_the_teachers_and_the_arithmetic_is_float64(device, dtype, rounding):
    t = teachers(6, 50, device=device).to(dtype)
    eps = uniform(3, low=0.0, high=9.0, device=device)
    found = pt.proxy_teacher(t, eps)
    exact = pt.proxy_teacher(t.double() / t.double().sum(-1, keepdim=True), eps)
    assert found.probs.dtype == dtype
    assert_near(found.probs.double(), exact.probs, rtol=rounding, atol=1e-7)
    assert float(found.residual.max()) < 1e-13
    assert torch.equal(pt.proxy_teacher(t, eps.to(dtype)).probs, pt.proxy_teacher(t, eps.to(dtype).double()).probs)


def test_no_gradient_flows_through_it():
    assert not pt.proxy_teacher(teachers(2, 3).requires_grad_(), torch.ones(2)).probs.requires_grad


@DEVICE
@pytest.mark.parametrize("order", [1, 4])
def test_blocks_of_rows_change_nothing(device, order, monkeypatch):
    t, eps = teachers(50, 9, device=device, spread=5.0), uniform(9, order, low=-0.2, high=10.0, device=device)
    whole = pt.proxy_teacher(t, eps)
    for entries in (1, 63):
        monkeypatch.setattr(implementation, "_ENTRIES", entries)
        monkeypatch.setattr(implementation, "_ENTRIES_ON_DEVICE", entries)
        for part, all_at_once in zip(pt.proxy_teacher(t, eps)[::2], whole[::2], strict=True):
            assert_near(part.double(), all_at_once.double(), rtol=1e-12)
