"""A teacher's trajectory as a folder: what is written, what is listed, and what an existing step does."""

import os
from pathlib import Path

import pytest
import torch
from online_teachers import CLASSES, FEATURES, STEPS, Mixed, Tied, bits, copies, filled, network, same
from safetensors import safe_open

from kdkernels.methods.online import TeacherTrajectory


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def stamp(path):
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ino, status.st_size


def test_the_file(tmp_path):
    model = network(3)
    path = TeacherTrajectory(tmp_path).record(1200, model)
    assert isinstance(path, Path) and path == tmp_path / "step-000000001200.safetensors"
    assert names(tmp_path) == [path.name]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "kdkernels.trajectory", "step": "1200"}
        assert same({name: file.get_tensor(name) for name in file.keys()}, model)  # noqa: SIM118


def test_the_folder_is_made_on_the_first_record(tmp_path):
    folder = tmp_path / "a" / "b"
    trajectory = TeacherTrajectory(str(folder))
    assert trajectory.steps == () and len(trajectory) == 0 and trajectory.last is None and 0 not in trajectory
    assert not folder.exists() and not folder.parent.exists()
    trajectory.record(0, network())
    assert trajectory.steps == (0,) and trajectory.last == 0 and 0 in trajectory


def test_steps_in_any_order_and_from_the_folder_anew(tmp_path):
    first, second = TeacherTrajectory(tmp_path), TeacherTrajectory(tmp_path)
    for step in (400, 5, 1200, 90):
        first.record(step, network())
        assert second.last == first.last == max(first.steps) and step in second
    assert first.steps == second.steps == (5, 90, 400, 1200) and type(first.steps) is tuple
    assert len(first) == 4 and 6 not in first and all(type(step) is int for step in first.steps)
    (tmp_path / "step-000000001200.safetensors").unlink()
    assert first.steps == (5, 90, 400) and first.last == 400 and len(first) == 3 and 1200 not in first


def test_steps_are_numbers_and_not_names(tmp_path):
    trajectory = TeacherTrajectory(tmp_path, network(9))
    for step in (10**12, 10**12 - 1, 7):
        trajectory.record(step, network(step % 10))
    assert trajectory.steps == (7, 10**12 - 1, 10**12)
    assert same(trajectory.load(10**12), network(0))


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "model.safetensors", "step-000000000007.pt", "step-abc.safetensors", "step-.safetensors",
     "xstep-000000000007.safetensors", "step-000000000007.safetensors.tmp", ".step-000000000007.safetensors.tmp-1",
     "step--00000000007.safetensors", "step-000000000007.safetensors.bak", "step-0000000000007.safetensors"],
)  # fmt: skip
def test_other_files_are_ignored_and_left_alone(tmp_path, name):
    trajectory = filled(tmp_path, STEPS[:2])
    (tmp_path / name).write_bytes(b"\x80\x04something else")
    assert trajectory.steps == STEPS[:2] and 7 not in trajectory and len(trajectory) == 2
    assert same(trajectory.at(0.9), network(STEPS[1]))
    trajectory.record(300, network(300))
    assert trajectory.steps == (*STEPS[:2], 300)
    if "tmp" not in name:  # what looks like an abandoned temporary file may be cleared away
        assert (tmp_path / name).read_bytes() == b"\x80\x04something else"


def test_the_same_again_does_nothing(tmp_path):
    """Also where the content holds NaN, which equals nothing, and a zero of either sign."""
    weights = {"w": torch.tensor([1.0, float("nan"), -0.0]), "n": torch.tensor(3)}
    trajectory = TeacherTrajectory(tmp_path)
    for model in (network(1), weights):
        step = len(trajectory)
        path = trajectory.record(step, model)
        os.utime(path, ns=(10**18, 10**18))
        before = stamp(path)
        assert trajectory.record(step, model) == path
        assert TeacherTrajectory(tmp_path).record(step, model, overwrite=False) == path
        assert stamp(path) == before and len(names(tmp_path)) == step + 1


def changed(kind):
    state = copies(network(1))
    if kind == "a value":
        state["4.bias"][0] += 1e-6
    elif kind == "a buffer":
        state["1.num_batches_tracked"] += 1
    elif kind == "a name":
        state["5.bias"] = state.pop("4.bias")
    elif kind == "a dtype":
        state["4.bias"] = torch.zeros_like(state["4.bias"]).double()
    elif kind == "a shape":
        state["4.bias"] = state["4.bias"][None]
    elif kind == "one less":
        del state["4.bias"]
    else:
        state["more"] = torch.zeros(1)
    return state


KINDS = ["a value", "a buffer", "a name", "a dtype", "a shape", "one less", "one more"]


@pytest.mark.parametrize("kind", KINDS)
def test_something_else_at_an_existing_step(tmp_path, kind):
    trajectory, first = TeacherTrajectory(tmp_path), copies(network(1))
    if kind == "a dtype":
        first["4.bias"].zero_()  # equal in value to what comes
    path = trajectory.record(5, first)
    before, content = stamp(path), path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        trajectory.record(5, changed(kind))
    assert stamp(path) == before and path.read_bytes() == content and names(tmp_path) == [path.name]
    assert trajectory.record(5, changed(kind), overwrite=True) == path
    with safe_open(path, framework="pt") as file:
        assert same({name: file.get_tensor(name) for name in file.keys()}, changed(kind))  # noqa: SIM118
    assert names(tmp_path) == [path.name] and trajectory.steps == (5,)


def test_tied_weights(tmp_path):
    trajectory, model = TeacherTrajectory(tmp_path, Tied(5)), Tied(1)
    trajectory.record(3, model)
    loaded = trajectory.load(3)
    assert same(loaded, model) and loaded.head.weight is loaded.embedding.weight
    assert same(TeacherTrajectory(tmp_path, Tied(6, tied=False)).load(3), model)  # every name is in the file
    trajectory.record(3, model)  # the same again


def test_views_of_one_storage_in_a_mapping(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    given = {"0": base[:2], "1": base[1:], "2": base.t(), "3": base[:, 1], "4": base, "5": base[0].expand(3, 4)}
    path = TeacherTrajectory(tmp_path).record(0, given)
    with safe_open(path, framework="pt") as file:
        assert same({name: file.get_tensor(name) for name in file.keys()}, given)  # noqa: SIM118
    assert path.stat().st_size < 4096
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))


def test_every_dtype_and_layout(tmp_path):
    model, reader = Mixed(1), Mixed(2)
    trajectory = TeacherTrajectory(tmp_path, reader)
    trajectory.record(0, model)
    strides = {name: each.stride() for name, each in reader.state_dict().items()}
    assert not reader.turned.is_contiguous() and same(trajectory.load(0), model)
    assert strides == {name: each.stride() for name, each in reader.state_dict().items()}
    trajectory.record(1, {name: each.detach() for name, each in model.state_dict().items()})
    assert same(trajectory.load(1), model)


def test_recording_leaves_the_model_alone(tmp_path):
    model = network(1).train()
    model[4].eval()
    model[0].weight.grad = torch.ones(7, FEATURES)
    before, modes = copies(model), [module.training for module in model.modules()]
    TeacherTrajectory(tmp_path).record(0, model)
    assert same(model, before) and [module.training for module in model.modules()] == modes
    assert all(each.requires_grad for each in model.parameters()) and model[0].weight.grad.sum() == 7 * FEATURES


def test_a_record_is_a_copy(tmp_path):
    model = network(1)
    trajectory = TeacherTrajectory(tmp_path, network(2))
    trajectory.record(0, model)
    with torch.no_grad():
        model[4].bias.add_(1.0)
    assert same(trajectory.load(0), network(1)) and bits(model[4].bias).numel() == 4 * CLASSES


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch, overwrite):
    """A synchronised temporary file in the same folder, the name, and the folder synchronised."""
    named, wanted = (os.replace, "replace") if overwrite else (os.link, "link")
    seen, synchronise = [], os.fsync

    def note(kind, call):
        def noted(*arguments, **options):
            seen.append((kind, names(tmp_path)))
            return call(*arguments, **options)

        return noted

    monkeypatch.setattr(os, "fsync", note("fsync", synchronise))
    monkeypatch.setattr(os, wanted, note("name", named))
    path = TeacherTrajectory(tmp_path).record(1, network(), overwrite=overwrite)
    assert [kind for kind, _ in seen] == ["fsync", "name", "fsync"]
    assert all(len(listed) == 1 and path.name not in listed for _, listed in seen[:2]) and seen[2][1] == [path.name]
