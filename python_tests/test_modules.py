"""The nn.Module twins: the same numbers, and what one expects of a module."""

import copy
import inspect
import pickle
import pydoc

import pytest
import torch
from cases import DEFAULT_LOSSES, logits, name_of, pair

import kdkernels as kd


@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_divergence_twin(where, loss, reduction):
    student, teacher = pair(4, 3, 100, device=where.device)
    options = {
        "temperature": 3.0,
        "tau_squared": False,
        "reduction": reduction,
        "vocab_size": 90,
        "backend": where.backend,
    }
    batch = {
        "mask": torch.arange(12, device=where.device).view(4, 3) % 3 > 0,
        "weight": logits(4, 3, device=where.device),
    }
    if reduction == "mean":
        batch["normalizer"] = 7
    criterion = kd.DivergenceLoss(loss, **options)
    assert torch.equal(criterion(student, teacher, **batch), kd.divergence(student, teacher, loss, **options, **batch))


@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
@pytest.mark.parametrize("alpha", [None, 0.9, "per row"])
def test_distillation_twin(where, loss, alpha):
    student, teacher = pair(5, 100, device=where.device)
    labels = torch.tensor([0, 7, 3, 99, 1], device=where.device)
    options = {
        "temperature": 3.0,
        "tau_squared": False,
        "ignore_index": 7,
        "reduction": "sum",
        "backend": where.backend,
    }
    criterion = kd.DistillationLoss(loss, alpha=0.2, **options)
    share = torch.linspace(0, 1, 5, device=where.device) if alpha == "per row" else alpha
    batch = {"mask": torch.arange(5, device=where.device) > 0, "weight": logits(5, device=where.device)}
    got = criterion(student, teacher, labels, alpha=share, **batch)
    wanted = 0.2 if share is None else share
    assert torch.equal(got, kd.distillation(student, teacher, labels, loss, alpha=wanted, **options, **batch))


def test_defaults_are_the_functions():
    student, teacher = pair(5, 100)
    labels = torch.arange(5)
    assert torch.equal(kd.DivergenceLoss()(student, teacher), kd.divergence(student, teacher))
    assert torch.equal(kd.DistillationLoss()(student, teacher, labels), kd.distillation(student, teacher, labels))


def test_inplace_is_handed_on():
    student, teacher = pair(5, 100)
    for criterion, extra in (
        (kd.DivergenceLoss(inplace=True), ()),
        (kd.DistillationLoss(inplace=True), (torch.arange(5),)),
    ):
        with pytest.raises(ValueError, match="leaf"):
            criterion(student, teacher, *extra)


def test_a_train_step():
    student, teacher = pair(5, 100)
    criterion = kd.DistillationLoss(kd.JensenShannon(0.3), alpha=0.7, temperature=2.0)
    criterion(student, teacher, torch.arange(5)).backward()
    (wanted,) = torch.autograd.grad(
        kd.distillation(student, teacher, torch.arange(5), kd.JensenShannon(0.3), alpha=0.7, temperature=2.0), student
    )
    assert torch.equal(student.grad, wanted)


def test_no_parameters_no_state_and_copies():
    student, teacher = pair(5, 100)
    criterion = kd.DivergenceLoss(kd.SkewKL(0.3), temperature=2.0)
    assert not list(criterion.parameters())
    assert not criterion.state_dict()
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)), criterion.half().train().eval()):
        assert torch.equal(twin(student, teacher), criterion(student, teacher))


def test_repr_says_what_it_computes():
    text = repr(kd.DistillationLoss(kd.SkewKL(alpha=0.3), alpha=0.9, temperature=2.5, reduction="sum"))
    for part in ("DistillationLoss", "SkewKL(alpha=0.3)", "alpha=0.9", "temperature=2.5", "reduction='sum'"):
        assert part in text


@pytest.mark.parametrize("criterion", [kd.DivergenceLoss, kd.DistillationLoss])
def test_wrong_options_are_refused_when_it_is_built(criterion):
    with pytest.raises(TypeError, match="loss must be a kdkernels loss"):
        criterion("forward_kl")
    with pytest.raises(ValueError, match="temperature must be positive and finite, got -1"):
        criterion(temperature=-1.0)
    with pytest.raises(ValueError, match="reduction must be one of"):
        criterion(reduction="average")
    with pytest.raises(TypeError):
        criterion(smoothing=0.1)


@pytest.mark.parametrize("criterion", [kd.DivergenceLoss, kd.DistillationLoss])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size must lie in"),
        ({"vocab_size": 2.0}, TypeError, "vocab_size must be an int, got float"),
        ({"vocab_size": True}, TypeError, "vocab_size must be an int, got bool"),
        ({"vocab_size": 5, "loss": kd.Perturbed(torch.ones(4, 2))}, ValueError, "one row per class, 5 of them, got 4"),
        ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'reference'"),
        ({"inplace": "yes"}, TypeError, "inplace must be True or False, got 'yes'"),
        ({"tau_squared": 1}, TypeError, "tau_squared must be True or False, got 1"),
        ({"temperature": "4"}, TypeError, "temperature must be a number, got str"),
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"alpha": "0.5"}, TypeError, "alpha must be a number"),
        ({"alpha": torch.tensor(0.5, requires_grad=True)}, ValueError, "alpha must not require grad"),
        ({"alpha": torch.tensor(1)}, TypeError, "alpha must be floating point"),
        ({"ignore_index": None}, TypeError, "ignore_index must be an int, got NoneType"),
    ],
    ids=str,
)
def test_every_option_is_checked_when_it_is_built(criterion, options, error, message):
    if criterion is kd.DivergenceLoss and options.keys() & {"alpha", "ignore_index"}:
        with pytest.raises(TypeError, match="unexpected keyword"):
            criterion(**options)
        return
    with pytest.raises(error, match=message):
        criterion(**options)


def test_options_are_attributes_that_may_change():
    student, teacher = pair(4, 50)
    labels = torch.tensor([1, 7, 3, 2])
    criterion = kd.DistillationLoss(alpha=0.3)
    changes = {"temperature": 9.0, "reduction": "sum", "tau_squared": False, "ignore_index": 7, "vocab_size": 40}
    for name, value in changes.items():
        setattr(criterion, name, value)
        assert getattr(criterion, name) == value
    assert torch.equal(
        criterion(student, teacher, labels), kd.distillation(student, teacher, labels, alpha=0.3, **changes)
    )
    assert "temperature=9.0" in repr(criterion)
    assert copy.deepcopy(criterion).temperature == 9.0 and kd.DistillationLoss().temperature == 1.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 0.0, "temperature must be positive"),
        ("temperature", 1e20, "temperature must not exceed"),
        ("reduction", "average", "reduction must be one of"),
        ("inplace", 1, "inplace must be True or False"),
        ("backend", "cuda", "backend must be one of"),
        ("vocab_size", 0, "vocab_size must lie in"),
        ("ignore_index", 2**70, "ignore_index must be an int64"),
    ],
)
def test_an_option_is_checked_when_it_is_assigned(name, value, message):
    criterion = kd.DistillationLoss()
    before = dict(criterion.options)
    with pytest.raises((TypeError, ValueError), match=message):
        setattr(criterion, name, value)
    assert criterion.options == before


def test_a_temperature_without_a_square_is_refused_where_it_is_known():
    with pytest.raises(ValueError, match="temperature must not exceed"):
        kd.DivergenceLoss(temperature=1e20)
    assert kd.DivergenceLoss(temperature=1e20, tau_squared=False).temperature == 1e20


def test_the_caller_s_alpha_is_not_the_module_s():
    alpha = torch.tensor(0.1)
    kd.DistillationLoss(alpha=alpha).load_state_dict({"alpha": torch.tensor(0.9)})
    assert alpha == torch.tensor(0.1)


def test_coefficients_written_where_no_version_counts_are_used():
    student, teacher = pair(4, 50)
    criterion = kd.DivergenceLoss(kd.Perturbed(torch.tensor([0.1, 0.2])))
    criterion(student, teacher)
    criterion.coefficients.data.mul_(5)
    assert torch.equal(
        criterion(student, teacher), kd.divergence(student, teacher, kd.Perturbed(criterion.coefficients))
    )


@pytest.mark.parametrize("criterion", [kd.DivergenceLoss, kd.DistillationLoss])
def test_help_begins_with_our_arguments(criterion):
    """pydoc prints nn.Module's members too, after ours: the class, its docstring, its methods and theirs come first."""
    lines = pydoc.render_doc(criterion, renderer=pydoc.plaintext).splitlines()
    first = "\n".join(lines[:45])
    for name in inspect.signature(criterion.__init__).parameters:
        assert name == "self" or f"{name}: " in first.replace("|  ", "")
    before = next(index for index, line in enumerate(lines) if "inherited from torch" in line)
    ours = "\n".join(lines[:before])
    for name in inspect.signature(criterion.forward).parameters:
        assert name == "self" or f"{name}: " in ours
