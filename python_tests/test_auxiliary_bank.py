"""The queue of instances: first in, first out, detached, normalised, and the same again after it was saved."""

import copy

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, assert_same, batch, entries, make_bank, run, snapshot
from cases import BF16, F16, F32, F64, name_of
from oracle_auxiliary import unit
from tgeo_students import EVERY_DEVICE

from kdkernels.methods import auxiliary

CAPACITY = 10


def empty(capacity=CAPACITY, device="cpu", **options):
    return auxiliary.InstanceBank(capacity, DIM, CLASSES, **options).to(device)


def series(count, device="cpu"):
    """The first of one long series."""
    return [x[:count].clone() for x in entries(64, device=device)]


def feed(bank, pushes, start=0):
    """Push runs of these lengths out of the series; the series up to the last one pushed."""
    pushed = series(start + sum(pushes), bank.features.device)
    for count in pushes:
        bank.push(*(x[start : start + count] for x in pushed))
        start += count
    return pushed


def holds(bank, pushed):
    """Whether the bank holds the last of what was pushed, each with its own features and distribution, in any place."""
    expected = [x[-bank.features.shape[0] :] for x in pushed]
    assert len(bank) == len(expected[0])
    order = bank.index[: len(bank)].argsort()
    assert torch.equal(bank.index[: len(bank)][order], expected[2])
    torch.testing.assert_close(bank.features[order].double().cpu(), unit(expected[0]), rtol=1e-6, atol=1e-7)
    assert torch.equal(bank.probs[order], expected[1])
    return True


@EVERY_DEVICE
@pytest.mark.parametrize(
    "pushes", [[1], [3, 4], [10], [4, 6], [4, 4, 4], [10, 1], [11], [25], [7, 25, 2], [1] * 23, [9, 10, 11]], ids=str
)
def test_first_in_first_out(device, pushes):
    bank, pushed = empty(device=device), []
    for i in range(len(pushes)):
        pushed = feed(bank, pushes[i : i + 1], sum(pushes[:i]))
        assert holds(bank, pushed)


def test_length_is_known_without_a_device():
    bank = empty()
    assert len(bank) == 0 and type(len(bank)) is int
    for expected in (4, 8, 10, 10):
        feed(bank, [4])
        assert len(bank) == expected
    assert dict(bank.named_buffers()).keys() == {"features", "probs", "index"} and not list(bank.parameters())
    assert bank.features.shape == (CAPACITY, DIM) and bank.probs.shape == (CAPACITY, CLASSES)
    assert bank.index.shape == (CAPACITY,) and bank.index.dtype == torch.int64


def test_a_sample_may_be_there_more_than_once():
    bank, (features, probs, _) = empty(), entries(4)
    bank.push(features, probs, torch.tensor([5, 5, 2, 5]))
    assert len(bank) == 4 and sorted(bank.index[:4].tolist()) == [2, 5, 5, 5]


@EVERY_DEVICE
def test_entries_are_detached_copies(device):
    features, probs, index = entries(4, device=device)
    features, probs = features.requires_grad_(), probs.requires_grad_()
    bank = empty(device=device)
    bank.push(features * 1.0, probs * 1.0, index)
    bank.push(features, probs, index)
    assert not bank.features.requires_grad and not bank.probs.requires_grad
    before = snapshot(bank)
    with torch.no_grad():
        features.zero_()
        probs.zero_()
        index.zero_()
    assert_same(bank, before)


def test_units_are_copied_too():
    """Where there is nothing to normalise, the bank still has its own."""
    features, probs, index = torch.eye(DIM), entries(DIM)[1], torch.arange(DIM)
    bank = empty(capacity=DIM)
    bank.push(features, probs, index)
    for given in (features, probs, index):
        given.fill_(3)
    assert torch.equal(bank.features, torch.eye(DIM)) and not bool((bank.probs == 3).any())
    assert torch.equal(bank.index, torch.arange(DIM))


@EVERY_DEVICE
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)
@pytest.mark.parametrize("given", [F32, F16, F64], ids=name_of)
def test_dtypes(device, dtype, given):
    """Normalised in what is pushed, at least in float32, and rounded once to what is stored."""
    pushed = entries(6, dtype=given, device=device)
    bank = empty(dtype=dtype, device=device)
    bank.push(*pushed)
    assert bank.features.dtype == bank.probs.dtype == dtype and bank.index.dtype == torch.int64
    rounding = max(torch.finfo(dtype).eps, 1e-15 if given == F64 else 2**-22)
    torch.testing.assert_close(bank.features[:6].cpu().double(), unit(pushed[0]), rtol=rounding, atol=rounding / 16)
    assert torch.equal(bank.probs[:6], pushed[1].to(dtype))


@pytest.mark.parametrize("dtype", [F64, F16], ids=name_of)
def test_to(dtype):
    """The distributions and features move to another dtype; sample numbers, and the place in the queue, stay."""
    bank, twin = empty(), empty()
    feed(bank, [7])
    feed(twin, [7])
    moved = bank.to(dtype)
    assert moved is bank and moved.features.dtype == moved.probs.dtype == dtype and moved.index.dtype == torch.int64
    assert len(moved) == 7 and torch.equal(moved.features[:7], twin.features[:7].to(dtype))
    for each in (moved, twin):
        feed(each, [6], start=7)
    assert len(moved) == len(twin) == 10 and torch.equal(moved.index, twin.index)
    assert moved.features.dtype == dtype and moved.index.tolist() != sorted(moved.index.tolist())  # wrapped around


@pytest.mark.parametrize("pushes", [[], [4], [10], [4, 4, 4], [23]], ids=str)
def test_saved_and_resumed(tmp_path, pushes):
    """A fresh bank with the saved state holds the same, and goes on in the same way."""
    bank, resumed = empty(), empty()
    feed(bank, pushes)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    resumed.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    done = sum(pushes)
    for more in ([], [3], [8], [12]):
        for each in (bank, resumed):
            feed(each, more, start=done)
        done += sum(more)
        assert len(bank) == len(resumed)
        filled = len(bank)
        for name in ("features", "probs", "index"):
            assert torch.equal(getattr(bank, name)[:filled], getattr(resumed, name)[:filled])
        if filled:
            for a, b in zip(run(batch(), bank), run(batch(), resumed), strict=True):
                assert torch.equal(a, b)


def test_a_state_replaces_what_was_there(tmp_path):
    """Also where a longer history had been pushed; and a saved state does not follow the bank."""
    bank, other = empty(), empty()
    feed(bank, [3])
    feed(other, [25])
    state = copy.deepcopy(bank.state_dict())
    other.load_state_dict(state)
    feed(other, [2], start=3)
    assert holds(other, series(5)) and len(bank) == 3
    bank.load_state_dict(state)
    assert holds(bank, series(3))


def test_a_state_of_another_capacity_is_refused():
    bank = empty(capacity=4)
    with pytest.raises((RuntimeError, ValueError), match="features"):
        bank.load_state_dict(empty().state_dict())


def test_part_of_another_module():
    """The state of a bank within a model: same names with a prefix, same length again."""
    model = torch.nn.ModuleDict({"bank": empty(), "head": torch.nn.Linear(2, 2)})
    feed(model["bank"], [4])
    fresh = torch.nn.ModuleDict({"bank": empty(), "head": torch.nn.Linear(2, 2)})
    fresh.load_state_dict(model.state_dict())
    assert holds(fresh["bank"], series(4)) and {"bank.features", "bank.probs", "bank.index"} <= set(model.state_dict())


def test_deep_copies_go_their_own_way():
    bank = empty()
    feed(bank, [4])
    twin = copy.deepcopy(bank)
    feed(twin, [3], start=4)
    assert holds(bank, series(4)) and holds(twin, series(7))


def test_what_is_not_filled_is_not_read():
    """A bank of 64 with 4 entries is a bank of 4, whatever lies in the rest of its memory."""
    small, large = make_bank(series(4)), make_bank(series(4), capacity=64)
    for name in ("features", "probs"):
        getattr(large, name)[4:] = torch.nan
    for a, b in zip(run(batch(), small), run(batch(), large), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(large.posterior(batch()[2], 0.1), small.posterior(batch()[2], 0.1))
