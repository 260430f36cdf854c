"""The hypergradient is the gradient through a truly unrolled step of SGD, and leaves no trace of having been taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import F32, F64, on
from tgeo_students import CLASSES, EVERY_DEVICE, SETTINGS, STUDENTS, alphas, batches, make, seeded, unrolled
from torch import nn

import kdkernels as kd
from kdkernels.methods import tgeo

LOSSES = [kd.ForwardKL(), kd.JensenShannon(beta=0.3), kd.Perturbed(torch.tensor([2.0, -0.4]))]


@EVERY_DEVICE
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", STUDENTS)
def test_is_the_gradient_through_an_unrolled_step(device, name, temperature, loss):
    train, validation = batches(name, device)
    alpha, options = alphas(train[2]), {"inner_lr": 0.3, "temperature": temperature, "loss": on(device, loss)}
    plain = make(name, device)
    plain.on = False  # what is checkpointed is computed again with the student's own weights when PyTorch unrolls it
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused one has no second derivative
        wanted = seeded(unrolled, plain, alpha, train, validation, **options)
    got = seeded(tgeo.hypergradient, make(name, device), alpha, train, validation, **options)
    assert got.dtype == F64 and got.shape == alpha.shape
    counted = train[2] != -100
    assert wanted[counted].abs().min() > 1e-7  # there is something to compare
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-13)


@EVERY_DEVICE
def test_takes_the_mode_in_which_the_student_is(device):
    train, validation = batches("dropout", device)
    student, alpha = make("dropout", device).eval(), alphas(train[2])
    got = seeded(tgeo.hypergradient, student, alpha, train, validation, **SETTINGS)
    torch.testing.assert_close(got, unrolled(student, alpha, train, validation, **SETTINGS), rtol=1e-9, atol=1e-13)
    assert not student.training
    assert not torch.equal(got, seeded(tgeo.hypergradient, student.train(), alpha, train, validation, **SETTINGS))


@EVERY_DEVICE
@pytest.mark.parametrize("name", STUDENTS)
def test_leaves_the_student_and_the_random_state_as_they_were(device, name):
    train, validation = batches(name, device)
    student = make(name, device)
    for each in student.parameters():
        each.grad = torch.full_like(each, 2.0)
    grads, state = [each.grad for each in student.parameters()], copy.deepcopy(student.state_dict())
    identities = [id(each) for each in (*student.parameters(), *student.buffers())]
    torch.manual_seed(3)
    wanted = torch.rand(4, device=device)
    torch.manual_seed(3)
    tgeo.hypergradient(student, alphas(train[2]), train, validation, **SETTINGS)
    assert torch.equal(torch.rand(4, device=device), wanted)
    assert student.training
    assert identities == [id(each) for each in (*student.parameters(), *student.buffers())]
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    for each, grad in zip(student.parameters(), grads, strict=True):
        assert each.grad is grad and bool((grad == 2.0).all())


@EVERY_DEVICE
def test_dropout_draws_the_masks_that_the_student_draws_next(device):
    train, validation = batches("dropout", device)
    student, seen = make("dropout", device), []

    def call(module, inputs):
        seen.append(module(inputs))
        return seen[-1]

    tgeo.hypergradient(student, alphas(train[2]), train, validation, call=call, **SETTINGS)
    inner, outer, product = (each.detach() for each in seen)
    with torch.no_grad():
        torch.testing.assert_close(inner, torch.autograd.forward_ad.unpack_dual(product).primal, rtol=0, atol=0)
        torch.testing.assert_close(inner, student(train[0]), rtol=0, atol=0)
    assert not torch.equal(outer, inner)


@EVERY_DEVICE
def test_rows_that_are_ignored(device):
    """Their hypergradient is 0, and neither their logits nor their alpha reach the other rows."""
    train, validation = batches("mlp", device)
    inputs, teacher, labels = train
    some = torch.tensor([0, 2, 3], device=device)
    labels = labels.clone()
    labels[[1, 4, 5]] = -100
    alpha = alphas(labels)
    few = tgeo.hypergradient(
        make("mlp", device), alpha[some], (inputs[some], teacher[some], labels[some]), validation, **SETTINGS
    )
    teacher = torch.where(labels[:, None] == -100, torch.nan, teacher)
    got = tgeo.hypergradient(make("mlp", device), alpha, (inputs, teacher, labels), validation, **SETTINGS)
    torch.testing.assert_close(got[some], few)
    assert bool((got[labels == -100] == 0).all())
    nothing = torch.full_like(labels, -100)
    for changed in (((inputs, teacher, nothing), validation), ((inputs, train[1], labels), (validation[0], nothing))):
        assert bool((tgeo.hypergradient(make("mlp", device), alpha, *changed, **SETTINGS) == 0).all())


def test_a_student_that_is_the_teacher_and_right():
    """d = 0 in every row where KD and CE have the same gradient: a teacher at T = 1 that is one-hot on the label."""
    train, validation = batches("mlp", "cpu")
    teacher = torch.where(F.one_hot(train[2], CLASSES) == 1, 0.0, -torch.inf).double()
    options = {"inner_lr": 0.3, "temperature": 1.0}
    got = tgeo.hypergradient(make("mlp", "cpu"), alphas(train[2]), (train[0], teacher, train[2]), validation, **options)
    torch.testing.assert_close(got, torch.zeros_like(got), rtol=0, atol=1e-16)


@EVERY_DEVICE
def test_the_way_the_inputs_are_given(device):
    train, validation = batches("mlp", device)
    alpha = alphas(train[2])

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make("mlp", device)

        def forward(self, x, factor=1.0):
            return {"logits": factor * self.inner(x)}

    class Logits(Pair):
        def forward(self, x, factor=1.0):
            return super().forward(x, factor)["logits"]

    def run(student, pack, **options):
        packed = (pack(train[0]), *train[1:]), (pack(validation[0]), validation[1])
        return tgeo.hypergradient(student, alpha, *packed, **SETTINGS, **options)

    wanted = run(Logits(), lambda x: x / 2)
    assert not torch.allclose(wanted, run(Logits(), lambda x: x))
    for pack in (lambda x: (x,), lambda x: {"x": x}):
        torch.testing.assert_close(run(Logits(), pack), run(Logits(), lambda x: x))
    doubled = run(Logits(), lambda x: (x, 2.0))
    torch.testing.assert_close(run(Logits(), lambda x: {"x": x, "factor": 2.0}), doubled)
    torch.testing.assert_close(run(Pair(), lambda x: x, call=lambda module, x: module(x, 2.0)["logits"]), doubled)


@EVERY_DEVICE
def test_runs_under_no_grad_and_alpha_may_have_a_graph(device):
    train, validation = batches("mlp", device)
    alpha = alphas(train[2])
    wanted = tgeo.hypergradient(make("mlp", device), alpha, train, validation, **SETTINGS)
    with torch.no_grad():
        got = tgeo.hypergradient(make("mlp", device), alpha, train, validation, **SETTINGS)
    learnt = alpha.clone().requires_grad_()
    again = tgeo.hypergradient(make("mlp", device), 1.0 * learnt, train, validation, **SETTINGS)
    assert torch.equal(got, wanted) and torch.equal(again, wanted)
    assert not again.requires_grad and learnt.grad is None


def test_no_kernel_is_asked_for_a_second_derivative(kernel):
    """The fused backends serve it: each of them raises where a second derivative is taken."""
    dtype = F32
    train, validation = batches("mlp", kernel.device, dtype)
    alpha = alphas(train[2], dtype)
    answers = []
    for backend in (kernel.backend, "reference"):
        with kd.use_backend(backend):
            answers.append(tgeo.hypergradient(make("mlp", kernel.device, dtype), alpha, train, validation, **SETTINGS))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-7)


def frozen():
    return make("mlp", "cpu").requires_grad_(False)


TRAIN, VALIDATION = batches("mlp", "cpu")

ROW = r"alpha must have one value per row, shape \(6,\), got "

BAD = [
    ({"alpha": alphas(TRAIN[2])[:, None]}, ValueError, rf"{ROW}\(6, 1\)"),
    ({"alpha": torch.tensor(0.5)}, ValueError, rf"{ROW}\(\)"),
    ({"alpha": 0.5}, TypeError, "alpha must be a torch.Tensor with one value per row, got float"),
    ({"alpha": torch.ones(6, dtype=torch.int64)}, TypeError, "alpha must be floating point, got torch.int64"),
    ({"inner_lr": 0.0}, ValueError, "inner_lr must be positive and finite, got 0.0"),
    ({"inner_lr": "0.1"}, TypeError, "inner_lr must be a number, got str"),
    ({"temperature": -1.0}, ValueError, "temperature must be positive and finite, got -1.0"),
    ({"loss": kd.ForwardKL}, TypeError, "an instance and not the class"),
    ({"student": frozen}, ValueError, "student must have a parameter that requires grad, got none"),
    ({"student": lambda: torch.relu}, TypeError, "student must be a torch.nn.Module, got builtin_function_or_method"),
    ({"train": TRAIN[:2]}, ValueError, r"train must be a tuple \(inputs, teacher logits, labels\), got 2 of them"),
    ({"validation": TRAIN[0]}, ValueError, r"validation must be a tuple \(inputs, labels\), got Tensor"),
    ({"train": (TRAIN[0], TRAIN[1][:, :4], TRAIN[2])}, ValueError, r"teacher must have the shape of student"),
    ({"train": (TRAIN[0], TRAIN[1], TRAIN[2] + CLASSES)}, ValueError, r"labels must lie in \[0, 5\)"),
    ({"validation": (TRAIN[0], TRAIN[2] + CLASSES)}, ValueError, r"labels must lie in \[0, 5\)"),
    ({"train": (TRAIN[0], TRAIN[1].clone().requires_grad_(), TRAIN[2])}, ValueError, "teacher must not require grad"),
    ({"call": lambda module, x: {"logits": module(x)}}, TypeError, "must return a torch.Tensor of logits, got dict"),
    ({"call": lambda module, x: module(x).detach()}, RuntimeError, "trainable parameters, got a constant"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{m[:30]}" for c, _, m in BAD])
def test_errors(change, error, message):
    good = {"alpha": alphas(TRAIN[2]), "train": TRAIN, "validation": VALIDATION, **SETTINGS}
    change = dict(change)
    student = change.pop("student", lambda: make("mlp", "cpu"))()
    with pytest.raises(error, match=message):
        tgeo.hypergradient(student, **(good | change))
