"""Auxiliary-variable KD in a plain training loop: the student learns what to say, and whom a sample resembles.

    pip install scikit-learn tqdm
    python examples/digits_auxiliary.py

A teacher knows scikit-learn's digits well; the student sees 400 of them, the teacher's logits and its features. The
loss keeps a bank of those features. A class can then be told without the student's last layer too: its feature
retrieves the teacher's predictions of the samples that it resembles.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import kdkernels as kd
from kdkernels.methods import auxiliary

LABELLED = 400


def network(hidden):
    """All but the last layer gives the features."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def digits():
    """Pairs (images, labels), to train on and to test on."""
    pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    parts = (data[order].split([1100, 697]) for data in (pixels.float() / 16, labels.long()))
    return tuple(zip(*parts, strict=True))


def accuracy(logits, labels):
    return 100 * (logits.argmax(-1) == labels).float().mean().item()


def fit(name, model, images, loss_of, epochs, extra=()):
    """Train on ``loss_of(logits, features, rows)``, where rows says which of the images the batch holds."""
    optimizer = torch.optim.AdamW([*model.parameters(), *extra], lr=1e-2)
    for _ in tqdm(range(epochs), desc=name):
        for rows in torch.randperm(len(images)).split(16):
            features = model[:-1](images[rows])
            loss = loss_of(model[-1](features), features, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of each student")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    torch.manual_seed(options.seed)
    compare(options.epochs, options.seed)


def compare(epochs, seed):
    (images, labels), (test, answers) = digits()
    teacher = fit("teacher", network(64), images, lambda z, h, i: F.cross_entropy(z, labels[i]), epochs=10)
    images, labels = images[:LABELLED], labels[:LABELLED]
    with torch.no_grad():
        teacher_features = teacher[:-1](images)
        teacher_logits = teacher[-1](teacher_features)

    torch.manual_seed(seed)
    criterion = auxiliary.AuxiliaryKD(16, 64, 10, capacity=LABELLED, mixture=0.2, temperature=4.0)

    def hard(logits, features, rows):
        return F.cross_entropy(logits, labels[rows])

    def distilled(logits, features, rows):
        return kd.distillation(logits, teacher_logits[rows], labels[rows], alpha=0.9, temperature=4.0)

    def with_bank(logits, features, rows):
        # The rows are the samples' numbers: nobody is to find their own entry in the bank.
        soft = criterion(logits, teacher_logits[rows], features, teacher_features[rows], rows)
        return 0.9 * soft + 0.1 * F.cross_entropy(logits, labels[rows])

    models = {"teacher": teacher}
    for name, loss_of in {"student alone": hard, "KD": distilled, "auxiliary KD": with_bank}.items():
        torch.manual_seed(seed)  # the same first weights and batches for all
        extra = criterion.parameters() if loss_of is with_bank else ()
        models[name] = fit(name, network(16), images, loss_of, epochs, extra)

    for name, model in models.items():
        print(f"{name:<13} {accuracy(model(test), answers):5.1f} % of the test images")
    retrieved = criterion.bank.posterior(criterion.project(models["auxiliary KD"][:-1](test)), criterion.kappa)
    print(f"{'its bank':<13} {accuracy(retrieved, answers):5.1f} % of the test images")


if __name__ == "__main__":
    main()
