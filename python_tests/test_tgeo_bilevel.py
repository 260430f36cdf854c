"""Training the controller beside the student: when, on what, with which gradient and which loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import F64, logits
from tgeo_runs import (
    CLASSES,
    ROWS,
    SETTINGS,
    TEMPERATURE,
    Given,
    make,
    make_ratio,
    make_student,
    parameters,
    train_batch,
    validation_batch,
)
from tgeo_students import EVERY_DEVICE
from torch.func import functional_call

import kdkernels as kd
from kdkernels.methods import tgeo


def test_updates_on_each_kth_call_and_asks_for_validation_then_only():
    bilevel, asked = make(every=3), []

    def validation():
        asked.append(bilevel.calls)
        return validation_batch()

    for call in range(1, 8):
        before = parameters(bilevel.ratio)
        assert bilevel.step(train_batch(call), validation) is (call % 3 == 0)
        changed = [not torch.equal(a, b) for a, b in zip(before, parameters(bilevel.ratio), strict=True)]
        assert any(changed) == (call % 3 == 0)
    assert asked == [3, 6]


def test_what_is_not_due_costs_nothing():
    """Not even a look at the batch; what is no validation batch at all is found at once."""
    assert make(every=2).step(None, lambda: 1 / 0) is False
    assert make(every=2).step(None, (None, None)) is False
    bilevel = make(every=2)
    for wrong in (None, torch.ones(3), (torch.ones(3),)):
        with pytest.raises(ValueError, match=r"validation must be a tuple \(inputs, labels\), got"):
            bilevel.step(None, wrong)
    assert bilevel.calls == 0


@EVERY_DEVICE
@pytest.mark.parametrize("features", ["relations", "distances"])
def test_the_gradient_of_the_controller(device, features):
    """Of each of its parameters: backward through alpha, the loss, the step and the validation loss, unrolled."""
    bilevel = make(device, F64, ratio=lambda: make_ratio(features=features))
    bilevel.student.eval()
    train, (outer, outer_labels) = train_batch(0, device, F64), validation_batch(0, device, F64)
    inputs, teacher, labels = train
    before = copy.deepcopy(bilevel.ratio)
    bilevel.step(train, (outer, outer_labels))
    weights = dict(bilevel.student.named_parameters())
    z = bilevel.student(inputs)
    log_q, log_p = ((x / TEMPERATURE).log_softmax(-1) for x in (z, teacher))
    soft = TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    alpha = before(z, teacher, labels)
    value = (alpha * soft + (1 - alpha) * F.cross_entropy(z, labels, reduction="none")).mean()
    gradient = torch.autograd.grad(value, list(weights.values()), create_graph=True)
    stepped = {name: each - 0.3 * g for (name, each), g in zip(weights.items(), gradient, strict=True)}
    F.cross_entropy(functional_call(bilevel.student, stepped, (outer,)), outer_labels).backward()
    for got, wanted in zip(bilevel.ratio.parameters(), before.parameters(), strict=True):
        assert wanted.grad.abs().max() > 1e-8
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-7, atol=1e-13)
        torch.testing.assert_close(got, wanted - 0.1 * wanted.grad)


@EVERY_DEVICE
def test_the_student_is_left_alone(device):
    bilevel = make(device)
    student = bilevel.student
    student(train_batch(device=device)[0]).sum().backward()
    grads, state = [each.grad.clone() for each in student.parameters()], copy.deepcopy(student.state_dict())
    for training in (True, False):
        student.train(training)
        torch.manual_seed(5)
        wanted = torch.rand(3, device=device)
        torch.manual_seed(5)
        assert bilevel.step(train_batch(1, device), validation_batch(1, device))
        assert torch.equal(torch.rand(3, device=device), wanted)
        assert all(each.training is training for each in student.modules())
        assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
        assert all(torch.equal(each.grad, grad) for each, grad in zip(student.parameters(), grads, strict=True))


@EVERY_DEVICE
def test_the_controller_sees_the_logits_that_the_student_gives_next(device):
    seen = []

    class Recording(Given):
        def forward(self, student, teacher, labels):
            seen.append(student)
            return super().forward(student, teacher, labels)

    bilevel = make(device, ratio=lambda: Recording(0.5))
    train = train_batch(device=device)
    bilevel.step(train, validation_batch(device=device))
    student = bilevel.student(train[0])
    bilevel.loss(student, *train[1:])
    assert torch.equal(seen[0], student) and torch.equal(seen[1], student)
    assert not any(each.requires_grad for each in seen)


@EVERY_DEVICE
@pytest.mark.parametrize("loss", [kd.ForwardKL(), kd.JensenShannon(beta=0.2)], ids=["forward_kl", "jensen_shannon"])
def test_the_loss_is_the_distillation_with_the_present_alpha(device, loss):
    bilevel = make(device, loss=loss)
    inputs, teacher, labels = train_batch(device=device)
    labels[2] = -100
    student = bilevel.student(inputs)
    value = bilevel.loss(student, teacher, labels)
    alpha = bilevel.ratio(student, teacher, labels).detach()
    wanted = kd.distillation(student, teacher, labels, loss, alpha=alpha, temperature=TEMPERATURE)
    assert torch.equal(value, wanted)
    value.backward()
    assert all(each.grad is None for each in bilevel.ratio.parameters())
    assert all(each.grad is not None for each in bilevel.student.parameters())


def test_alpha_one_is_the_divergence_and_alpha_zero_the_cross_entropy():
    inputs, teacher, labels = train_batch()
    student = logits(ROWS, CLASSES, seed=4)
    got = [make(ratio=lambda a=a: Given(a)).loss(student, teacher, labels) for a in (1.0, 0.0)]
    assert torch.equal(got[0], kd.distillation(student, teacher, labels, alpha=1.0, temperature=TEMPERATURE))
    assert torch.equal(got[1], kd.distillation(student, teacher, labels, alpha=0.0, temperature=TEMPERATURE))
    scaled = [(x / TEMPERATURE).log_softmax(-1) for x in (student, teacher)]
    kl = TEMPERATURE**2 * F.kl_div(*scaled, log_target=True, reduction="batchmean")
    torch.testing.assert_close(got, [kl, F.cross_entropy(student, labels)])


def test_a_teacher_that_the_student_agrees_with_teaches_nothing():
    student = logits(ROWS, CLASSES, seed=4).requires_grad_()
    value = make(ratio=lambda: Given(1.0)).loss(student, student.detach(), train_batch()[2])
    (gradient,) = torch.autograd.grad(value, student)
    assert abs(float(value.detach())) < 1e-6 and float(gradient.abs().max()) < 1e-7


@pytest.mark.parametrize("shape", [(ROWS, 1), (1, ROWS), (1,), (), (ROWS, CLASSES)])
def test_a_controller_with_anything_but_one_alpha_per_row(shape):
    bilevel = make(ratio=lambda: Given(0.5, shape))
    inputs, teacher, labels = train_batch()
    before = parameters(bilevel.ratio)
    with pytest.raises(ValueError, match=r"alpha must have one value per row, shape \(8,\), got \("):
        bilevel.step((inputs, teacher, labels), validation_batch())
    with pytest.raises(ValueError, match=r"alpha must have one value per row, shape \(8,\), got \("):
        bilevel.loss(bilevel.student(inputs), teacher, labels)
    assert torch.equal(before[0], bilevel.ratio.value)


def test_a_controller_that_cannot_learn():
    class Detached(Given):
        def forward(self, *arguments):
            return super().forward(*arguments).detach()

    class NoTensor(Given):
        def forward(self, *arguments):
            return 0.5

    with pytest.raises(RuntimeError, match="ratio must return an alpha that depends on its trainable parameters"):
        make(ratio=lambda: Detached(0.5)).step(train_batch(), validation_batch())
    with pytest.raises(TypeError, match="alpha must be a torch.Tensor with one value per row, got float"):
        make(ratio=lambda: NoTensor(0.5)).step(train_batch(), validation_batch())


STUDENT, RATIO = make_student(), make_ratio()

OPTIMIZER = torch.optim.SGD(RATIO.parameters(), 0.1)

BOTH = torch.optim.SGD([*RATIO.parameters(), STUDENT[0].weight], 0.1)

BAD = [
    ({"every": 0}, ValueError, "every must be at least 1, got 0"),
    ({"every": 2.0}, TypeError, "every must be an int, got float"),
    ({"inner_lr": -0.1}, ValueError, "inner_lr must be positive and finite, got -0.1"),
    ({"inner_lr": torch.tensor(0.1)}, TypeError, "inner_lr must be a number, got Tensor"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"loss": "kl"}, TypeError, "loss must be a kdkernels loss"),
    ({"student": None}, TypeError, "student must be a torch.nn.Module, got NoneType"),
    ({"ratio": torch.sigmoid}, TypeError, "ratio must be a torch.nn.Module, got builtin_function_or_method"),
    ({"optimizer": RATIO}, TypeError, "optimizer must be a torch.optim.Optimizer, got FusionRatio"),
    ({"optimizer": BOTH}, ValueError, "optimizer must hold parameters of ratio only, got 1 that are not ratio's"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_errors(change, error, message):
    good = {"student": STUDENT, "ratio": RATIO, "optimizer": OPTIMIZER, **SETTINGS}
    with pytest.raises(error, match=message):
        tgeo.BilevelStep(**(good | change))
