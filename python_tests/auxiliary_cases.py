"""Banks, batches and the comparison with the oracle that the tests of the auxiliary variable share."""

import torch
from cases import F32, F64, logits
from oracle import Answer
from oracle_auxiliary import auxiliary as oracle
from oracle_auxiliary import eager, stored
from tolerance import check_gradient, check_values

from kdkernels.methods import auxiliary

CLASSES, DIM, ROWS, ENTRIES = 11, 13, 9, 40

SETTINGS = {"kappa": 0.1, "mixture": 0.5, "beta": 1.0, "temperature": 4.0}


def entries(count=ENTRIES, dim=DIM, classes=CLASSES, device="cpu", dtype=F32, seed=50):
    """(features of any norm, distributions, sample numbers 100, 101, ...)"""
    features = logits(count, dim, dtype=dtype, device=device, seed=seed)
    probs = logits(count, classes, dtype=F64, device=device, seed=seed + 1).softmax(-1).to(dtype)
    return features, probs, torch.arange(100, 100 + count, device=device)


def make_bank(given, capacity=None, dtype=F32):
    """A bank of these entries, pushed at once."""
    features, probs, index = given
    bank = auxiliary.InstanceBank(capacity or len(features), features.shape[-1], probs.shape[-1], dtype=dtype)
    bank = bank.to(features.device)
    bank.push(features, probs, index)
    return bank


def batch(rows=ROWS, dim=DIM, classes=CLASSES, device="cpu", dtype=F32, seed=0):
    """(student, teacher, student_features, teacher_features)"""
    shapes = ((rows, classes), (rows, classes), (rows, dim), (rows, dim))
    return tuple(logits(*shape, dtype=dtype, device=device, seed=seed + i) for i, shape in enumerate(shapes))


def run(given, bank, upstream=None, **settings):
    """(values, gradient in the logits, gradient in the features); of their sum where no upstream is given."""
    student, teacher, student_features, teacher_features = given
    z, h = (x.detach().requires_grad_() for x in (student, student_features))
    values = auxiliary.auxiliary_divergence(z, teacher, h, teacher_features, bank, **(SETTINGS | settings))
    upstream = torch.ones_like(values) if upstream is None else upstream
    gradients = torch.autograd.grad(values, (z, h), upstream, materialize_grads=True)
    return values.detach(), *gradients


def arithmetic(given):
    return F64 if F64 in {x.dtype for x in given} else F32


def pick(answer, rows):
    return Answer(answer.values[rows], answer.gradient[rows])


def check(given, bank, **settings):
    """The rule of tolerance.py for the values and for both gradients."""
    settings = SETTINGS | settings
    values, *gradients = run(given, bank, **settings)
    answers, scales = oracle(*given, stored(bank), **settings)
    peers, dtype = eager(*given, stored(bank), **settings), arithmetic(given)
    check_values(values, answers.student, peers.student, scales.student, dtype)
    for gradient, leaf, answer, peer, scale in zip(gradients, given[::2], answers, peers, scales, strict=True):
        assert gradient.dtype == leaf.dtype
        check_gradient(gradient, answer, peer, scale, dtype, roundings=2)
    return values, *gradients


def snapshot(bank):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in everything(bank)}


def everything(bank):
    """What a bank holds, by name: all of its state, and its length."""
    yield "length", len(bank)
    yield from bank.state_dict().items()


def assert_same(first, second):
    first, second = (dict(x) if isinstance(x, dict) else dict(everything(x)) for x in (first, second))
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        tensors = isinstance(value, torch.Tensor)  # what is not filled yet may hold anything
        equal = torch.allclose(value, other, rtol=0, atol=0, equal_nan=True) if tensors else value == other
        assert equal, f"{name}: {value} is not {second[name]}"
