"""States of a teacher that trains beside its student: one that does not fit changes nothing."""

import copy

import pytest
import torch
from online_teachers import batch, same
from torch import nn

from kdkernels.methods.online import SideBySide

OPTIMIZERS = {
    "SGD": lambda each: torch.optim.SGD(each, 0.5),
    "momentum": lambda each: torch.optim.SGD(each, 0.5, momentum=0.9),
    "Adam": lambda each: torch.optim.Adam(each, 0.5),
    "AdamW": lambda each: torch.optim.AdamW(each, 0.5),
    "Adamax": lambda each: torch.optim.Adamax(each, 0.5),
    "groups": lambda each: torch.optim.SGD([{"params": [one], "lr": 0.5} for one in each], momentum=0.9),
}
SCHEDULERS = {
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3),
    "Cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "Sequential": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer, [torch.optim.lr_scheduler.ConstantLR(optimizer), SCHEDULERS["StepLR"](optimizer)], [1]
    ),
    "Chained": lambda optimizer: torch.optim.lr_scheduler.ChainedScheduler([SCHEDULERS["StepLR"](optimizer)]),
    "none": lambda optimizer: None,
}


CANNOT_LOAD = r"state\['optimizer'\] must be a state that the optimizer can load"


def beside(optimizer="momentum", scheduler="StepLR", seed=0, teacher=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)) if teacher is None else teacher
    chosen = OPTIMIZERS[optimizer](teacher.parameters())
    return SideBySide(teacher, chosen, scheduler=SCHEDULERS[scheduler](chosen))


def trained(*arguments, turns=2, **options):
    both = beside(*arguments, **options)
    for turn in range(turns):
        both.step(*batch(turn))
    return both


def check_refused(both, state, error, message):
    """An error, and then the run that an untouched copy makes."""
    twin = copy.deepcopy(both)
    with pytest.raises(error, match=message):
        both.load_state_dict(state)
    for turn in range(5, 9):
        assert same(both.teacher, twin.teacher)
        assert torch.equal(both.step(*batch(turn)), twin.step(*batch(turn)))


@pytest.mark.parametrize("part", ["teacher", "optimizer", "scheduler"])
@pytest.mark.parametrize("value", [3, None, {}, [], {"x": 1}, {"param_groups": 3, "state": {}}], ids=str)
def test_a_part_that_is_none(part, value):
    """Into a run that has begun, with a state that would change it."""
    state = trained(seed=1, turns=4).state_dict()
    check_refused(
        trained(), {**state, part: value}, (TypeError, ValueError), rf"state\['{part}'\] must|have a scheduler"
    )


@pytest.mark.parametrize(
    ("saved", "own"),
    [("Adam", "momentum"), ("SGD", "Adam"), ("momentum", "Adam"), ("Adam", "Adamax"), ("Adamax", "Adam"),
     ("groups", "momentum"), ("momentum", "groups")],
)  # fmt: skip
def test_the_state_of_another_optimizer(saved, own):
    check_refused(trained(own), trained(saved, seed=1).state_dict(), ValueError, r"state\['optimizer'\] must .*got")


@pytest.mark.parametrize(
    ("saved", "own"),
    [("Cosine", "StepLR"), ("StepLR", "Cosine"), ("StepLR", "Chained"), ("Sequential", "StepLR")],
)
def test_the_state_of_another_scheduler(saved, own):
    state = trained(scheduler=saved, seed=1).state_dict()
    check_refused(trained(scheduler=own), state, ValueError, r"state\['scheduler'\] must .*got")


@pytest.mark.parametrize("own", ["SGD", "momentum", "Adam", "groups"])
def test_an_optimizer_that_cannot_load_what_looks_right(own):
    """The right settings and a state that it breaks at, after the scheduler has been loaded."""
    state = trained(own, seed=1, turns=4).state_dict()
    state["optimizer"] = {**state["optimizer"], "state": 3}
    check_refused(trained(own), state, ValueError, CANNOT_LOAD)


def test_an_optimizer_that_finds_out_late():
    """Adam has taken a state for its own when it misses the number of steps in it."""
    state = trained("Adam", seed=1, turns=4).state_dict()
    for each in state["optimizer"]["state"].values():
        del each["step"]
    check_refused(trained("Adam"), state, ValueError, f"{CANNOT_LOAD}, got KeyError: 'step'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.weight", torch.zeros(4, 5)),
        ("2.bias", [0.0] * 5),
        ("1.num_batches_tracked", 3),
        ("2.bias", torch.zeros(5, device="meta")),
        ("2.bias", torch.zeros(5).to_sparse()),
        ("more", torch.zeros(5)),
    ],
)
def test_the_state_of_another_teacher(name, value):
    state = trained(seed=1).state_dict()
    state["teacher"] = {**state["teacher"], name: value}
    check_refused(trained(), state, (TypeError, ValueError), rf"state\['teacher'\].*{name}")


def test_a_teacher_that_cannot_be_written():
    source, teacher = trained(), nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    teacher[2].bias = nn.Parameter(torch.zeros(1).expand(5), requires_grad=False)
    both = beside(teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(ValueError, match=r"teacher's entry '2\.bias' must .*expanded"):
        both.load_state_dict(source.state_dict())
    assert same(both.teacher, before)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_kind_resumes(optimizer, scheduler):
    """Into an object that has not begun and into one that has."""
    source = trained(optimizer, scheduler)
    state = copy.deepcopy(source.state_dict())
    others = [beside(optimizer, scheduler, seed=1), trained(optimizer, scheduler, seed=2, turns=3)]
    for each in others:
        each.load_state_dict(copy.deepcopy(state))
    for turn in range(5, 9):
        losses = [each.step(*batch(turn)) for each in (source, *others)]
        assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_settings_that_come_while_it_trains_do_not_matter():
    """The first learning rate, which a scheduler of the caller's adds to the groups, is there in one of the two."""
    source, both = trained(scheduler="none"), beside(scheduler="none", seed=1)
    SCHEDULERS["StepLR"](source.optimizer)
    both.load_state_dict(source.state_dict())
    again = trained(scheduler="none", seed=1)
    again.load_state_dict(beside(scheduler="none").state_dict())
    assert same(both.teacher, source.teacher) and same(again.teacher, beside().teacher)


def test_loading_reaches_a_block_of_autocast_that_has_begun():
    source, both, x = trained(), beside(seed=1), batch()[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both.at()(x)
        both.load_state_dict(source.state_dict())
        said = both.at()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(said, source.at()(x))
