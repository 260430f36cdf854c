"""Online distillation in a plain training loop: the student learns from the teacher of its own moment.

    pip install scikit-learn tqdm safetensors
    python examples/digits_online.py

Twice: the teacher's checkpoints are recorded while it trains on scikit-learn's digits and replayed to a student later;
and teacher and student train side by side. A student of KD learns from the teacher's last state throughout. Two fifths
of the labels are random, for everyone: the teacher learns digits first and noise later.
"""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import kdkernels as kd
from kdkernels.methods import online

SOFT = {"alpha": 0.9, "temperature": 2.0}
LR = 3e-3


def network(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))


def noisy_digits():
    """Images and labels to train on, two fifths of the labels random, and to test on, clean."""
    pixels, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits))
    images, labels = (data[order].split([1000, 797]) for data in (pixels.float() / 16, digits.long()))
    noisy = torch.where(torch.rand(1000) < 0.4, torch.randint(10, (1000,)), labels[0])
    return (images[0], noisy), (images[1], labels[1])


def accuracy(model, images, labels):
    return 100 * (model(images).argmax(-1) == labels).float().mean().item()


def train(name, model, data, loss_of, epochs, after=None):
    """On ``loss_of(logits, images, labels, progress)``; ``after(step)`` is called behind every epoch."""
    images, labels = data
    optimizer = torch.optim.AdamW(model.parameters(), LR)
    batches = -(-len(images) // 32)
    for epoch in tqdm(range(epochs), desc=name):
        for i, rows in enumerate(torch.randperm(len(images)).split(32), 1):
            progress = (epoch * batches + i) / (epochs * batches)
            loss = loss_of(model(images[rows]), images[rows], labels[rows], progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if after is not None:
            after((epoch + 1) * batches)
    return model


def hard(logits, images, labels, progress):
    return F.cross_entropy(logits, labels)


def distilled_by(teacher):
    """From the teacher as it is."""

    def loss_of(logits, images, labels, progress):
        with torch.no_grad():
            teacher_logits = teacher(images)
        return kd.distillation(logits, teacher_logits, labels, **SOFT)

    return loss_of


def replayed_from(trajectory):
    """From the teacher after the same share of its own training."""

    def loss_of(logits, images, labels, progress):
        return online.online_distillation(logits, images, labels, trajectory, progress, **SOFT)

    return loss_of


def beside(both):
    """From a teacher that makes a step on the same batch first."""

    def loss_of(logits, images, labels, progress):
        both.step(images, labels)
        return online.online_distillation(logits, images, labels, both, progress, **SOFT)

    return loss_of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of each network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        compare(options.epochs, options.seed, folder)


def compare(epochs, seed, folder):
    data, test = noisy_digits()
    teacher = network(128)
    recorder = online.TeacherTrajectory(folder)
    train("teacher", teacher, data, hard, epochs, after=lambda step: recorder.record(step, teacher))

    trajectory = online.TeacherTrajectory(folder, network(128))
    print(f"recorded {len(trajectory)} checkpoints", end=": ")
    print(", ".join(f"step {step} {accuracy(trajectory.load(step), *test):.1f} %" for step in trajectory.steps[::5]))
    beginner = network(128)
    both = online.SideBySide(beginner, torch.optim.AdamW(beginner.parameters(), LR))

    models = {"teacher": teacher}
    losses = {
        "student alone": hard,
        "KD": distilled_by(teacher),
        "online KD": replayed_from(trajectory),
        "side by side": beside(both),
    }
    for name, loss_of in losses.items():
        torch.manual_seed(seed)  # the same first weights and batches for all
        models[name] = train(name, network(16), data, loss_of, epochs)
    for name, model in models.items():
        print(f"{name:<13} {accuracy(model, *test):5.1f} % of the test images")


if __name__ == "__main__":
    main()
