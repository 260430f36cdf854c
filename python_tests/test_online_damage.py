"""Checkpoints that are broken, foreign or of another network: an error that says so, and a model that is as before."""

import json
import os
import pickle
import struct

import pytest
import torch
from online_teachers import STEPS, copies, filled, network, same
from torch import nn

from kdkernels.methods.online import TeacherTrajectory

FILE = "step-000000000400.safetensors"


class Unpickled:
    """Sets a mark on whoever unpickles it."""

    def __reduce__(self):
        return exec, ("import os; os.environ['KDKERNELS_TEST_UNPICKLED'] = '1'",)


def broken(kind, content):
    """The bytes of a good file turned into a bad one's."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    if kind.startswith("first"):
        return content[: int(kind.split()[1])]
    if kind == "half":
        return content[: len(content) // 2]
    if kind == "all but one byte":
        return content[:-1]
    if kind == "one byte more":
        return content + b"\0"
    if kind == "no JSON":
        return content[:8] + b"x" * length + content[8 + length :]
    if kind == "a length beyond the end":
        return struct.pack("<Q", 1 << 40) + content[8:]
    if kind == "a pickle":
        return pickle.dumps({"0.weight": Unpickled()})
    if kind == "text":
        return b"once upon a time " * 40
    if kind == "no metadata":
        del header["__metadata__"]
    elif kind == "another format":
        header["__metadata__"]["format"] = "pt"
    elif kind == "offsets beyond the end":
        header["4.weight"]["data_offsets"][1] += 4096
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


KINDS = [
    "first 0", "first 7", "first 8", "first 60", "half", "all but one byte", "one byte more", "no JSON",
    "a length beyond the end", "a pickle", "text", "no metadata", "another format", "offsets beyond the end",
]  # fmt: skip


def state(model):
    return copies(model), [each.requires_grad for each in model.parameters()], [m.training for m in model.modules()]


def check_unchanged(model, before):
    values, requires_grad, modes = before
    assert same(model, values)
    assert [each.requires_grad for each in model.parameters()] == requires_grad
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loaded", [False, True])
def test_a_broken_file_is_named_and_nothing_of_it_is_loaded(tmp_path, kind, loaded):
    """Into a fresh model and into one that holds another checkpoint, which it goes on holding."""
    os.environ.pop("KDKERNELS_TEST_UNPICKLED", None)
    model = network(99)
    trajectory, path = filled(tmp_path, model=model), tmp_path / FILE
    path.write_bytes(broken(kind, path.read_bytes()))
    if loaded:
        trajectory.at(0.1)
    before = state(model)
    for call in (lambda: trajectory.at(0.3), lambda: trajectory.load(400), lambda: trajectory.at(0.3)):
        with pytest.raises(ValueError, match=FILE):
            call()
        check_unchanged(model, before)
    assert "KDKERNELS_TEST_UNPICKLED" not in os.environ
    assert trajectory.steps == STEPS  # names only
    assert same(trajectory.at(0.1), network(250)) and same(trajectory.at(0.5), network(1200))


def test_the_mark_of_the_pickle_shows(tmp_path):
    pickle.loads(broken("a pickle", (filled(tmp_path).record(1, network())).read_bytes()))
    assert os.environ.pop("KDKERNELS_TEST_UNPICKLED") == "1"


def test_a_torch_file_in_the_place_of_a_checkpoint(tmp_path):
    trajectory = filled(tmp_path)
    torch.save({"0.weight": Unpickled()}, tmp_path / FILE)
    with pytest.raises(ValueError, match=FILE):
        trajectory.at(0.3)
    assert "KDKERNELS_TEST_UNPICKLED" not in os.environ


def test_a_broken_file_is_not_overwritten_unless_asked(tmp_path):
    """Its content differs from what comes, whatever it is."""
    trajectory, path = filled(tmp_path), tmp_path / FILE
    bad = broken("half", path.read_bytes())
    path.write_bytes(bad)
    with pytest.raises((FileExistsError, ValueError), match=f"overwrite=True|{FILE}"):
        trajectory.record(400, network(400))
    assert path.read_bytes() == bad
    trajectory.record(400, network(400), overwrite=True)
    assert same(trajectory.at(0.3), network(400))


def other_network(kind, first):
    """The state of a network that differs in one entry, the first or the last in any order of names."""
    values = copies(network(400))
    name = "0.bias" if first else "4.weight"
    if kind == "missing":
        del values[name]
    elif kind == "unexpected":
        name = "0.aaa" if first else "9.zzz"
        values[name] = torch.zeros(3)
    elif kind == "shape":
        values[name] = torch.zeros(2, 3, 4)
    elif kind == "transposed":
        values[name] = values[name].t() if values[name].dim() == 2 else values[name][None]
    return values, name


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape", "transposed"])
@pytest.mark.parametrize("first", [True, False])
def test_the_state_of_another_network(tmp_path, kind, first):
    model = network(99)
    trajectory = filled(tmp_path, (100, 250, 1200), model)
    values, name = other_network(kind, first)
    trajectory.record(400, values)
    trajectory.at(0.1)
    model.train()
    before = state(model)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        trajectory.load(400)
    check_unchanged(model, before)
    assert same(trajectory.at(0.1), network(250)) and same(trajectory.at(1), network(1200))


def test_shapes_say_what_is_wanted_and_what_came(tmp_path):
    trajectory = filled(tmp_path, (100,))
    trajectory.record(400, other_network("shape", False)[0])
    with pytest.raises(ValueError, match=r"4\.weight.*\(5, 7\).*\(2, 3, 4\)|4\.weight.*\(2, 3, 4\).*\(5, 7\)"):
        trajectory.load(400)


class Odd(nn.Module):
    """A weight and a buffer that comes after it."""

    def __init__(self, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("z", buffer)


@torch.inference_mode()
def made_in_inference_mode():
    return torch.zeros(3)


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(1).expand(3), made_in_inference_mode], ids=["expanded", "inference"]
)
def test_a_model_that_cannot_be_written_is_left_alone(tmp_path, make):
    model = Odd(make())
    trajectory = TeacherTrajectory(tmp_path, model)
    trajectory.record(1, {"weight": torch.ones(3), "z": torch.ones(3)})
    before = state(model)
    with pytest.raises(ValueError, match=r"model's entry 'z' must .*(expanded|inference) tensor"):
        trajectory.at(1)
    check_unchanged(model, before)


def test_inference_mode_may_write_what_it_made(tmp_path):
    model = Odd(made_in_inference_mode())
    trajectory = TeacherTrajectory(tmp_path, model)
    trajectory.record(1, {"weight": torch.ones(3), "z": torch.ones(3)})
    with torch.inference_mode():
        trajectory.at(1)
        assert bool((model.weight == 1).all()) and bool((model.z == 1).all())


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path, monkeypatch):
    trajectory = filled(tmp_path, (100,))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for names in (("link", "replace"), ("fsync",)):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                trajectory.record(400, network(400))
        assert trajectory.steps == (100,) and not (tmp_path / FILE).exists()
    trajectory.record(400, network(400))
    assert len(list(tmp_path.iterdir())) == 2 and same(trajectory.at(1), network(400))


def test_overwriting_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    trajectory = filled(tmp_path)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            trajectory.record(400, network(1), overwrite=True)
    assert same(trajectory.load(400), network(400)) and trajectory.steps == STEPS


def test_a_step_that_vanished_while_it_was_in_use(tmp_path):
    """The folder is read anew: what is gone supervises nothing any more."""
    trajectory = filled(tmp_path)
    trajectory.at(0.3)
    (tmp_path / FILE).unlink()
    assert trajectory.step_at(0.3) == 1200 and same(trajectory.at(0.3), network(1200))
    again = TeacherTrajectory(tmp_path, network(99))
    assert again.steps == (100, 250, 1200)
