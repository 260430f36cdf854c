"""The Trainer subclass of the examples: it runs, and what it promises: tokens count alike however they arrive."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from run_examples import ROOT, example, python

import kdkernels as kd

RATE, ALPHA, TEMPERATURE = 0.5, 0.7, 2.0
FORWARD_KL = kd.ForwardKL()
HF = ("transformers", "accelerate")
HF_REASON = "the Trainer example's packages: pip install transformers accelerate"

if not (ROOT / "examples").is_dir():
    pytest.skip("an installed package without its examples/", allow_module_level=True)


@pytest.fixture(scope="module")
def hf():
    """The module of the Trainer example."""
    for package in HF:
        pytest.importorskip(package, reason=HF_REASON)
    return load_hf()


def load_hf():
    spec = importlib.util.spec_from_file_location("hf_trainer", ROOT / "examples" / "hf_trainer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pupils(hf):
    """A student and a teacher whose predictions are peaked, and eight sequences of which 1 to 22 tokens count."""
    torch.manual_seed(0)
    teacher, student = hf.language_model(hidden=32), hf.language_model(hidden=16)
    with torch.no_grad():
        teacher.lm_head.weight *= 50
    data = hf.progressions(8, length=24)
    for index, sample in enumerate(data):
        sample["labels"] = sample["input_ids"].clone()
        sample["labels"][: 23 - 3 * index] = -100
    return student, teacher, data


def trainer_of(hf, kind, folder, student, teacher, data, loss=FORWARD_KL, alpha=ALPHA, **settings):
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    sgd = {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1}
    arguments = hf.TrainingArguments(str(folder), **{**quiet, **sgd, **settings})
    options = {"teacher": teacher, "loss": loss, "alpha": alpha, "temperature": TEMPERATURE}
    return kind(student, arguments, train_dataset=data, eval_dataset=data, **options)


def step(hf, kind, folder, batch, accumulation):
    """What one SGD step does to the weights, as one vector."""
    student, teacher, data = pupils(hf)
    before = torch.nn.utils.parameters_to_vector(student.parameters()).detach().clone()
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = trainer_of(hf, kind, folder, student, teacher, data, **sizes)
    trainer.train()
    assert trainer.state.global_step == 1
    return torch.nn.utils.parameters_to_vector(student.parameters()).detach() - before


def loss_by_hand(student, teacher, data):
    """Eager PyTorch: the mean over all counted tokens of the batch, logits at i against the label at i + 1."""
    tokens, labels = (torch.stack([sample[name] for sample in data]) for name in ("input_ids", "labels"))
    z, labels = student(tokens).logits[:, :-1], labels[:, 1:]
    with torch.no_grad():
        log_p = F.log_softmax(teacher(tokens).logits[:, :-1] / TEMPERATURE, -1)
    soft = F.kl_div(F.log_softmax(z / TEMPERATURE, -1), log_p, log_target=True, reduction="none").sum(-1)
    hard = F.cross_entropy(z.transpose(1, 2), labels, reduction="none")
    return (ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard)[labels != -100].mean()


@pytest.fixture(scope="module")
def wanted(hf):
    """The step of gradient descent on the loss by hand."""
    student, teacher, data = pupils(hf)
    gradients = torch.autograd.grad(loss_by_hand(student, teacher, data), list(student.parameters()))
    return -RATE * torch.cat([gradient.flatten() for gradient in gradients])


def difference(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


SPLITS = pytest.mark.parametrize("batch, accumulation", [(8, 1), (4, 2), (1, 8)])


@SPLITS
def test_accumulated_gradients_are_those_of_one_batch(hf, wanted, tmp_path, batch, accumulation):
    assert difference(step(hf, hf.DistillationTrainer, tmp_path, batch, accumulation), wanted) < 1e-5


def test_a_mean_per_micro_batch_is_told_apart(hf, wanted, tmp_path):
    """The test above would not pass with what trainers used to do: the same in one batch, another step in eight."""

    class MeanOfMeans(hf.DistillationTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs)

    assert difference(step(hf, MeanOfMeans, tmp_path, 8, 1), wanted) < 1e-5
    assert difference(step(hf, MeanOfMeans, tmp_path, 1, 8), wanted) > 0.05


def step_of_a_process(folder: str) -> None:
    """In one of several processes: the step with what each of them was given of the batch; the first keeps it."""
    torch.set_num_threads(1)
    hf = load_hf()
    got = step(hf, hf.DistillationTrainer, folder, 2, 2)
    if os.environ["RANK"] == "0":
        torch.save(got, Path(folder) / "step.pt")
    torch.distributed.destroy_process_group()  # left to the end of the process, its threads can abort it


def test_two_processes_take_the_step_of_one(hf, wanted, tmp_path):
    code = f"import test_hf_trainer; test_hf_trainer.step_of_a_process({str(tmp_path)!r})"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")
    python(tmp_path, *launch, sys.executable, "-c", code)
    assert difference(torch.load(tmp_path / "step.pt"), wanted) < 1e-5


@pytest.mark.parametrize("loss", [kd.ForwardKL(), kd.ReverseKL(), kd.JensenShannon(0.3)], ids=lambda loss: loss.name)
def test_trains_with_any_loss(hf, tmp_path, loss):
    student, teacher, _ = pupils(hf)
    weights = [weight.clone() for weight in teacher.parameters()]
    adam = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 30, "per_device_train_batch_size": 16}
    data = hf.progressions(128, length=16)
    # Without the divergence's share of 1 the cross-entropy alone could go down.
    trainer = trainer_of(hf, hf.DistillationTrainer, tmp_path, student, teacher, data, loss, alpha=1.0, **adam)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    assert not teacher.training and all(map(torch.equal, teacher.parameters(), weights))


def test_evaluation(hf, tmp_path):
    """A mean over the counted tokens also where Trainer does not say how many there are."""
    student, teacher, data = pupils(hf)
    trainer = trainer_of(hf, hf.DistillationTrainer, tmp_path, student, teacher, data, per_device_eval_batch_size=8)
    wanted = loss_by_hand(student.eval(), teacher, data).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    batch = {name: torch.stack([sample[name] for sample in data]) for name in data[0]}
    loss, outputs = trainer.compute_loss(student, batch, return_outputs=True, num_items_in_batch=None)
    assert loss.item() == pytest.approx(wanted, rel=1e-5) and outputs.logits.shape == (8, 24, 128)
    assert set(batch) == {"input_ids", "labels"}, "the caller's batch was changed"


def test_tokens_without_a_label_do_not_count(hf, tmp_path):
    """NaN in the teacher's predictions of them changes neither value nor gradient; elsewhere a change shows."""
    student, teacher, data = pupils(hf)
    trainer = trainer_of(hf, hf.DistillationTrainer, tmp_path, student, teacher, data)
    batch = {name: torch.stack([sample[name] for sample in data]) for name in data[0]}
    logits = teacher(batch["input_ids"]).logits.detach()
    uncounted = F.pad(batch["labels"][:, 1:] == -100, (0, 1), value=True)  # nothing follows the last token

    def evaluated(teacher_logits):
        trainer.teacher = lambda **inputs: SimpleNamespace(logits=teacher_logits)
        loss = trainer.compute_loss(student, batch)
        return loss.item(), torch.autograd.grad(loss, student.lm_head.weight)[0]

    value, gradient = evaluated(logits)
    same, alike = evaluated(logits.masked_fill(uncounted[..., None], torch.nan))
    other, _ = evaluated(torch.where(uncounted[..., None], logits, -logits))
    assert same == value and torch.equal(alike, gradient)
    assert other != pytest.approx(value, rel=1e-2)


def test_trainer_example_runs(hf, tmp_path):
    printed = example(tmp_path, "hf_trainer.py", "--steps", "25")
    before, after = map(float, re.search(r"([\d.]+) before training, ([\d.]+) after", printed).groups())
    assert after < 0.9 * before
