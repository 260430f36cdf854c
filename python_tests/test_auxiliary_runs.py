"""A student that is trained with AuxiliaryKD: the loss falls, and a run that is resumed is the same run."""

import math

import pytest
import torch
from auxiliary_cases import CLASSES
from auxiliary_cases import DIM as THERE
from cases import F64, logits
from torch import nn

from kdkernels.methods import auxiliary

HERE = 7  # the dimension of the student's features; THERE is that of the teacher's


def toy(steps, start=None):
    """A linear student after a linear teacher, in float64: losses of each step, and the state to go on from."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, THERE), nn.Tanh(), nn.Linear(THERE, CLASSES)).double()
    student = nn.Sequential(nn.Linear(6, HERE), nn.Tanh(), nn.Linear(HERE, CLASSES)).double()
    criterion = auxiliary.AuxiliaryKD(HERE, THERE, CLASSES, capacity=100, kappa=0.3, temperature=2.0).double()
    trained = nn.ModuleList([student, criterion])
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    done = 0
    if start is not None:
        done = start["done"]
        trained.load_state_dict(start["model"])
        optimizer.load_state_dict(start["optimizer"])
    inputs, losses = logits(64, 6, dtype=F64, seed=5), []
    for step in range(done, done + steps):
        index = torch.arange(16) + 16 * (step % 4)
        with torch.no_grad():
            features = teacher[:2](inputs[index])
            targets = 3 * teacher[2](features)
        own = student[:2](inputs[index])
        loss = criterion(student[2](own), targets, own, features, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {"done": done + steps, "model": trained.state_dict(), "optimizer": optimizer.state_dict()}


def test_training_reduces_the_loss():
    losses, state = toy(80)
    first, last = sum(losses[4:8]) / 4, sum(losses[-4:]) / 4
    assert all(map(math.isfinite, losses)) and last < 0.5 * first
    start = toy(0)[1]["model"]
    trained = [name for name, value in state["model"].items() if isinstance(value, torch.Tensor) and name[0] == "1"]
    (weight,) = (name for name in trained if start[name].shape == (THERE, HERE))  # the projection's, in the criterion
    assert not torch.equal(state["model"][weight], start[weight])


@pytest.mark.parametrize("before", [1, 6, 9])
def test_a_resumed_run_is_the_same_run(tmp_path, before):
    """Saved in a file that is loaded without pickle, before the bank is full, when it is, and when it has turned."""
    whole, _ = toy(before + 6)
    first, state = toy(before)
    torch.save(state, tmp_path / "run.pt")
    second, _ = toy(6, torch.load(tmp_path / "run.pt", weights_only=True))
    assert first + second == whole
