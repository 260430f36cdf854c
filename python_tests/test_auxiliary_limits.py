"""What the auxiliary-variable loss becomes at its ends, and what it must not depend on."""

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, ENTRIES, ROWS, batch, entries, make_bank, run
from cases import BF16, F16, F32, F64, logits, name_of
from tgeo_students import EVERY_DEVICE

import kdkernels as kd
from kdkernels.methods import auxiliary

DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "sum", "mean"])


def criterion(mixture, beta, temperature, capacity=64, device="cpu", dtype=F32):
    torch.manual_seed(0)
    options = {"capacity": capacity, "mixture": mixture, "beta": beta, "temperature": temperature}
    return auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, **options).to(device, dtype)


def with_gradient(call, z, upstream):
    leaf = z.detach().requires_grad_()
    value = call(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, upstream.expand_as(value).to(value.dtype))
    return value.detach(), gradient


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("temperature", [1.0, 4.0, 2.7])
@pytest.mark.parametrize("upstream", ["one", "per row"])
def test_mixture_0_is_the_op_to_the_bit(where, dtype, reduction, temperature, upstream):
    """Value and gradient of ordinary distillation: lambda = 0 and beta = 0, in every reduction."""
    student, teacher, h, ht = batch(33, device=where.device, dtype=dtype)
    g = torch.ones((), device=where.device)
    if upstream == "per row":
        g = logits(33 if reduction == "none" else 1, seed=3, device=where.device).squeeze()
    module = criterion(0.0, 0.0, temperature, device=where.device, dtype=dtype)
    options = {"temperature": temperature, "reduction": reduction}
    with kd.use_backend(where.backend):
        wanted = with_gradient(lambda z: kd.divergence(z, teacher, kd.ForwardKL(), **options), student, g)
        got = with_gradient(
            lambda z: module(z, teacher, h, ht, torch.arange(33, device=where.device), reduction=reduction), student, g
        )
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@DTYPES
def test_mixture_0_is_the_op_to_the_bit_beneath(where, dtype):
    """The functional form; with a feature term too, which has no part in the gradient of the logits."""
    given = batch(33, device=where.device, dtype=dtype)
    bank = make_bank(entries(device=where.device))
    settings = {"mixture": 0.0, "temperature": 3.0}
    with kd.use_backend(where.backend):
        call = lambda z: kd.divergence(z, given[1], kd.ForwardKL(), temperature=3.0, reduction="none")  # noqa: E731
        value, gradient = with_gradient(call, given[0], torch.ones((), device=where.device))
        plain, z, h = run(given, bank, beta=0.0, **settings)
        both, z_too, h_too = run(given, bank, beta=1.0, **settings)
    assert torch.equal(plain, value) and torch.equal(z, gradient) and torch.equal(z_too, gradient)
    assert bool((h == 0).all()) and bool((h_too != 0).any()) and bool((both > plain).all())


def test_mixture_0_and_beta_0_do_not_read_the_bank():
    bank = make_bank(tuple(x.fill_(torch.nan) if x.is_floating_point() else x for x in entries()))
    value, z, h = run(batch(), bank, mixture=0.0, beta=0.0)
    assert bool(value.isfinite().all() & z.isfinite().all()) and bool((h == 0).all())


def close(first, second, tolerance=1e-12):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.3, 1.0])
def test_the_order_of_the_bank_does_not_matter(device, mixture):
    given, settings = entries(device=device, dtype=F64), {"mixture": mixture}
    order = torch.randperm(ENTRIES, generator=torch.Generator().manual_seed(0)).to(device)
    index = 100 + torch.arange(ROWS, device=device)
    banks = [make_bank(x, dtype=F64) for x in (given, [each[order] for each in given])]
    assert not torch.equal(banks[0].features, banks[1].features)
    for numbers in (None, index):
        first, second = (run(batch(device=device, dtype=F64), bank, index=numbers, **settings) for bank in banks)
        close(first, second)


@EVERY_DEVICE
def test_a_doubled_bank_changes_nothing(device):
    """p(i|x) is shared by the two copies of an instance; p_aux, both terms and the gradients stay."""
    given = entries(device=device, dtype=F64)
    once, twice = make_bank(given, dtype=F64), make_bank([torch.cat([x, x]) for x in given], dtype=F64)
    student = batch(device=device, dtype=F64)
    close([once.posterior(student[2], 0.1)], [twice.posterior(student[2], 0.1)])
    index = 100 + torch.arange(ROWS, device=device)
    for settings in ({}, {"mixture": 1.0}, {"mixture": 1.0, "index": index}):
        close(run(student, once, **settings), run(student, twice, **settings))


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.3, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (F32, 1e-5)], ids=["float64", "float32"])
def test_instances_that_all_say_the_same_teach_the_features_nothing(device, mixture, dtype, tolerance):
    """q_i = q: p_aux = q wherever h points. What is left are roundings of T^2 w / kappa = 160, over |h| > 1."""
    features, _, index = entries(device=device, dtype=dtype)
    probs = logits(CLASSES, device=device, dtype=dtype).softmax(-1).expand(ENTRIES, -1)
    bank, given = make_bank((features, probs, index), dtype=dtype), batch(device=device, dtype=dtype)
    _, _, h = run(given, bank, mixture=mixture, beta=0.0)
    assert float(h.abs().max()) <= tolerance * 160
    torch.testing.assert_close(bank.posterior(given[2], 0.1), probs[:ROWS].to(dtype), rtol=1e-5, atol=1e-7)
    _, _, h = run(given, make_bank(entries(device=device, dtype=dtype), dtype=dtype), mixture=mixture, beta=0.0)
    assert float(h.abs().max()) > 0.01  # where they do not, it does


@EVERY_DEVICE
@pytest.mark.parametrize("kappa", [0.05, 0.5])
def test_prototypes_are_a_cosine_classifier(device, kappa):
    """L = C, q_i = one-hot, lambda = 1: ordinary distillation of the logits <h^, v_c> / kappa."""
    prototypes, index = logits(CLASSES, DIM, dtype=F64, device=device), torch.arange(CLASSES, device=device)
    bank = make_bank((prototypes, torch.eye(CLASSES, dtype=F64, device=device), index), dtype=F64)
    given = batch(device=device, dtype=F64)
    value, _, gradient = run(given, bank, mixture=1.0, beta=0.0, kappa=kappa, temperature=2.0)
    h = given[2].detach().requires_grad_()
    cosines = torch.nn.functional.cosine_similarity(h[:, None], prototypes, dim=-1)
    wanted = 4 * torch.nn.functional.kl_div(
        (cosines / kappa).log_softmax(-1), (given[1] / 2).log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    close([value, gradient], [wanted.detach(), torch.autograd.grad(wanted.sum(), h)[0]], 1e-11)


@EVERY_DEVICE
def test_a_large_kappa_gives_the_mean_of_the_bank(device):
    features, probs, index = entries(device=device, dtype=F64)
    bank, given = make_bank((features, probs, index), dtype=F64), batch(device=device, dtype=F64)
    mean = probs.mean(0).expand(ROWS, -1)
    for kappa in (1e3, 1e6, 1e9):
        # w = 1 / L (1 + O(1 / kappa))
        torch.testing.assert_close(bank.posterior(given[2], kappa), mean, rtol=4 / kappa + 1e-14, atol=0)
    value, _, h = run(given, bank, kappa=1e9, mixture=1.0, temperature=1.0)
    t = given[1].softmax(-1)
    torch.testing.assert_close(value, (t * (t.log() - mean.log())).sum(-1), rtol=1e-7, atol=1e-8)
    assert float(h.abs().max()) < 1e-7


@EVERY_DEVICE
def test_a_small_kappa_gives_the_nearest_instance(device):
    """Similarities differ by some 1e-2 between the nearest two, so that exp(-1e-2 / kappa) is nothing."""
    bank, given = make_bank(entries(device=device)), batch(device=device)
    similarity = torch.nn.functional.normalize(given[2], dim=-1) @ bank.features.T
    best = similarity.topk(2, -1).values
    clear = best[:, 0] - best[:, 1] > 0.01
    nearest = bank.probs[similarity.argmax(-1)]
    assert int(clear.sum()) >= 5
    torch.testing.assert_close(bank.posterior(given[2], 1e-4)[clear], nearest[clear], rtol=1e-6, atol=1e-7)


@EVERY_DEVICE
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_the_length_of_features_does_not_matter(device, factor):
    """Powers of two, which round nothing; the gradient is that of a longer or a shorter vector."""
    bank, (student, teacher, h, ht) = make_bank(entries(device=device)), batch(device=device)
    value, z, gradient = run((student, teacher, h, ht), bank)
    scaled = run((student, teacher, factor * h, ht / factor), bank)
    for got, wanted in zip(scaled, (value, z, gradient / factor), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 / factor if got is scaled[2] else 1e-6)


@EVERY_DEVICE
def test_rows_do_not_see_each_other(device):
    """A row's value and gradients are those it has alone, and rows may be given in any order."""
    bank, given = make_bank(entries(1031, device=device)), batch(33, device=device)
    index = 100 + torch.arange(33, device=device)
    whole = run(given, bank, index=index)
    for row in (0, 17, 32):
        alone = run([x[row : row + 1] for x in given], bank, index=index[row : row + 1])
        for a, b in zip(alone, whole, strict=True):
            torch.testing.assert_close(a[0], b[row], rtol=1e-5, atol=1e-5)


@EVERY_DEVICE
def test_autocast_rounds_nothing(device):
    """ "float32 arithmetic at least": products with the bank in bfloat16 would be off by 1e-2."""
    bank, given = make_bank(entries(device=device)), batch(device=device)
    wanted = run(given, bank)
    with torch.autocast(device, dtype=BF16):
        got = run(given, bank)
        posterior = bank.posterior(given[2], 0.1)
    for a, b in zip((*got, posterior), (*wanted, bank.posterior(given[2], 0.1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
