"""A teacher that trains beside its student: a hand-written loop, and a run that goes on to the bit."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from online_teachers import batch, copies, network, same
from torch import nn

from kdkernels.methods.online import SideBySide

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda model: torch.optim.AdamW(model.parameters(), 0.01),
}
SCHEDULERS = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
}
EVERY_KIND = [
    pytest.mark.parametrize("optimizer", OPTIMIZERS),
    pytest.mark.parametrize("scheduler", SCHEDULERS),
]


def every_kind(test):
    for mark in EVERY_KIND:
        test = mark(test)
    return test


def make(optimizer="sgd", scheduler="step", seed=0, criterion=None):
    model = network(seed)
    chosen = OPTIMIZERS[optimizer](model)
    return SideBySide(model, chosen, criterion, SCHEDULERS[scheduler](chosen))


@pytest.fixture(autouse=True)
def own_randomness():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


@every_kind
def test_is_a_hand_written_loop(optimizer, scheduler):
    model = network()
    by_hand, both = OPTIMIZERS[optimizer](model), make(optimizer, scheduler)
    schedule = SCHEDULERS[scheduler](by_hand)
    for turn in range(6):
        x, labels = batch(turn)
        torch.manual_seed(turn)  # dropout
        model.train()
        by_hand.zero_grad()
        wanted = F.cross_entropy(model(x), labels)
        wanted.backward()
        by_hand.step()
        if schedule is not None:
            schedule.step()
        torch.manual_seed(turn)
        got = both.step(x, labels)
        assert got.shape == () and not got.requires_grad and torch.equal(got, wanted.detach())
        assert same(both.at(turn / 6), model)
    assert not same(model, network())


def test_a_criterion_of_one_s_own():
    calls = []

    def criterion(logits, labels):
        calls.append(labels)
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    both, (x, labels) = make(criterion=criterion), batch()
    torch.manual_seed(1)
    got = both.step(x, labels)
    torch.manual_seed(1)
    assert torch.equal(got, F.cross_entropy(network().train()(x), labels, label_smoothing=0.1).detach())
    assert len(calls) == 1 and calls[0] is labels


@pytest.mark.parametrize("progress", [(), (None,), (0.0,), (0.4,), (1.0,)])
def test_the_teacher_is_ready_to_be_asked_and_goes_on_training(progress):
    both = make()
    teacher = both.at(*progress)
    assert not any(module.training for module in teacher.modules())
    assert all(each.requires_grad for each in teacher.parameters())
    first = copies(teacher)
    both.step(*batch())
    assert both.at(*progress) is teacher and not same(teacher, first)
    assert not any(module.training for module in teacher.modules())
    assert int(teacher[1].num_batches_tracked) == 1  # the step was in training mode
    before = copies(teacher)
    both.at()(batch()[0])
    assert same(both.at(), before)


def test_gradients_of_before_do_not_enter_a_step():
    """Such as those that a student's loss left in the teacher by mistake."""
    both, clean = make(), make()
    for each in both.at().parameters():
        each.grad = torch.full_like(each, 1e3)
    for one in (both, clean):
        torch.manual_seed(3)
        one.step(*batch())
    assert same(both.at(), clean.at())


def half():
    """Within a block of it, each weight is cast once: autocast keeps the copies until the outermost block ends."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def half_precision_run(outer, asked):
    """Weights after six steps, and what the teacher said after each of them if it was asked."""
    both, said = make(scheduler="none"), []
    with outer:
        for turn in range(6):
            torch.manual_seed(turn)
            with half():
                both.step(*batch(turn))
            with half(), torch.no_grad():
                said.append(both.at()(batch(turn)[0]) if asked else torch.zeros(()))
    return copies(both.teacher), said


@pytest.mark.parametrize("asked", [False, True])
def test_a_block_of_autocast_is_as_long_as_one_likes(asked):
    """The teacher trains in each step and teaches as it is after it, to the bit."""
    (one, said), (other, said_by_other) = (half_precision_run(outer, asked) for outer in (half(), nullcontext()))
    assert same(one, other) and all(map(torch.equal, said, said_by_other))
    assert not same(one, network())


@every_kind
def test_resuming_gives_the_same_run(tmp_path, optimizer, scheduler):
    """Through a file, as a training script does; three steps before and four after, to the bit."""
    first = make(optimizer, scheduler)
    for turn in range(3):
        first.step(*batch(turn))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(optimizer, scheduler, seed=5)
    assert not same(second.at(), first.at())
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(second.at(), first.at())
    for turn in range(3, 7):
        losses = []
        for each in (first, second):
            torch.manual_seed(turn)
            losses.append(each.step(*batch(turn)))
        assert torch.equal(*losses) and same(first.at(), second.at())


def test_a_saved_state_does_not_depend_on_what_comes_after(tmp_path):
    first, second = make("adam", "cosine"), make("adam", "cosine", seed=5)
    first.step(*batch())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    kept = copies(first.at())
    first.step(*batch(1))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(second.at(), kept) and not same(first.at(), kept)


def test_the_schedule_is_saved_too(tmp_path):
    """A rate that would start again at its first value shows in the weights: seen here by itself."""
    model = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    both = SideBySide(model, optimizer, scheduler=scheduler)
    for turn in range(3):
        both.step(*batch(turn))
    assert optimizer.param_groups[0]["lr"] == 0.125
    state = both.state_dict()
    again = nn.Linear(6, 5)
    fresh = torch.optim.SGD(again.parameters(), 1.0)
    resumed = SideBySide(again, fresh, scheduler=torch.optim.lr_scheduler.StepLR(fresh, 1, 0.5))
    resumed.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 0.125
    resumed.step(*batch(3))
    assert fresh.param_groups[0]["lr"] == 0.0625


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None), "teacher must be a torch.nn.Module, got NoneType"),
        ((nn.Linear(2, 2), None), "optimizer must be a torch.optim.Optimizer, got NoneType"),
        ((nn.Linear(2, 2), "sgd"), "optimizer must be a torch.optim.Optimizer, got str"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(TypeError, match=message):
        SideBySide(*arguments)


def test_a_criterion_that_cannot_be_called():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="criterion must .*float"):
        SideBySide(model, torch.optim.SGD(model.parameters(), 0.1), criterion=0.5)


def test_a_scheduler_that_is_none():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="scheduler must .*float"):
        SideBySide(model, torch.optim.SGD(model.parameters(), 0.1), scheduler=0.5)
