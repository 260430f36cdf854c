"""The auxiliary-variable loss against its definition in float64: every dtype, mixture, size and filling of the bank."""

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, ENTRIES, ROWS, SETTINGS, batch, check, entries, make_bank, run
from cases import BF16, F16, F32, F64, logits, name_of
from oracle_auxiliary import Bank, eager, log_posterior, posterior, stored, unit
from oracle_auxiliary import auxiliary as oracle
from tgeo_students import EVERY_DEVICE

import kdkernels as kd
from kdkernels.methods import auxiliary

DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)
MIXTURES = pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
BETAS = pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])


def own_numbers(rows, device="cpu"):
    """Every third row is the sample of a bank's entry; the others are in no bank."""
    numbers = torch.arange(rows)
    return torch.where(numbers % 3 == 0, 100 + numbers % ENTRIES, -numbers - 1).to(device)


@MIXTURES
@pytest.mark.parametrize("excluded", [False, True])
def test_the_oracle_is_what_autograd_says(mixture, excluded):
    """The oracle's gradients are written by hand: autograd of the composition in float64 has the same."""
    features, probs, index = entries(dtype=F64)
    bank = Bank(unit(features), probs, index)
    settings = SETTINGS | {"mixture": mixture, "index": own_numbers(ROWS) if excluded else None}
    answers, _ = oracle(*batch(dtype=F64), bank, **settings)
    for got, wanted in zip(answers, eager(*batch(dtype=F64), bank, **settings), strict=True):
        torch.testing.assert_close(got.values, wanted.values, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(got.gradient, wanted.gradient, rtol=1e-10, atol=1e-12)


@DTYPES
@MIXTURES
@BETAS
def test_definition(where, dtype, mixture, beta):
    bank = make_bank(entries(device=where.device, dtype=dtype), dtype=F64 if dtype == F64 else F32)
    given = batch(device=where.device, dtype=dtype)
    with kd.use_backend(where.backend):
        check(given, bank, mixture=mixture, beta=beta)
        check(given, bank, mixture=mixture, beta=beta, index=own_numbers(ROWS, where.device))


@EVERY_DEVICE
@pytest.mark.parametrize("rows", [1, 7, 33, 257])
@pytest.mark.parametrize(("count", "dim"), [(ENTRIES, DIM), (1, 1), (1031, 64)])
def test_sizes(device, rows, count, dim):
    """Rows that no chunk divides, a bank of one, and one that is larger than the batch."""
    bank = make_bank(entries(count, dim, device=device))
    given = batch(rows, dim, device=device)
    check(given, bank)
    check(given, bank, index=own_numbers(rows, device) if count > 1 else None)


@EVERY_DEVICE
def test_many_classes_and_a_long_bank(device):
    bank = make_bank(entries(5000, 32, 300, device=device))
    check(batch(65, 32, 300, device=device), bank)


@EVERY_DEVICE
@pytest.mark.parametrize("pushes", [[5], [64], [65], [40, 40], [64, 64, 3], [200], [10, 300]], ids=str)
def test_filling(device, pushes):
    """A bank of 64 entries: partly filled, full, wrapped around, and given more at once than it holds."""
    bank, start = auxiliary.InstanceBank(64, DIM, CLASSES).to(device), 0
    features, probs, index = entries(sum(pushes), device=device)
    for count in pushes:
        bank.push(*(x[start : start + count] for x in (features, probs, index)))
        start += count
    values, *gradients = check(batch(device=device), bank)
    # And against what the last 64 were, in float64 throughout: units are rounded once, to 2^-24 / kappa.
    last = Bank(unit(features[-64:]), probs[-64:].cpu().double(), index[-64:].cpu())
    answers, _ = oracle(*batch(), last, **SETTINGS)
    torch.testing.assert_close(values.cpu().double(), answers.student.values, rtol=2e-5, atol=1e-5)
    for gradient, answer in zip(gradients, answers, strict=True):
        torch.testing.assert_close(gradient.cpu().double(), answer.gradient, rtol=1e-4, atol=1e-4)


@EVERY_DEVICE
@pytest.mark.parametrize("kappa", [0.01, 0.05, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_concentrations(device, kappa, dtype):
    bank = make_bank(entries(device=device, dtype=dtype), dtype=dtype)
    check(batch(device=device, dtype=dtype), bank, kappa=kappa)
    check(batch(device=device, dtype=dtype), bank, kappa=kappa, mixture=0.99, beta=0.0)


@EVERY_DEVICE
@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.3])
def test_temperatures(device, temperature):
    check(batch(device=device), make_bank(entries(device=device)), temperature=temperature)


MIXED = {
    "half student": (F16, F32, F32, F32, F32),
    "half features": (F32, F32, BF16, F16, F32),
    "half teacher": (F32, BF16, F32, BF16, F32),
    "half bank": (F32, F32, F32, F32, F16),
    "bfloat16 bank": (BF16, F32, F16, F32, BF16),
    "double bank": (F32, F32, F32, F32, F64),
    "single bank of doubles": (F64, F64, F64, F64, F32),
}


@EVERY_DEVICE
@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes(device, name):
    """Each input is read as it is stored, and each gradient has the dtype of what it belongs to."""
    *dtypes, stored_as = MIXED[name]
    given = tuple(x.to(dtype) for x, dtype in zip(batch(device=device), dtypes, strict=True))
    check(given, make_bank(entries(device=device), dtype=stored_as))


@EVERY_DEVICE
@DTYPES
def test_upstream_per_row(device, dtype):
    """Each row's gradients are multiplied by its own upstream: random, of stride 0, strided, with zeros."""
    bank = make_bank(entries(device=device))
    given = batch(device=device, dtype=dtype)
    value, *unit_gradients = run(given, bank)
    random = logits(ROWS, seed=7, device=device, dtype=value.dtype)
    rounding = {F64: 1e-15, F32: 2**-23, F16: 2**-10, BF16: 2**-7}[dtype]
    for upstream in (
        random,
        random.new_tensor(-1.5).expand(ROWS),
        random.repeat_interleave(2)[::2],
        torch.where(random > 0, random, 0.0),
    ):
        _, *gradients = run(given, bank, upstream)
        for got, unit_gradient in zip(gradients, unit_gradients, strict=True):
            wanted = unit_gradient.double() * upstream.double()[:, None]
            torch.testing.assert_close(got.double(), wanted, rtol=rounding, atol=2**-24 if dtype == F16 else 1e-30)


@EVERY_DEVICE
def test_strided_inputs(device):
    """Slices of wider buffers, and columns of transposed ones, are read as they lie."""
    bank = make_bank(entries(device=device))
    given = batch(device=device)
    wide = tuple(torch.cat([x, 7 * x], -1)[:, : x.shape[-1]] for x in given)
    across = tuple(x.T.contiguous().T for x in given)
    for strided in (wide, across):
        for got, wanted in zip(run(strided, bank), run(given, bank), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@EVERY_DEVICE
@pytest.mark.parametrize("rows", [1, 7, 33, 257])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_posterior(device, rows, excluded, dtype):
    bank = make_bank(entries(device=device, dtype=dtype), capacity=64, dtype=dtype)
    features = batch(rows, device=device, dtype=dtype)[2].requires_grad_()
    index = own_numbers(rows, device) if excluded else None
    got = bank.posterior(features, 0.2, index)
    assert got.shape == (rows, CLASSES) and not got.requires_grad
    wanted = posterior(features, stored(bank), 0.2, index)
    # Similarities of 1 / kappa = 5 are off by a few roundings each; a result in half precision is rounded itself.
    tolerance = {F64: 1e-14, F32: 1e-5, F16: 2e-3, BF16: 1e-2}[got.dtype]
    torch.testing.assert_close(got.double().cpu(), wanted, rtol=tolerance, atol=tolerance * 1e-2)
    if dtype == F32:
        torch.testing.assert_close(got.sum(-1), torch.ones(rows, device=device))


def test_posterior_of_own_entries():
    bank = make_bank(entries())
    features = batch(3)[2]
    bank.push(features, torch.eye(CLASSES)[:3], torch.tensor([7, 7, 8]))
    with_own, without = (bank.posterior(features, 0.05, index) for index in (None, torch.tensor([7, 7, 8])))
    for row, label in enumerate([0, 1, 2]):
        assert with_own[row, label] > 0.9 > without[row, label]  # the entry's own answer leaks
    only = make_bank(tuple(x[:1] for x in entries()))
    assert bool((only.posterior(features, 0.1, torch.tensor([100, 100, 100])) == 0).all())


def closed_form(given, bank, kappa, temperature):
    """lambda = 1: r_i = w_i sum_c t_c q_ic / p_c, dL/du_i = T^2 (w_i - r_i) / kappa, and dL/dh through the norm."""
    _, teacher, h, _ = given
    w, t = log_posterior(h, bank, kappa).exp(), (teacher / temperature).softmax(-1)
    p = w @ bank.probs
    r = torch.stack([w[:, i] * (t * bank.probs[i] / p).sum(-1) for i in range(len(bank.probs))], -1)
    pull = temperature**2 * (w - r) / kappa @ bank.features
    project = torch.eye(h.shape[-1], dtype=F64) - unit(h)[:, :, None] * unit(h)[:, None, :]
    return r, (project @ pull[..., None])[..., 0] / h.norm(dim=-1, keepdim=True)


def test_responsibilities():
    """papers.md, section 4: they sum to one, and no gradient reaches the logits."""
    given, bank = batch(dtype=F64), make_bank(entries(dtype=F64), dtype=F64)
    r, wanted = closed_form(given, stored(bank), 0.3, 2.0)
    torch.testing.assert_close(r.sum(-1), torch.ones(ROWS, dtype=F64), rtol=1e-13, atol=0)
    _, z, h = run(given, bank, mixture=1.0, beta=0.0, kappa=0.3, temperature=2.0)
    torch.testing.assert_close(h, wanted, rtol=1e-11, atol=1e-13)
    assert bool((z == 0).all())


@MIXTURES
@BETAS
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (F32, 1e-5)], ids=["float64", "float32"])
def test_the_features_gradient_is_orthogonal_to_them(mixture, beta, dtype, tolerance):
    """The length of h has no part in the loss. Similarities are rounded 1 / kappa = 10 times as coarsely as 1 is."""
    given, bank = batch(dtype=dtype), make_bank(entries(dtype=dtype), dtype=dtype)
    settings = {"mixture": mixture, "beta": beta}
    _, _, h = run(given, bank, **settings)
    _, scales = oracle(*given, stored(bank), **(SETTINGS | settings))
    along = (h.double() * unit(given[2])).sum(-1).abs()
    assert bool((along <= tolerance * scales.features.gradient.norm(dim=-1)).all())
    assert bool((h.norm(dim=-1) > 1e-3).all()) == (mixture > 0 or beta > 0)
