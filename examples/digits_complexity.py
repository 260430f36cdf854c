"""Which supervision is the simplest for a student, before it has learnt anything from it?

    pip install scikit-learn tqdm
    python examples/digits_complexity.py

A small and a big teacher learn scikit-learn's digits. For a student that has learnt nothing yet, and again for the one
that the big teacher has taught, its empirical tangent kernel says how complex each teacher is for it, how complex that
teacher softened at T = 4, and how complex the labels and random labels are. The softened teacher's complexity is
divided by its own length too: softer predictions are nearer to each other, which alone makes them simpler.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import kdkernels as kd
from kdkernels.methods import complexity

JITTER = 1e-6  # the same for every kernel, so that their complexities may be compared


def network(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def digits():
    """Images and labels, to train on and to test on."""
    pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    images, labels = (data[order].split([1000, 797]) for data in (pixels.float() / 16, labels.long()))
    return tuple(zip(images, labels, strict=True))


def train(name, model, images, loss_of, epochs):
    """Any loss of the logits of a batch and the rows that it holds."""
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in tqdm(range(epochs), desc=name):
        for rows in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            loss_of(model(images[rows]), rows).backward()
            optimizer.step()
    return model


def accuracy(model, images, labels):
    return 100 * (model(images).argmax(-1) == labels).float().mean().item()


def measure(title, student, images, targets):
    """Print how complex each (targets, T) is for the student's present kernel."""
    gram = complexity.empirical_ntk(student, images)
    with torch.no_grad():
        logits = student(images)
    residuals = {name: complexity.residual(logits, target, temperature=T) for name, (target, T) in targets.items()}
    stacked = torch.stack(list(residuals.values()))
    found = complexity.supervision_complexity(gram, stacked, jitter=JITTER)
    alignment = complexity.kernel_alignment(gram, stacked)
    print(f"\n{title} (condition of the kernel {found.condition:.1e})")
    for name, value, aligned, each in zip(residuals, found.value, alignment, residuals.values(), strict=True):
        length = each.norm() / len(images)
        print(f"{name:<20} complexity {value:7.3f}, {value / length:6.1f} x its length, alignment {aligned:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of each network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    torch.manual_seed(options.seed)
    compare(options.epochs)


def compare(epochs):
    (images, labels), test = digits()
    student, small, big = network(128), network(8), network(256)
    for name, model in {"small teacher": small, "big teacher": big}.items():
        train(name, model, images, lambda z, i: F.cross_entropy(z, labels[i]), epochs)
        print(f"{name:<13} {accuracy(model, *test):5.1f} % of the test images")

    probe = images[:50]  # of the training images; the kernel is (500, 500)
    with torch.no_grad():
        of_small, of_big = small(probe), big(probe)
        taught = big(images)
    targets = {
        "big teacher, T = 4": (of_big, 4.0),
        "big teacher": (of_big, 1.0),
        "small teacher": (of_small, 1.0),
        "labels": (labels[:50], 1.0),
        "random labels": (torch.randint(10, (50,)), 1.0),
    }
    measure("for a new student", student, probe, targets)
    train("student", student, images, lambda z, i: kd.divergence(z, taught[i]), epochs)
    measure("for the student of the big teacher", student, probe, targets)
    print(f"\n{'student':<13} {accuracy(student, *test):5.1f} % of the test images")


if __name__ == "__main__":
    main()
