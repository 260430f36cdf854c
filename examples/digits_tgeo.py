"""TGeo-KD in a plain training loop: beside the student, a controller learns how far to trust the teacher per sample.

    pip install scikit-learn tqdm
    python examples/digits_tgeo.py

The teacher is a poor guide in places: it knows scikit-learn's digits 0 to 7 well and has never seen an 8 or a 9. The
labels are a poor guide too: two fifths of them are random. 200 clean images, which no student trains on, show the
controller whom to trust where.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import kdkernels as kd
from kdkernels.methods import tgeo

LR = 1e-2


def network(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def noisy_digits():
    """Pairs (images, labels): to train on, the controller's and to test on. And labels with two fifths random."""
    pixels, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits))
    images, labels = (data[order].split([900, 200, 697]) for data in (pixels.float() / 16, digits.long()))
    noisy = torch.where(torch.rand(900) < 0.4, torch.randint(10, (900,)), labels[0])
    return *zip(images, labels, strict=True), noisy


def accuracy(model, images, labels):
    return 100 * (model(images).argmax(-1) == labels).float().mean().item()


def batches(name, count, epochs):
    for _ in tqdm(range(epochs), desc=name):
        yield from torch.randperm(count).split(32)


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(name, model, images, loss_of, epochs):
    """Any loss of the logits of a batch and the rows that it holds."""
    optimizer = torch.optim.AdamW(model.parameters(), LR)
    for rows in batches(name, len(images), epochs):
        update(optimizer, loss_of(model(images[rows]), rows))
    return model


def train_tgeo(student, images, teacher_logits, labels, held_out, epochs):
    """TGeo-KD: the student, and the fusion ratio of every sample after the last epoch."""
    ratio = tgeo.FusionRatio(10, hidden=32, class_mean=tgeo.class_means(teacher_logits, labels, 10))
    controller = torch.optim.Adam(ratio.parameters(), LR)
    bilevel = tgeo.BilevelStep(student, ratio, controller, inner_lr=0.1, temperature=1.0)
    optimizer = torch.optim.AdamW(student.parameters(), LR)

    def validation():
        rows = torch.randint(len(held_out[0]), (100,))
        return tuple(data[rows] for data in held_out)

    for rows in batches("TGeo-KD", len(images), epochs):
        bilevel.step((images[rows], teacher_logits[rows], labels[rows]), validation)
        logits = student(images[rows])
        update(optimizer, bilevel.loss(logits, teacher_logits[rows], labels[rows]))
    with torch.no_grad():
        return student, ratio(student(images), teacher_logits, labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of each network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    torch.manual_seed(options.seed)
    compare(options.epochs, options.seed)


def compare(epochs, seed):
    (images, clean), held_out, test, labels = noisy_digits()
    seen = clean < 8
    teacher = train("teacher", network(64), images[seen], lambda z, i: F.cross_entropy(z, clean[seen][i]), epochs)
    with torch.no_grad():
        teacher_logits = teacher(images)

    def hard(logits, rows):
        return F.cross_entropy(logits, labels[rows])

    def distilled(logits, rows):
        return kd.distillation(logits, teacher_logits[rows], labels[rows], alpha=0.5)

    models = {"teacher": teacher}
    for name, loss_of in {"student alone": hard, "KD": distilled}.items():
        torch.manual_seed(seed)  # the same first weights for all
        models[name] = train(name, network(16), images, loss_of, epochs)
    torch.manual_seed(seed)
    models["TGeo-KD"], alpha = train_tgeo(network(16), images, teacher_logits, labels, held_out, epochs)

    for name, model in models.items():
        print(f"{name:<13} {accuracy(model, *test):5.1f} % of the test images")
    right = teacher_logits.argmax(-1) == clean
    for word, those in (("right", right), ("wrong", ~right)):
        print(f"mean alpha {alpha[those].mean():.2f} on the {those.sum()} samples that the teacher gets {word}")


if __name__ == "__main__":
    main()
