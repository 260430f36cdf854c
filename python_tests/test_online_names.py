"""A teacher that is wrapped, or of which a part is compiled, has the state of the same teacher as written."""

import pytest
import torch
from online_teachers import batch, copies, network, same
from torch import nn

from kdkernels.methods.online import SideBySide, TeacherTrajectory


def in_parts(seed):
    model = network(seed)
    for index in (0, 4):
        model[index] = torch.compile(model[index], backend="eager")
    return model


KINDS = {
    "as written": network,
    "compiled": lambda seed: torch.compile(network(seed), backend="eager"),
    "compiled in parts": in_parts,
    "compiled twice": lambda seed: torch.compile(in_parts(seed), backend="eager"),
    "data parallel": lambda seed: nn.DataParallel(network(seed)),
    "compiled data parallel": lambda seed: torch.compile(nn.DataParallel(in_parts(seed)), backend="eager"),
    "data parallel compiled": lambda seed: nn.DataParallel(torch.compile(network(seed), backend="eager")),
}


def weights(model):
    """In the order of the modules: the names may differ."""
    return dict(enumerate(copies(model).values()))


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("saved", KINDS)
def test_any_kind_reads_what_any_other_has_written(tmp_path, saved, own):
    recorder, model = KINDS[saved](3), KINDS[own](99)
    path = TeacherTrajectory(tmp_path).record(1, recorder)
    TeacherTrajectory(tmp_path).record(1, network(3))  # the same content: nothing to do
    assert TeacherTrajectory(tmp_path, model).at(0.5) is model and path.exists()
    assert same(weights(model), weights(network(3)))
    source, both = (SideBySide(each, torch.optim.SGD(each.parameters(), 0.1)) for each in (KINDS[saved](4), model))
    state = source.state_dict()
    assert list(state["teacher"]) == list(network(4).state_dict())
    both.load_state_dict(state)
    assert same(weights(model), weights(network(4)))


def test_a_mapping_s_names_are_seen_in_the_same_way(tmp_path):
    TeacherTrajectory(tmp_path).record(1, in_parts(3).state_dict())
    assert same(TeacherTrajectory(tmp_path, network(99)).at(1), network(3))
    with pytest.raises(ValueError, match=r"model must not have an entry twice, once as compiled, got a\._orig_mod\.b"):
        TeacherTrajectory(tmp_path).record(2, {"a._orig_mod.b": torch.zeros(1), "a.b": torch.ones(1)})
    assert TeacherTrajectory(tmp_path).steps == (1,)


def test_names_that_only_look_like_it_stay(tmp_path):
    given = {name: torch.full((2,), float(i)) for i, name in enumerate(("my_orig_mod.w", "module.w", "_orig_mods.w"))}
    model = nn.Module()
    for name in given:
        part = nn.Module()
        part.register_buffer("w", torch.full((2,), -1.0))
        model.add_module(name.split(".")[0], part)
    TeacherTrajectory(tmp_path).record(1, given)
    assert same(TeacherTrajectory(tmp_path, model).at(1), given)


class Versioned(nn.Linear):
    """Migrates an old state, in which the bias had the other sign."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "bias"] = -state_dict[prefix + "bias"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_versions_of_modules_reach_them(tmp_path, compiled, old):
    def beside():
        part = Versioned(6, 5)
        teacher = nn.Sequential(torch.compile(part, backend="eager") if compiled else part)
        return SideBySide(teacher, torch.optim.SGD(teacher.parameters(), 0.1))

    source, both = beside(), beside()
    source.step(*batch())
    torch.save(source.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    if old:
        state["teacher"]._metadata["0"]["version"] = 1
    both.load_state_dict(state)
    bias, wanted = both.teacher[0].bias, source.teacher[0].bias
    assert torch.equal(bias, -wanted if old else wanted) and bool((wanted != 0).any())
