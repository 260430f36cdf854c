"""Two processes with batches of different sizes: one bank, the same in both, in the order of the ranks."""

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, entries
from oracle_auxiliary import unit
from torch import distributed, multiprocessing

from kdkernels.methods import auxiliary

# Of one series of entries, how many go to (rank 0, rank 1), push by push: the third wraps around in a bank of 16.
PUSHES = ((3, 5), (4, 1), (2, 6), (12, 11))


def parts():
    """For each push, the numbers within the series that each rank has."""
    start = 0
    for counts in PUSHES:
        yield [torch.arange(start + sum(counts[:rank]), start + sum(counts[: rank + 1])) for rank in (0, 1)]
        start += sum(counts)


def push_all(bank, rank):
    series = entries(64)
    for numbers in parts():
        bank.push(*(x[numbers[rank]] for x in series))
        yield {name: value.clone() for name, value in bank.named_buffers()} | {"length": len(bank)}


def make_module(capacity=16):
    torch.manual_seed(0)
    return auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, capacity=capacity)


def step(module, numbers):
    """A training step on these samples of the series; values per row and the projection's gradient."""
    features, probs, index = (x[numbers] for x in entries(64))
    h, student = (entries(64, seed=seed)[0][numbers] for seed in (70, 71))
    value = module(student[:, :CLASSES], probs.log(), h, features, index, reduction="none")
    gradient = torch.autograd.grad(value.sum(), list(module.parameters()))
    return value.detach(), *gradient


def run_process(rank, path):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=2)
    bank, module = auxiliary.InstanceBank(16, DIM, CLASSES), make_module()
    states = list(push_all(bank, rank))
    trained = [step(module, numbers[rank]) for numbers in parts()]
    torch.save({"states": states, "trained": trained}, f"{path}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(run_process, (str(path),), nprocs=2)
    return [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


def test_every_rank_has_the_same_bank(saved):
    for first, second in zip(*(each["states"] for each in saved), strict=True):
        length = first["length"]
        assert length == second["length"]
        for name in ("features", "probs", "index"):
            assert torch.equal(first[name][:length], second[name][:length])


def test_the_order_is_that_of_the_ranks(saved):
    """As one process has it that is given each push's entries of rank 0, then those of rank 1."""
    alone, series = auxiliary.InstanceBank(16, DIM, CLASSES), entries(64)
    for numbers, state in zip(parts(), saved[0]["states"], strict=True):
        pushed = torch.cat(numbers)
        alone.push(*(x[pushed] for x in series))
        length = len(alone)
        assert state["length"] == length
        assert torch.equal(state["index"][:length], alone.index[:length])
        torch.testing.assert_close(state["features"][:length], alone.features[:length], rtol=1e-6, atol=1e-7)
        assert torch.equal(state["probs"][:length], alone.probs[:length])
        last = series[2][: int(pushed[-1]) + 1][-16:]
        assert torch.equal(state["index"][:length].sort().values, last)
        by_number = state["features"][:length][state["index"][:length].argsort()]
        torch.testing.assert_close(by_number.double(), unit(series[0][last - 100]), rtol=1e-6, atol=1e-7)


def test_training_sees_the_entries_of_all_ranks(saved):
    """Each rank's rows are those that one process has in the concatenated batch, where the bank holds them all."""
    alone = make_module()
    for push, numbers in enumerate(parts()):
        if push == 3:  # 23 rows in a bank of 16: still the same rows
            assert len(numbers[0]) + len(numbers[1]) > 16
        value, gradient = step(alone, torch.cat(numbers))
        by_rank = [each["trained"][push] for each in saved]
        torch.testing.assert_close(torch.cat([x[0] for x in by_rank]), value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_rank[0][1] + by_rank[1][1], gradient, rtol=1e-4, atol=1e-3)
