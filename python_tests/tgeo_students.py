"""Students of every kind that the hypergradient has to get right, and what it is: an unrolled step in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from cases import F64, logits
from conftest import DEVICES
from oracle import TERMS, parameter
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import kdkernels as kd

CLASSES, ROWS = 5, 6

SETTINGS = {"inner_lr": 0.3, "temperature": 4.0}

EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES)


class Tied(nn.Module):
    """Two layers of one weight, a frozen layer, a frozen bias, and a parameter that the batch never reaches."""

    def __init__(self):
        super().__init__()
        self.inside, self.again, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head, self.unused = nn.Linear(8, CLASSES), nn.Linear(2, 2)
        self.again.weight = self.inside.weight
        self.frozen.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.again(self.frozen(torch.tanh(self.inside(x))))))


class Sequence(nn.Module):
    """Tokens (B, T) to logits (B, T, V) through causal attention, without and with dropout in the fused operation."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(CLASSES, 8), nn.Linear(8, 24)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        h = self.embedding(tokens)
        for dropout in (0.0, 0.2):
            q, k, v = self.mix(h).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            h = h + mixed.transpose(1, 2).flatten(2)
        return self.head(self.norm(h))


class Checkpointed(nn.Module):
    """Its activations are computed again in backward, when whoever put weights in may have taken them out."""

    def __init__(self, on):
        super().__init__()
        self.body, self.head, self.on = nn.Sequential(nn.Linear(8, 16), nn.Tanh()), nn.Linear(16, CLASSES), on

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False) if self.on else self.body(x))


class Average(nn.Module):
    """A buffer that is written with values that depend on the weights, and then read."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, x):
        z = self.linear(x)
        self.mean.mul_(0.9).add_(0.1 * z.mean(0))
        return z - self.mean


def flat(*layers):
    return lambda: nn.Sequential(nn.Flatten(), *(layer() for layer in layers))


STUDENTS = {
    "mlp": flat(lambda: nn.Linear(8, 16), nn.ReLU, lambda: nn.Linear(16, CLASSES)),
    "cnn with batch norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(4, CLASSES)
    ),
    "dropout": flat(lambda: nn.Linear(8, 64), nn.Dropout, nn.Tanh, lambda: nn.Linear(64, CLASSES)),
    "tied and frozen": Tied,
    "buffer": Average,
    "checkpointed": lambda: Checkpointed(True),
    "sequence": Sequence,
}  # fmt: skip


def make(name, device, dtype=F64):
    torch.manual_seed(0)
    return STUDENTS[name]().to(device, dtype).train()


def batches(name, device, dtype=F64):
    """(train, validation), with ignored labels where there is a time axis."""
    shape = (3, 4) if name == "sequence" else (ROWS,)
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randint(CLASSES, shape, generator=generator).to(device)
        if name == "sequence"
        else logits(*shape, 8, dtype=dtype, device=device, seed=seed)
        for seed in (3, 4)
    ]
    labels = [torch.randint(CLASSES, shape, generator=generator) for _ in range(2)]
    if name == "sequence":
        labels[0][0, 2:] = labels[1][2, :1] = -100
    labels = [each.to(device) for each in labels]
    teacher = logits(*shape, CLASSES, dtype=dtype, device=device, seed=5)
    return (inputs[0], teacher, labels[0]), (inputs[1], labels[1])


def alphas(labels, dtype=F64):
    return torch.linspace(0.1, 0.9, labels.numel(), dtype=dtype, device=labels.device).view(labels.shape)


def unrolled(student, alpha, train, validation, *, inner_lr, temperature, loss=kd.ForwardKL()):  # noqa: B008
    """dJ_val/dalpha by PyTorch alone, with a graph through the step; draws its random numbers in the same order."""
    alpha = alpha.detach().requires_grad_()
    weights = {name: each.detach().requires_grad_() for name, each in student.named_parameters() if each.requires_grad}

    def forward(weights, inputs):
        buffers = {name: each.clone() for name, each in student.named_buffers()}
        return functional_call(student, {**weights, **buffers}, (inputs,))

    def cross_entropy(z, labels):
        return F.cross_entropy(z.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)

    inputs, teacher, labels = train
    z = forward(weights, inputs)
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (z, teacher))
    soft = temperature**2 * TERMS[loss.name](log_q.exp(), log_p.exp(), log_q, log_p, parameter(loss))[0].sum(-1)
    counted = labels != -100
    rows = torch.where(counted, alpha * soft + (1 - alpha) * cross_entropy(z, labels), 0.0)
    value = rows.sum() / counted.sum()
    gradient = torch.autograd.grad(value, list(weights.values()), create_graph=True, materialize_grads=True)
    stepped = {name: each - inner_lr * g for (name, each), g in zip(weights.items(), gradient, strict=True)}
    inputs, labels = validation
    outer = cross_entropy(forward(stepped, inputs), labels).sum() / (labels != -100).sum()
    return torch.autograd.grad(outer, alpha)[0]


def seeded(function, *arguments, **options):
    torch.manual_seed(7)
    return function(*arguments, **options)
