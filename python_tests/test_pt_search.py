"""The quality of a proxy teacher and the search for coefficients, from equation 20 and algorithm 1 of the paper."""

import math
import sys

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of
from conftest import DEVICES
from perturbed_definition import teachers

import kdkernels as kd
from kdkernels.methods import pt
from kdkernels.methods.pt import search as implementation

DEVICE = pytest.mark.parametrize("device", DEVICES)


def validation_set(rows=40, classes=6, device="cpu", seed=0):
    """A teacher that is right more often than not."""
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    z = logits(rows, classes, seed=seed)
    z[torch.arange(rows), labels] += 2.0
    return z.to(device), labels.to(device)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def search(z, labels, seed=0, **options):
    options = {"orders": (1, 2, 4), "draws": 15, "progress": False} | options
    return pt.search_coefficients(z, labels, generator=seeded(seed), **options)


def quality_by_hand(probs, labels):
    """Q in Python floats: (mean ||p - y||)^2 + mean (p^T log p)^2."""
    distances, entropies = [], []
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        distances.append(math.sqrt(sum((p - (c == label)) ** 2 for c, p in enumerate(row))))
        entropies.append(sum(p * math.log(p) for p in row if p > 0))
    count = len(distances)
    return (sum(distances) / count) ** 2 + sum(e * e for e in entropies) / count


@DEVICE
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=name_of)
def test_quality_against_a_loop(device, dtype):
    probs, (_, labels) = teachers(40, 6, device=device, spread=3.0).to(dtype), validation_set(device=device)
    probs[0] = torch.eye(6)[2].to(probs)  # 0 log 0 = 0
    value = pt.quality(probs, labels)
    assert (value.shape, value.dtype, value.device) == ((), F64, probs.device)
    assert float(value) == pytest.approx(quality_by_hand(probs.double().cpu(), labels.cpu()), rel=1e-12)
    assert float(pt.quality(probs, labels.to(torch.int32))) == float(value)


def test_quality_of_known_teachers():
    labels = torch.tensor([0, 1, 2, 3])
    assert float(pt.quality(torch.eye(4, dtype=F64), labels)) == 0.0
    assert float(pt.quality(torch.eye(4, dtype=F64).roll(1, 0), labels)) == pytest.approx(2.0)
    even = math.sqrt(0.75**2 + 3 * 0.25**2)
    assert float(pt.quality(torch.full((4, 4), 0.25), labels)) == pytest.approx(even**2 + math.log(4) ** 2)


def test_quality_keeps_the_digits_of_a_teacher_that_is_nearly_right():
    tiny = torch.tensor([[1 - 1e-12, 1e-12]], dtype=F64)
    distance, entropy = math.sqrt(2) * 1e-12, 1e-12 * (1 - math.log(1e-12))
    assert float(pt.quality(tiny, torch.tensor([0]))) == pytest.approx(distance**2 + entropy**2, rel=1e-3)


def test_quality_takes_a_proxy_and_refuses_one_that_did_not_converge():
    z, labels = validation_set()
    proxy = pt.proxy_teacher(z.softmax(-1), torch.tensor([1.0, 2.0]))
    assert float(pt.quality(proxy, labels)) == float(pt.quality(proxy.probs, labels))
    doubtful = proxy._replace(converged=proxy.converged & (torch.arange(40) != 3))
    with pytest.raises(RuntimeError, match="proxy must have converged, got 1 row"):
        pt.quality(doubtful, labels)


@DEVICE
@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "per class"])
def test_the_search_is_the_best_of_the_draws(device, per_class):
    """Algorithm 1, written out."""
    z, labels = validation_set(device=device)
    found = search(z, labels, per_class=per_class, low=-0.5, high=6.0, temperature=2.0)
    generator, trials = seeded(), []
    for order in (1, 2, 4):
        for _ in range(15):
            eps = -0.5 + 6.5 * torch.rand(*((6,) if per_class else ()), order, generator=generator)
            proxy = pt.proxy_teacher((z.double() / 2).softmax(-1), eps.to(device))
            trials.append((float(pt.quality(proxy.probs, labels)), order, bool(proxy.converged.all()), eps))
    assert found.discarded == sum(not converged for _, _, converged, _ in trials)
    for trial, (value, order, converged, _) in zip(found.trials, trials, strict=True):
        assert (trial.order, trial.converged) == (order, converged)
        assert trial.quality == pytest.approx(value, rel=1e-9)
    best = min((trial for trial in trials if trial[2]), key=lambda trial: trial[0])
    assert torch.equal(found.coefficients.cpu(), best[3])
    assert found.quality == min(trial.quality for trial in found.trials if trial.converged)
    assert found.vanilla == pytest.approx(float(pt.quality((z.double() / 2).softmax(-1), labels)))


@DEVICE
def test_what_is_found_is_ready_for_the_loss(device):
    z, labels = validation_set(device=device)
    for per_class, shape in [(False, (3,)), (True, (6, 3))]:
        found = search(z, labels, orders=[3], low=0.0, per_class=per_class)
        eps = found.coefficients
        assert (eps.shape, eps.dtype, eps.device, eps.requires_grad) == (shape, F32, z.device, False)
        assert kd.Perturbed(eps).name == "perturbed"
        again = pt.quality(pt.proxy_teacher(z.double().softmax(-1), eps), labels)
        assert float(again) == pytest.approx(found.quality, rel=1e-12)
        assert isinstance(found.quality, float)
        assert isinstance(found.vanilla, float)


def test_a_teacher_that_is_right_and_unsure_is_improved():
    z, labels = validation_set()
    hesitant = 0.3 * z
    found = search(hesitant, labels)
    assert found.quality < 0.8 * found.vanilla
    probs = pt.proxy_teacher(hesitant.softmax(-1), found.coefficients).probs
    assert float((probs - torch.eye(6)[labels]).norm(dim=-1).mean()) < float(
        (hesitant.softmax(-1) - torch.eye(6)[labels]).norm(dim=-1).mean()
    )


def test_the_seed_decides():
    z, labels = validation_set()
    first, again, other = search(z, labels, 0), search(z, labels, 0), search(z, labels, 1)
    assert torch.equal(first.coefficients, again.coefficients)
    assert first[1:] == again[1:]
    assert not {trial.quality for trial in first.trials} & {trial.quality for trial in other.trials}
    one, two = seeded(), seeded()
    one_after_the_other = [
        pt.search_coefficients(z, labels, (2,), 5, generator=one, progress=False).trials for _ in range(2)
    ]
    together = pt.search_coefficients(z, labels, (2,), 10, generator=two, progress=False).trials
    assert sum(one_after_the_other, ()) == together


def test_without_a_generator_torch_decides():
    z, labels = validation_set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        default = pt.search_coefficients(z, labels, (2,), 5, progress=False)
    assert default.trials == search(z, labels, 5, orders=(2,), draws=5).trials


def test_draws_cover_the_interval_and_keep_to_it(monkeypatch):
    seen = []

    def watched(t, eps, solve=implementation.solve):
        seen.append(eps)
        return solve(t, eps)

    monkeypatch.setattr(implementation, "solve", watched)
    search(*validation_set(8, 3), orders=(1, 5), draws=50, low=2.0, high=3.0)
    values = torch.cat([eps.flatten() for eps in seen])
    assert len(values) == 300
    assert 2.0 <= float(values.min()) < 2.05
    assert 2.95 < float(values.max()) <= 3.0


def test_a_discarded_draw_is_never_chosen(monkeypatch):
    z, labels = validation_set()
    honest = search(z, labels)
    best = honest.coefficients.double()

    def doubtful(t, eps, solve=implementation.solve):
        proxy = solve(t, eps)
        if eps.numel() == best.numel() and torch.equal(eps.flatten(), best):
            proxy.converged[7] = False
        return proxy

    monkeypatch.setattr(implementation, "solve", doubtful)
    second = search(z, labels)
    assert second.discarded == honest.discarded + 1
    assert [trial.quality for trial in second.trials] == [trial.quality for trial in honest.trials]
    assert second.quality == sorted(trial.quality for trial in honest.trials if trial.converged)[1]
    assert not torch.equal(second.coefficients, honest.coefficients)


def test_nothing_is_returned_where_nothing_converged():
    """A uniform teacher is a saddle of every strongly negative second order."""
    with pytest.raises(RuntimeError, match=r"none of 4 draws from \[-20.0, -10.0\]"):
        search(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), orders=(2,), draws=4, low=-20.0, high=-10.0)


def test_the_bar_counts_draws_and_can_be_done_without(capsys, monkeypatch):
    z, labels = validation_set()
    search(z, labels, progress=True)
    assert "45/45" in capsys.readouterr().err
    search(z, labels, progress=False)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # what an import finds where tqdm is not installed
    assert len(search(z, labels, progress=True).trials) == 45
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [F64, BF16, F16], ids=name_of)
def test_logits_of_any_dtype_and_rows_with_minus_infinity(dtype):
    z, labels = validation_set()
    z = z.to(dtype)
    z[labels != 0, 0] = -torch.inf
    found = search(z, labels)
    assert found.vanilla == pytest.approx(quality_by_hand(z.double().softmax(-1), labels), rel=1e-12)
    assert found.quality < found.vanilla


def test_a_search_is_printed_in_a_line():
    found = search(*validation_set())
    assert len(repr(found)) < 200 and "45 trials" in repr(found) and f"{found.quality:.6g}" in repr(found)
