"""What kdkernels.methods.online refuses: the error names the argument, the rule and what came; nothing is written."""

import sys

import pytest
import torch
from online_teachers import CLASSES, STEPS, batch, filled, network, same
from torch import nn

import kdkernels as kd
from kdkernels.methods.online import TeacherTrajectory, logit_mse, online_distillation

EITHER = (TypeError, ValueError)


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"anything": 1}

    def set_extra_state(self, state):
        pass


STATE = {"w": torch.zeros(2)}
RECORDS = {
    "a negative step": ((-1, STATE), ValueError, "step must .*got -1"),
    "half a step": ((1.0, STATE), TypeError, "step must .*float"),
    "a bool": ((True, STATE), TypeError, "step must .*bool"),
    "a name": (("10", STATE), TypeError, "step must .*str"),
    "a tensor as step": ((torch.tensor(1), STATE), TypeError, "step must .*Tensor"),
    "no model": ((1, None), TypeError, "model must .*NoneType"),
    "a list": ((1, [torch.zeros(2)]), TypeError, "model must .*list"),
    "a number in a mapping": ((1, {"w": torch.zeros(2), "epoch": 3}), TypeError, "epoch.*int"),
    "a nested mapping": ((1, {"w": {"v": torch.zeros(2)}}), TypeError, "w.*dict"),
    "extra state": ((1, Extra(2, 2)), TypeError, "_extra_state.*dict"),
    "a key that is no name": ((1, {3: torch.zeros(2)}), TypeError, "3|int"),
}


@pytest.mark.parametrize("case", RECORDS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_refused_records(tmp_path, case, overwrite):
    arguments, error, message = RECORDS[case]
    with pytest.raises(error, match=message):
        TeacherTrajectory(tmp_path / "new").record(*arguments, overwrite=overwrite)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("progress", [-0.1, 1.1, -1e-12, 1 + 1e-12, float("nan"), float("inf"), 400])
def test_progress_outside_of_the_training(tmp_path, progress):
    model = network(99)
    trajectory = filled(tmp_path, model=model)
    for call in (trajectory.at, trajectory.step_at):
        with pytest.raises(ValueError, match=r"progress must .*\[0, 1\].*got"):
            call(progress)
    assert same(model, network(99))


def test_progress_in_a_tensor_is_read_by_the_caller(tmp_path):
    """It may lie on a device, which would be waited for."""
    with pytest.raises(TypeError, match=r"progress must be a number in \[0, 1\], got Tensor: pass .item\(\)"):
        filled(tmp_path).at(torch.tensor(0.5))


def test_the_model_of_a_trajectory_is_its_own(tmp_path):
    trajectory = filled(tmp_path)
    with pytest.raises(AttributeError, match="model"):
        trajectory.model = network(1)
    assert same(trajectory.at(1), network(1200))


@pytest.mark.parametrize("progress", ["0.5", [0.5], True, None])
def test_progress_that_is_no_number(tmp_path, progress):
    for call in (filled(tmp_path).at, filled(tmp_path).step_at):
        with pytest.raises(TypeError, match="progress must .*(str|list|bool|NoneType)"):
            call(progress)


@pytest.mark.parametrize("made", [True, False])
def test_an_empty_trajectory(tmp_path, made):
    folder = tmp_path / "empty"
    if made:
        folder.mkdir()
        (folder / "notes.txt").touch()
    trajectory = TeacherTrajectory(folder, network())
    for call in (lambda: trajectory.at(0.5), lambda: trajectory.step_at(0.5)):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            call()
    assert trajectory.steps == () and folder.exists() == made


def test_a_step_that_is_not_there(tmp_path):
    model = network(99)
    trajectory = filled(tmp_path, model=model)
    with pytest.raises((FileNotFoundError, KeyError), match="(?s)300.*100.*250.*400.*1200|100.*250.*400.*1200.*300"):
        trajectory.load(300)
    assert same(model, network(99))
    with pytest.raises((FileNotFoundError, KeyError)):
        TeacherTrajectory(tmp_path / "none", network()).load(1)


@pytest.mark.parametrize("model", ["resnet", 3, {"w": torch.zeros(2)}])
def test_a_model_that_is_none(tmp_path, model):
    with pytest.raises(TypeError, match=f"model must .*{type(model).__name__}"):
        TeacherTrajectory(tmp_path, model)


def test_a_folder_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises((OSError, ValueError)):
        TeacherTrajectory(path).record(1, STATE)
    assert path.read_text() == "kept"


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    trajectory = filled(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: trajectory.record(5, STATE), lambda: trajectory.at(0.5)):
        with pytest.raises((ImportError, RuntimeError), match=r"safetensors.*(\[online\]|pip install)"):
            call()
    assert trajectory.steps == STEPS


class Holder:
    def at(self, progress):
        return network(1)


X, LABELS = batch()
Z = torch.zeros(8, CLASSES)
LOSSES = {
    "a network as teacher": ({"teacher": network()}, TypeError, "teacher must .*at.*Sequential"),
    "no teacher": ({"teacher": None}, TypeError, "teacher must .*NoneType"),
    "a folder": ({"teacher": "run/teacher"}, TypeError, "teacher must .*str"),
    "no loss": ({"loss": None}, TypeError, "loss must .*None"),
    "the name of a loss": ({"loss": "forward_kl"}, TypeError, "loss must .*(str|forward_kl)"),
    "the class of a loss": ({"loss": kd.ForwardKL}, TypeError, "loss must .*ForwardKL"),
    "alpha": ({"alpha": 1.5}, ValueError, r"alpha must .*\[0, 1\].*1.5"),
    "alpha of logit_mse": ({"alpha": 1.5, "loss": logit_mse}, ValueError, r"alpha must .*\[0, 1\].*1.5"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    "one value for all rows": ({"loss": lambda s, t: (s - t).mean()}, EITHER, r"loss must .*\(8,\).*\(\)"),
    "a value per logit": ({"loss": lambda s, t: s - t}, EITHER, r"loss must .*\(8,\).*\(8, 5\)"),
    "no tensor": ({"loss": lambda s, t: 1.0}, EITHER, "loss must .*float"),
    "other classes": ({"student_logits": torch.zeros(8, 4)}, ValueError, "teacher must have the shape of student"),
    "other classes of logit_mse": (
        {"student_logits": torch.zeros(8, 4), "loss": logit_mse}, ValueError, "teacher must have the shape of student"
    ),
    "an unknown keyword": ({"tau": 4.0}, TypeError, "tau"),
    "an unknown keyword of logit_mse": ({"tau": 4.0, "loss": logit_mse}, TypeError, "tau"),
    "mask": ({"loss": logit_mse, "mask": LABELS == 0}, TypeError, "mask"),
    "weight": ({"loss": logit_mse, "weight": torch.ones(8)}, TypeError, "weight"),
    "normalizer": ({"loss": logit_mse, "normalizer": 64}, TypeError, "normalizer"),
    "sum": ({"loss": logit_mse, "reduction": "sum"}, TypeError, "reduction.*sum"),
    "rows": ({"loss": logit_mse, "reduction": "none"}, TypeError, "reduction.*none"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_refused_losses(case):
    options, error, message = LOSSES[case]
    arguments = {"student_logits": Z, "x": X, "labels": LABELS, "teacher": Holder(), "progress": 0.5} | options
    with pytest.raises(error, match=message):
        online_distillation(**arguments)


def test_progress_reaches_the_trajectory(tmp_path):
    with pytest.raises(ValueError, match="progress must"):
        online_distillation(Z, X, LABELS, filled(tmp_path), 1.5)
