"""PTLoss in a plain training loop: coefficients chosen on held-out data, then a distillation like any other.

    pip install scikit-learn tqdm
    python examples/digits_ptloss.py

A teacher that has learnt scikit-learn's digits from labels of which two fifths are random is right more often than
it is sure. The search finds coefficients that stand for a better teacher, by 200 clean images that nothing trains on.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import kdkernels as kd
from kdkernels.methods import pt


def network(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def fit(name, model, images, loss_of, epochs, lr):
    """Train on ``loss_of(logits, rows)``, where rows says which of the images the batch holds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for _ in tqdm(range(epochs), desc=name):
        for rows in torch.randperm(len(images)).split(32):
            loss = loss_of(model(images[rows]), rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def noisy_digits():
    """Pairs (images, labels): to train on, with two fifths of the labels random, to choose by, and to test on."""
    pixels, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits))
    images, labels = (data[order].split([900, 200, 697]) for data in (pixels.float() / 16, digits.long()))
    noisy = torch.where(torch.rand(900) < 0.4, torch.randint(10, (900,)), labels[0])
    return (images[0], noisy), (images[1], labels[1]), (images[2], labels[2])


def accuracy(model, images, labels):
    return 100 * (model(images).argmax(-1) == labels).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of each student")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    torch.manual_seed(options.seed)
    compare(options.epochs, options.seed)


def compare(epochs, seed):
    (images, labels), (held_out, held_out_labels), test = noisy_digits()

    def hard(logits, rows):
        return F.cross_entropy(logits, labels[rows])

    def distilled_by(loss):
        return lambda logits, rows: kd.distillation(logits, teacher_logits[rows], labels[rows], loss, alpha=0.9)

    teacher = fit("teacher", network(64), images, hard, epochs=20, lr=3e-3)
    with torch.no_grad():
        teacher_logits, held_out_logits = teacher(images), teacher(held_out)

    search = pt.search_coefficients(held_out_logits, held_out_labels)
    perturbed = kd.Perturbed(search.coefficients)

    models = {"teacher": teacher}
    losses = {"student alone": hard, "KD": distilled_by(kd.ForwardKL()), "PTLoss": distilled_by(perturbed)}
    for name, loss_of in losses.items():
        torch.manual_seed(seed)  # the same first weights and batches for all
        models[name] = fit(name, network(16), images, loss_of, epochs, lr=1e-2)

    print(f"Q of the teacher {search.vanilla:.3f}, of its proxy {search.quality:.3f}", end=", ")
    print("coefficients", " ".join(f"{value:.2f}" for value in search.coefficients))
    for name, model in models.items():
        print(f"{name:<13} {accuracy(model, *test):5.1f} % of the test images")


if __name__ == "__main__":
    main()
