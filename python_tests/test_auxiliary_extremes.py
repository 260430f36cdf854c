"""Own entries, absent classes, zero features, infinite logits: where an auxiliary-variable loss may turn NaN."""

import math

import pytest
import torch
from auxiliary_cases import (
    CLASSES,
    DIM,
    ENTRIES,
    ROWS,
    SETTINGS,
    arithmetic,
    batch,
    check,
    entries,
    make_bank,
    run,
)
from cases import BF16, F16, F32, F64, logits, name_of
from oracle_auxiliary import auxiliary as oracle
from oracle_auxiliary import stored
from tgeo_students import EVERY_DEVICE

import kdkernels as kd

INF = math.inf
DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)


def numbered(*numbers, device="cpu", **options):
    """A bank whose entries are these samples, repeatedly."""
    features, probs, _ = entries(device=device, **options)
    index = torch.tensor(numbers, device=device).repeat(len(features))[: len(features)]
    return make_bank((features, probs, index))


def finite(results):
    return all(bool(x.isfinite().all()) for x in results)


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_own_entries_are_not_there(device, mixture):
    """A row with several entries of its own has the loss that it has at a bank without them."""
    bank, index = numbered(1, 2, 3, 4, device=device), torch.tensor([3, 9, 1], device=device)
    given = batch(3, device=device)
    got = check(given, bank, mixture=mixture, index=index)
    features, probs, _ = entries(device=device)
    for row, number in enumerate(index.tolist()):
        kept = bank.index != number
        assert int(kept.sum()) == (40 if number == 9 else 30)
        smaller = make_bank((features[kept], probs[kept], bank.index[kept]))
        alone = run([x[row : row + 1] for x in given], smaller, mixture=mixture)
        for a, b in zip(alone, got, strict=True):
            torch.testing.assert_close(a[0], b[row], rtol=1e-5, atol=1e-5)


@EVERY_DEVICE
def test_the_own_answer_does_not_leak(device):
    """Whatever lies in a row's own entries, and wherever, the row cannot tell."""
    features, probs, index = entries(device=device)
    given, own = batch(1, device=device), torch.tensor([105], device=device)
    results = []
    for seed in (1, 2):
        features[5], probs[5] = given[1 + seed][0], logits(CLASSES, seed=seed, spread=9.0).softmax(-1).to(device)
        results.append(run(given, make_bank((features, probs, index)), index=own))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    leaking = [run(given, make_bank((features, probs, index)), index=x)[0] for x in (None, own)]
    assert abs(float(leaking[0] - leaking[1])) > 1e-2


@EVERY_DEVICE
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("mixture", [0.0, 0.3, 0.9])
def test_a_row_without_a_bank(device, mixture, beta):
    """All entries are its own: KL(t || s) - log(1 - lambda), no feature term, no gradient of the features."""
    bank, index = numbered(5, device=device), torch.tensor([5, 6, 5, 7], device=device)
    given = batch(4, device=device)
    values, z, h = check(given, bank, mixture=mixture, beta=beta, index=index)
    plain = given[0].detach().requires_grad_()
    wanted = kd.divergence(plain, given[1], temperature=4.0, reduction="none")
    torch.testing.assert_close(values[::2], wanted[::2].detach() - 16 * math.log(1 - mixture), rtol=2e-6, atol=2e-6)
    (gradient,) = torch.autograd.grad(wanted.sum(), plain)
    torch.testing.assert_close(z[::2], gradient[::2], rtol=1e-5, atol=1e-6)
    assert bool((h[::2] == 0).all())


@EVERY_DEVICE
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [F32, F16, F64], ids=name_of)
def test_a_row_without_a_bank_at_mixture_1(device, dtype, beta):
    """Nothing is left of p_S: +inf and never NaN; the other rows are what they are without it."""
    bank, index = numbered(5, device=device), torch.tensor([5, 6, 5, 7], device=device)
    given = batch(4, device=device, dtype=dtype)
    values, *gradients = run(given, bank, mixture=1.0, beta=beta, index=index)
    assert bool((values[::2] == INF).all())
    assert not any(bool(x.isnan().any()) for x in gradients)
    others = run([x[1::2] for x in given], bank, mixture=1.0, beta=beta, index=index[1::2])
    for got, wanted in zip((values, *gradients), others, strict=True):
        assert bool(wanted.isfinite().all())
        torch.testing.assert_close(got[1::2], wanted, rtol=1e-5, atol=1e-5)


def absent(device, dtype=F32):
    """A bank in which no instance has anything to say for classes 0 and 7."""
    features, probs, index = entries(device=device, dtype=dtype)
    probs = probs.clone()
    probs[:, [0, 7]] = 0.0
    return make_bank((features, probs / probs.sum(-1, keepdim=True), index), dtype=dtype)


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
def test_a_class_that_the_bank_has_not(device, mixture, dtype):
    assert finite(check(batch(device=device, dtype=dtype), absent(device, dtype), mixture=mixture))


@EVERY_DEVICE
def test_one_hot_banks_and_an_absent_class_at_mixture_1(device):
    """+inf where the teacher has mass on it, and an ordinary value where it has not."""
    student, teacher, h, ht = batch(2, device=device)
    teacher[1, [0, 7]] = -INF
    values, _, features = run((student, teacher, h, ht), absent(device), mixture=1.0)
    answers, _ = oracle(student, teacher, h, ht, stored(absent(device)), **(SETTINGS | {"mixture": 1.0}))
    assert float(values[0]) == INF
    torch.testing.assert_close(values[1].double().cpu(), answers.student.values[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(features[1].double().cpu(), answers.features.gradient[1], rtol=1e-4, atol=1e-4)


@EVERY_DEVICE
@DTYPES
@pytest.mark.parametrize("mixture", [0.3, 1.0])
def test_features_of_length_zero(device, dtype, mixture):
    """Of the student (row 1), teacher (row 2), both (row 3) and an entry: similarities of 0, and finite gradients."""
    features, probs, index = entries(device=device, dtype=dtype)
    features[4] = 0.0
    bank = make_bank((features, probs, index))
    assert bool((bank.features[4] == 0).all()) and int((bank.features.norm(dim=-1) < 0.5).sum()) == 1
    given = batch(4, device=device, dtype=dtype)
    given[2][[1, 3]] = 0.0
    given[3][[2, 3]] = 0.0
    results = run(given, bank, mixture=mixture)
    assert finite(results)
    answers, _ = oracle(*given, stored(bank), **(SETTINGS | {"mixture": mixture}))
    rounding = 1e-12 if dtype == F64 else 1e-5
    torch.testing.assert_close(results[0].cpu().double(), answers.student.values, rtol=rounding, atol=rounding)
    check([x[[0, 2]] for x in given], bank, mixture=mixture)
    mean = bank.posterior(given[2][1:2], 0.1)[0].double()  # of a row that is as near to every entry
    torch.testing.assert_close(mean, bank.probs.double().mean(0), rtol=1e-2, atol=1e-5)


LENGTHS = pytest.mark.parametrize("length", [1e-25, 1e-15, 1e-6, 1e6, 1e15, 1e25])


@EVERY_DEVICE
@LENGTHS
def test_entries_of_any_length(device, length):
    """\"features (B, dim) any norm\": a direction is one for every length that is a float32 number."""
    features, probs, index = entries(device=device)
    pushed, usual = make_bank((length * features, probs, index)), make_bank((features, probs, index))
    torch.testing.assert_close(pushed.features, usual.features, rtol=1e-5, atol=1e-7)


@EVERY_DEVICE
@LENGTHS
def test_features_of_any_length(device, length):
    """Squares of a feature may be no float32 numbers: a direction is one for every length that is."""
    bank, given = make_bank(entries(device=device)), batch(device=device)
    values, *_ = run(given, bank)
    scaled, _, gradient = run((*given[:2], length * given[2], length * given[3]), bank)
    torch.testing.assert_close(scaled, values, rtol=1e-5, atol=1e-5)
    assert finite([gradient])


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_infinite_logits(device, mixture, dtype):
    """-inf of both adds the bank's part only, of the teacher nothing, of the student alone what the bank leaves."""
    student, teacher, h, ht = batch(4, device=device, dtype=dtype)
    student[0, 2] = teacher[0, 2] = -INF
    teacher[1, 3:] = -INF
    student[2, 5] = -INF
    student[3, 1:] = teacher[3, 1:] = -INF
    bank = make_bank(entries(device=device, dtype=dtype))
    rows = slice(None) if mixture else [0, 1, 3]
    results = check([x[rows] for x in (student, teacher, h, ht)], bank, mixture=mixture)
    assert finite(results)
    if not mixture:
        assert float(run((student, teacher, h, ht), bank, mixture=mixture)[0][2]) == INF


@EVERY_DEVICE
def test_infinite_where_nothing_is_left(device):
    """A class of the teacher that neither the student nor the bank has: +inf, and the other rows do not care."""
    given, bank = batch(3, device=device), absent(device)
    given[0][1, 7] = -INF
    values, *gradients = run(given, bank)
    assert float(values[1]) == INF
    others = check([x[[0, 2]] for x in given], bank)
    for got, wanted in zip((values, *gradients), others, strict=True):
        torch.testing.assert_close(got[[0, 2]], wanted, rtol=1e-5, atol=1e-5)


@EVERY_DEVICE
@pytest.mark.parametrize("size", [1e3, 3e4])
def test_huge_logits(device, size):
    """s and t are one-hot: log p_S is that of the bank for every other class, and nothing overflows."""
    student, teacher, h, ht = batch(device=device)
    given = (size * student, size * teacher, h, ht)
    values, z, features = run(given, make_bank(entries(device=device)), temperature=1.0)
    answers, scales = oracle(*given, stored(make_bank(entries(device=device))), **(SETTINGS | {"temperature": 1.0}))
    assert arithmetic(given) == F32 and finite([values, z, features])
    torch.testing.assert_close(values.cpu().double(), answers.student.values, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(z.cpu().double(), answers.student.gradient, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.cpu().double(), answers.features.gradient, rtol=1e-4, atol=1e-4)


@EVERY_DEVICE
@pytest.mark.parametrize("mixture", [0.5, 1.0])
def test_an_instance_far_from_the_student(device, mixture):
    """kappa = 0.01, similarities of 1 and -1: the teacher's instance has exp(-200), and L_feature is 200, not inf."""
    direction = logits(1, DIM, device=device)
    away = torch.cat([direction, -direction])
    bank = make_bank((away, torch.full((2, CLASSES), 1 / CLASSES, device=device), torch.arange(2, device=device)))
    student, teacher, *_ = batch(1, device=device)
    values, z, h = run((student, teacher, direction, -direction), bank, mixture=mixture, kappa=0.01, temperature=1.0)
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    p = (1 - mixture) * log_s.exp() + mixture / CLASSES
    torch.testing.assert_close(values, (log_t.exp() * (log_t - p.log())).sum(-1) + 200.0, rtol=1e-5, atol=0)
    assert finite([z, h])


def test_the_bank_is_only_read():
    bank, given = make_bank(entries(), capacity=64), batch()
    held, before = bank.state_dict(), [x.clone() for x in given]
    copies = {name: x.clone() for name, x in held.items() if isinstance(x, torch.Tensor)}
    run(given, bank, index=100 + torch.arange(ROWS))
    bank.posterior(given[2], 0.1, torch.arange(ROWS))
    assert all(torch.equal(held[name], value) for name, value in copies.items())
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True)) and len(bank) == ENTRIES
