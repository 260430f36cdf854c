"""online_distillation: kd.distillation with the right teacher's logits, in both modes, and with losses of one's own."""

import pytest
import torch
import torch.nn.functional as F
from cases import F64
from conftest import DEVICES
from online_teachers import CLASSES, STEPS, batch, copies, filled, network, same
from torch import nn

import kdkernels as kd
from kdkernels.methods.online import SideBySide, TeacherTrajectory, logit_mse, online_distillation


class Holder:
    """Anything with .at(progress)."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def at(self, progress):
        self.asked.append(progress)
        return self.model


def both_modes(tmp_path, device="cpu"):
    """Teachers, each with the network whose logits it must give at progress 0.3."""
    trajectory = filled(tmp_path, model=network(99).to(device))
    beside = network(5).to(device)
    pair = SideBySide(beside, torch.optim.SGD(beside.parameters(), 0.1))
    x, labels = batch()
    pair.step(x.to(device), labels.to(device))
    return [(trajectory, network(400).to(device)), (pair, beside)]


def student_logits(x, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(x.shape[-1], CLASSES).to(x.device)(x).detach().to(dtype).requires_grad_()


@pytest.fixture(autouse=True)
def own_randomness():
    with torch.random.fork_rng():
        yield


MASK = torch.arange(8) % 3 != 0
KEYWORDS = {
    "nothing": {},
    "alpha and temperature": {"alpha": 0.3, "temperature": 2.0},
    "alpha of each row": {"alpha": torch.linspace(0, 1, 8)},
    "mask": {"mask": MASK},
    "normalizer": {"normalizer": 64},
    "sum": {"reduction": "sum"},
    "rows": {"reduction": "none"},
    "weight": {"weight": torch.arange(8.0)},
    "without T^2": {"tau_squared": False},
    "ignored": {"ignore_index": 3},
    "vocabulary": {"vocab_size": CLASSES},
}


def on(device, options):
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in options.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keywords", KEYWORDS)
@pytest.mark.parametrize("loss", [None, kd.JensenShannon(0.3)], ids=["default", "js"])
def test_is_distillation_from_the_teacher_of_that_time(tmp_path, device, keywords, loss):
    """Value and gradient to the bit."""
    x, labels = (each.to(device) for each in batch(1))
    options, given = on(device, KEYWORDS[keywords]), () if loss is None else (loss,)
    for teacher, wanted_teacher in both_modes(tmp_path, device):
        results = []
        for online in (True, False):
            student = student_logits(x)
            if online:
                value = online_distillation(student, x, labels, teacher, 0.3, *given, **options)
            else:
                with torch.no_grad():
                    target = wanted_teacher.eval()(x)
                defaults = {"alpha": 0.9, "temperature": 4.0}
                value = kd.distillation(student, target, labels, loss or kd.ForwardKL(), **defaults | options)
            value.sum().backward()
            results.append((value.detach(), student.grad))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
        assert bool((results[0][1] != 0).any())


@pytest.mark.parametrize("loss", [kd.ForwardKL(), logit_mse], ids=["KL", "callable"])
def test_the_teacher_is_asked_and_left_alone(loss):
    """In eval mode and without grad; then each part of it in the mode that it was in."""
    model, (x, labels) = network(1).train(), batch()
    model[3].eval()
    seen = []
    model.register_forward_hook(
        lambda module, given, result: seen.append((torch.is_grad_enabled(), result, [m.training for m in m_all]))
    )
    m_all, before = list(model.modules()), copies(model)
    modes, holder = [module.training for module in model.modules()], Holder(model)
    online_distillation(student_logits(x), x, labels, holder, 0.625, loss).backward()
    assert holder.asked == [0.625] and len(seen) == 1
    grad_enabled, logits, asked_in = seen[0]
    assert not grad_enabled and not logits.requires_grad and not any(asked_in)
    assert same(model, before) and [module.training for module in model.modules()] == modes
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_where_the_teacher_fails():
    class Fails(nn.Linear):
        def forward(self, x):
            raise ArithmeticError

    model, (x, labels) = nn.Sequential(nn.Dropout(), Fails(6, CLASSES)).train(), batch()
    model[0].eval()
    with pytest.raises(ArithmeticError):
        online_distillation(student_logits(x), x, labels, Holder(model), 0.5)
    assert [module.training for module in model.modules()] == [True, False, True]


def test_a_teacher_beside_the_student_goes_on_training(tmp_path):
    (_, _), (pair, model) = both_modes(tmp_path)
    x, labels = batch()
    online_distillation(student_logits(x), x, labels, pair, 0.2).backward()
    assert all(each.requires_grad for each in model.parameters())
    before = copies(model)
    pair.step(x, labels)
    assert not same(model, before)


def cubed(student, teacher):
    return (student - teacher).abs().pow(3).sum(-1)


@pytest.mark.parametrize("loss", [logit_mse, cubed])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("options", [{}, {"reduction": "mean"}])
def test_a_loss_of_one_s_own(loss, alpha, options):
    """alpha times the mean of its rows and the rest of cross-entropy, whatever the temperature; in float64."""
    model, (x, labels) = network(1).double().eval(), batch()
    x, results = x.double(), []
    for by_hand in (True, False):
        student = student_logits(x.float(), F64)
        if by_hand:
            value = alpha * loss(student, model(x).detach()).mean() + (1 - alpha) * F.cross_entropy(student, labels)
        else:
            value = online_distillation(student, x, labels, Holder(model), 0.5, loss, alpha=alpha, **options)
        value.backward()
        results.append((value.detach(), student.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)
    assert results[1][0].shape == ()


def test_logit_mse():
    student, teacher = (torch.randn(2, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    student.requires_grad_()
    got = logit_mse(student, teacher)
    values = got.detach()
    assert got.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            wanted = sum(float(student.detach()[i, j, c] - teacher[i, j, c]) ** 2 for c in range(5)) / 5
            assert float(values[i, j]) == pytest.approx(wanted, rel=1e-13)
    (gradient,) = torch.autograd.grad(got.sum(), student)
    torch.testing.assert_close(gradient, 2 / 5 * (student - teacher).detach(), rtol=1e-13, atol=1e-15)
    assert logit_mse(student[0, 0], teacher[0, 0]).shape == ()
    for other in (teacher[..., :4], teacher[:1], teacher[..., :1]):
        with pytest.raises(ValueError, match=r"teacher must have the shape of student \(2, 3, 5\)"):
            logit_mse(student, other)


def train(teacher_loss, turns=8):
    """A student with dropout and momentum; what its loss is, comes from the argument."""
    student = network(3).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    for turn in range(turns):
        x, labels = batch(turn)
        torch.manual_seed(turn)
        optimizer.zero_grad()
        teacher_loss(student(x), x, labels, (turn + 1) / turns).backward()
        optimizer.step()
    return student


@pytest.mark.parametrize("loss", [kd.ForwardKL(), kd.ReverseKL()])
def test_a_constant_teacher_is_offline_distillation(tmp_path, loss):
    """Four checkpoints of one network: the student's weights are those of the offline run, to the bit."""
    fixed, trajectory = network(1).eval(), TeacherTrajectory(tmp_path / "constant", network(99))
    for step in STEPS:
        trajectory.record(step, fixed)

    def offline(student, x, labels, progress):
        with torch.no_grad():
            target = fixed(x)
        return kd.distillation(student, target, labels, loss, alpha=0.9, temperature=4.0)

    online = train(lambda student, x, labels, now: online_distillation(student, x, labels, trajectory, now, loss))
    assert same(online, train(offline)) and not same(online, network(3))
    growing = filled(tmp_path / "growing")
    other = train(lambda student, x, labels, now: online_distillation(student, x, labels, growing, now, loss))
    assert not same(other, online)
