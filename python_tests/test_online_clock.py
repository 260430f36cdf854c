"""Which teacher supervises which part of the student's training, and how it gets into the one model that there is."""

import gc
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from complexity_models import allocations
from conftest import DEVICES
from online_teachers import STEPS, filled, network, same
from torch import Tensor, nn

from kdkernels.methods.online import TeacherTrajectory


def empty_files(folder, steps):
    """step_at reads names only."""
    for step in steps:
        (folder / f"step-{step:012d}.safetensors").touch()
    return TeacherTrajectory(folder)


@pytest.mark.parametrize(
    ("progress", "step"),
    [(0, 1), (0.0, 1), (0.05, 1), (0.125, 1), (0.25, 2), (0.5, 6), (0.75, 6), (0.8, 8), (1.0, 8), (1, 8), (1e-300, 1)],
)
def test_the_interval_is_open_at_its_start_and_closed_at_its_end(tmp_path, progress, step):
    """In eighths, which floating point holds exactly: (0, 1], (1, 2], (2, 6], (6, 8]."""
    got = empty_files(tmp_path, (1, 2, 6, 8)).step_at(progress)
    assert got == step and type(got) is int


@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction], ids=lambda kind: kind.__name__)
def test_a_number_of_another_kind(tmp_path, kind):
    trajectory = empty_files(tmp_path, (1, 2, 6, 8))
    for progress, step in ((0, 1), (0.125, 1), (0.25, 2), (0.3, 6), (0.8, 8), (1, 8)):
        assert trajectory.step_at(kind(progress)) == step
    assert [trajectory.step_at(np.int64(end)) for end in (0, 1)] == [1, 8]


def test_a_fraction_meets_its_checkpoint(tmp_path):
    """Both are rounded to the same number, also where it is below the fraction."""
    trajectory = empty_files(tmp_path, range(1, 50))
    assert [trajectory.step_at(Fraction(k, 49)) for k in range(1, 50)] == list(range(1, 50))


@pytest.mark.parametrize("offset", [-1e-9, 1e-9])
@pytest.mark.parametrize("steps", [(1, 2, 6, 8), STEPS, (3, 7, 49, 50, 1001), (0, 10, 11)])
def test_just_before_and_just_after_each_boundary(tmp_path, steps, offset):
    trajectory = empty_files(tmp_path, steps)
    for index, step in enumerate(steps[:-1]):
        progress = step / steps[-1] + offset
        if progress >= 0:
            assert trajectory.step_at(progress) == (step if offset < 0 else steps[index + 1])
    assert trajectory.step_at(1 - 1e-9) == trajectory.step_at(1) == steps[-1]
    assert trajectory.step_at(0) == steps[0]


def test_the_rule_at_many_times(tmp_path):
    """Away from boundaries, the first checkpoint that is not before the clock: a loop over all of them."""
    steps = (3, 7, 49, 50, 1001)
    trajectory = empty_files(tmp_path, steps)
    for number in range(501):
        progress = (number + 0.3) / 501
        wanted = next(step for step in steps if progress * steps[-1] <= step)
        assert trajectory.step_at(progress) == wanted


@pytest.mark.parametrize("step", [0, 70])
def test_a_single_checkpoint_supervises_everything(tmp_path, step):
    trajectory = empty_files(tmp_path, (step,))
    assert [trajectory.step_at(progress) for progress in (0, 0.3, 1)] == [step] * 3


def test_an_added_checkpoint_moves_the_clock(tmp_path):
    trajectory = filled(tmp_path, (100, 200))
    assert trajectory.step_at(0.5) == 100 and same(trajectory.at(0.5), network(100))
    TeacherTrajectory(tmp_path).record(400, network(400))
    assert trajectory.step_at(0.5) == 200 and same(trajectory.at(0.5), network(200))
    assert same(trajectory.at(1), network(400))


@pytest.mark.parametrize("device", DEVICES)
def test_the_teacher_of_each_time(tmp_path, device):
    model = network(99).to(device).train()
    trajectory = filled(tmp_path, model=model)
    for progress, step in ((0, 100), (0.1, 250), (0.3, 400), (0.5, 1200), (1, 1200), (0.2, 250), (0.01, 100)):
        teacher = trajectory.at(progress)
        assert teacher is model and trajectory.step_at(progress) == step
        assert same(teacher, network(step)) and all(each.device.type == device for each in teacher.parameters())
        assert not any(module.training for module in teacher.modules())
        assert not any(each.requires_grad for each in teacher.parameters())
    assert same(trajectory.load(400), network(400)) and trajectory.load(250) is model and same(model, network(250))


def mark(model):
    """What another load would undo."""
    with torch.no_grad():
        model[4].bias.fill_(7.0)


def marked(model):
    return bool((model[4].bias == 7.0).all())


def test_a_checkpoint_is_read_when_it_changes_and_only_then(tmp_path):
    model = network(99)
    trajectory = filled(tmp_path, model=model)
    assert same(model, network(99))  # nothing is loaded until someone asks
    trajectory.step_at(0.5)
    assert same(model, network(99))
    trajectory.at(0.1)
    mark(model)
    for progress in (0.15, 0.2, 250 / 1200 - 1e-9):
        assert marked(trajectory.at(progress))
    assert same(trajectory.at(0.3), network(400))
    mark(model)
    assert marked(trajectory.at(0.3)) and same(trajectory.at(0.2), network(250))


def test_a_model_that_was_set_to_train_in_between_is_put_right(tmp_path):
    trajectory = filled(tmp_path)
    trajectory.at(0.1).train()
    assert not any(module.training for module in trajectory.at(0.1).modules())


def test_the_weights_go_where_the_parameters_are(tmp_path):
    model = network(99)
    trajectory = filled(tmp_path, model=model)
    tensors = list(model.state_dict(keep_vars=True).values())
    places = [(id(each), each.data_ptr()) for each in tensors]
    for progress in (0, 0.3, 1):
        trajectory.at(progress)
        assert [(id(each), each.data_ptr()) for each in model.state_dict(keep_vars=True).values()] == places


@pytest.mark.usual_memory
def test_one_teacher_in_memory(tmp_path):
    """Eight weights of a megabyte: what is alive afterwards is what was alive before, and what a load takes meanwhile
    is a tensor or two and not a second model (the file itself may be mapped into memory)."""
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(8)))
    trajectory, unit = TeacherTrajectory(tmp_path, model), 512 * 512 * 4
    for step in (1, 2, 3):
        trajectory.record(step, {name: each.detach() + step for name, each in model.state_dict().items()})

    def alive():
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
        tensors = [each for each in tensors if each.layout == torch.strided]  # another test's may have no storage
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())

    before, size = alive(), (tmp_path / "step-000000000001.safetensors").stat().st_size
    assert before >= 8 * unit and size > 8 * unit
    allocations(lambda: trajectory.load(2), size)  # imports
    for progress in (0, 0.5, 1):
        tracemalloc.start()
        peak, _ = allocations(lambda progress=progress: trajectory.at(progress), size)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 3 * unit and python <= 3 * unit
        assert alive() <= before + unit


def test_a_new_object_on_the_folder_goes_on(tmp_path):
    filled(tmp_path, STEPS[:2])
    again = TeacherTrajectory(tmp_path, network(98))
    assert again.last == 250 and again.steps == STEPS[:2]
    for step in STEPS:
        again.record(step, network(step))
    assert again.steps == STEPS and same(again.at(1), network(1200))
    assert same(TeacherTrajectory(tmp_path, network(97)).at(0.3), network(400))


def test_without_a_model_steps_can_be_asked_and_teachers_not(tmp_path):
    filled(tmp_path)
    trajectory = TeacherTrajectory(tmp_path)
    assert trajectory.step_at(0.3) == 400
    for call in (lambda: trajectory.at(0.3), lambda: trajectory.load(400)):
        with pytest.raises((ValueError, RuntimeError, TypeError), match="model"):
            call()


def test_at_does_not_touch_the_files(tmp_path):
    trajectory = filled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    teacher = trajectory.at(0.3)
    with torch.no_grad():
        for each in teacher.parameters():
            each.zero_()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(trajectory.load(250), network(250)) and same(trajectory.load(400), network(400))
