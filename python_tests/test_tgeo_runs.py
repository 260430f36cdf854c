"""Whole runs of the bilevel step: interrupted, learning, of sequences, in several processes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import BF16, F64, logits
from tgeo_runs import CLASSES, SETTINGS, make, make_ratio, make_student, parameters, train_batch, validation_batch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from kdkernels.methods import tgeo


def train_run(bilevel, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)
        inputs, teacher, labels = train_batch(step)
        bilevel.step((inputs, teacher, labels), lambda step=step: validation_batch(step))
        optimizer.zero_grad()
        bilevel.loss(bilevel.student(inputs), teacher, labels).backward()
        optimizer.step()


def test_a_run_that_is_resumed_is_the_run_that_was_not_interrupted(tmp_path):
    def start():
        torch.manual_seed(0)
        student, ratio = make_student(), make_ratio()
        bilevel = tgeo.BilevelStep(student, ratio, torch.optim.AdamW(ratio.parameters(), 0.01), every=3, **SETTINGS)
        return bilevel, torch.optim.AdamW(student.parameters(), 0.01)

    whole, optimizer = start()
    train_run(whole, optimizer, range(11))
    first, optimizer = start()
    train_run(first, optimizer, range(5))  # between two updates
    states = {"bilevel": first.state_dict(), "student": first.student.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(states, tmp_path / "run.pt")
    resumed, optimizer = start()
    train_run(resumed, optimizer, [50])  # another state to get rid of
    states = torch.load(tmp_path / "run.pt")
    resumed.load_state_dict(states["bilevel"])
    resumed.student.load_state_dict(states["student"])
    optimizer.load_state_dict(states["optimizer"])
    train_run(resumed, optimizer, range(5, 11))
    assert resumed.calls == whole.calls == 11
    for a, b in ((whole.student, resumed.student), (whole.ratio, resumed.ratio)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(whole.ratio.first.weight, start()[0].ratio.first.weight)


@pytest.mark.parametrize("features", ["relations", "distances"])
def test_alpha_falls_where_the_teacher_is_wrong(features):
    """Clusters that a linear student separates, and a teacher that takes every third sample for the next class."""
    torch.manual_seed(3)

    def draw(rows):
        labels = torch.randint(CLASSES, (rows,))
        return 3.0 * torch.eye(CLASSES)[labels] + torch.randn(rows, CLASSES), labels

    inputs, labels = draw(300)
    wrong = torch.arange(300) % 3 == 0
    teacher = 6.0 * F.one_hot(torch.where(wrong, (labels + 1) % CLASSES, labels), CLASSES).float()
    held_out = draw(300)
    student = nn.Linear(CLASSES, CLASSES)
    ratio = tgeo.FusionRatio(CLASSES, 32, features, class_mean=tgeo.class_means(teacher, labels, CLASSES))
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    controller = torch.optim.Adam(ratio.parameters(), 0.02)
    bilevel = tgeo.BilevelStep(student, ratio, controller, inner_lr=0.5, temperature=2.0)

    def alphas():
        with torch.no_grad():
            alpha = ratio(student(inputs), teacher, labels)
        return float(alpha[wrong].mean()), float(alpha[~wrong].mean())

    assert all(0.4 < alpha < 0.6 for alpha in alphas())
    for _ in range(30):
        bilevel.step((inputs, teacher, labels), held_out)
        optimizer.zero_grad()
        bilevel.loss(student(inputs), teacher, labels).backward()
        optimizer.step()
    of_wrong, of_right = alphas()
    assert of_wrong < 0.05 and of_right > 0.25


def test_sequences_with_ignored_tokens_and_half_precision():
    student = lambda: nn.Sequential(nn.Embedding(CLASSES, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))  # noqa: E731
    bilevel = make(student=student)
    bilevel.student.to(BF16)
    tokens = torch.randint(CLASSES, (3, 4), generator=torch.Generator().manual_seed(0))
    labels = tokens.roll(-1, 1).masked_fill(torch.arange(4) == 3, -100)
    teacher = logits(3, 4, CLASSES, dtype=BF16)
    before = parameters(bilevel.ratio)
    assert bilevel.step((tokens, teacher, labels), (tokens, labels))
    assert all(each.isfinite().all() for each in bilevel.ratio.parameters())
    assert not torch.equal(before[0], bilevel.ratio.first.weight)
    logits_now = bilevel.student(tokens)
    assert logits_now.dtype == BF16
    bilevel.loss(logits_now, teacher, labels).backward()
    assert all(each.grad.dtype == BF16 for each in bilevel.student.parameters())


def test_the_inner_rate_follows_a_schedule():
    """The gradient of the controller is, to first order, proportional to it."""
    grads = []
    for rate in (1e-4, 2e-4):
        bilevel = make(dtype=F64)
        bilevel.student.eval()
        bilevel.inner_lr = rate
        bilevel.step(train_batch(dtype=F64), validation_batch(dtype=F64))
        grads.append(bilevel.ratio.first.weight.grad)
    torch.testing.assert_close(grads[1], 2 * grads[0], rtol=1e-2, atol=1e-9)


def run_process(rank, path):
    distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=2)
    bilevel = make(dtype=F64)
    own = copy.deepcopy(bilevel.ratio)
    alone = tgeo.BilevelStep(bilevel.student, own, torch.optim.SGD(own.parameters(), 0.1), **SETTINGS)
    alone.step(train_batch(rank, dtype=F64), validation_batch(rank, dtype=F64))
    shared = DistributedDataParallel(bilevel.ratio)
    together = tgeo.BilevelStep(bilevel.student, shared, torch.optim.SGD(shared.parameters(), 0.1), **SETTINGS)
    for turn in range(2):
        assert together.step(train_batch(rank, dtype=F64), validation_batch(rank, dtype=F64))
        if turn == 0:
            grads = [each.grad.clone() for each in bilevel.ratio.parameters()]
        inputs, teacher, labels = train_batch(rank, dtype=F64)
        together.loss(bilevel.student(inputs), teacher, labels)
    saved = {"alone": [each.grad for each in own.parameters()], "grads": grads, "after": parameters(bilevel.ratio)}
    torch.save(saved, f"{path}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_share_one_controller(tmp_path):
    """Wrapped in DistributedDataParallel: its gradient is the mean over the processes', and its weights stay equal."""
    multiprocessing.spawn(run_process, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for alone, other, mean in zip(one["alone"], two["alone"], one["grads"], strict=True):
        torch.testing.assert_close(mean, (alone + other) / 2)
    assert all(torch.equal(a, b) for a, b in zip(one["after"], two["after"], strict=True))


def test_a_student_in_ddp_is_sent_back(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="pass student.module"):
            make(student=lambda: DistributedDataParallel(make_student()))
    finally:
        distributed.destroy_process_group()
