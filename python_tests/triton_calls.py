"""Calls of the Triton backend's functions on tensors of the CPU, to be launched nowhere (triton_stub.py)."""

from __future__ import annotations

import itertools
import random

import torch

from kdkernels.backends import calls
from kdkernels.backends import triton as backend
from kdkernels.losses import Perturbed


def rows_of(rows, vocab, dtype=torch.bfloat16, before=0, after=0):
    """Rows that start `before` columns into a buffer and end `after` columns before the next one."""
    return torch.empty(rows, before + vocab + after, dtype=dtype)[:, before : before + vocab]


def divergence(rows, vocab, dtype=torch.bfloat16, labels=False, loss="forward_kl", **layout):
    student, teacher = rows_of(rows, vocab, dtype, **layout), rows_of(rows, vocab, dtype)
    table = Perturbed(torch.ones(3)).table(torch.float32) if loss == "perturbed" else None
    chosen, weight = torch.zeros(rows, dtype=torch.int64) if labels else None, torch.ones(rows)
    target = torch.empty_like(student)
    call = calls.Divergence(
        labels=chosen, soft_weight=weight, table=table, loss=loss, parameter=0.5, temperature=2.0, hard_scale=0.1
    )
    return lambda: backend.divergence(student, teacher, target, call)


def softmax(rows, vocab, log=True):
    logits, output = rows_of(rows, vocab), rows_of(rows, vocab)
    return lambda: backend.softmax(logits, output, calls.Softmax(2.0, log))


def softmax_backward(rows, vocab):
    tensors = [rows_of(rows, vocab) for _ in range(3)]
    return lambda: backend.softmax_backward(*tensors, calls.Softmax(2.0))


def scale_rows(rows, vocab, per_row=True):
    gradient, factor = rows_of(rows, vocab), torch.ones(rows) if per_row else torch.ones(())
    return lambda: backend.scale_rows(gradient, factor)


def trilateral(rows, vocab):
    student, teacher, labels = rows_of(rows, vocab), rows_of(rows, vocab), torch.zeros(rows, dtype=torch.int64)
    statistics, call = torch.empty(rows, 10), calls.Trilateral(labels)

    def both():
        distances = backend.trilateral(student, teacher, None, statistics, call)
        gradient = torch.empty_like(student)
        upstream = torch.empty_like(distances)
        backend.trilateral_backward(student, teacher, None, statistics, distances, upstream, gradient, call)

    return both


def varied():
    """Calls that differ in everything that Triton compiles for, in an order that no kind is met only once in a row."""
    rows, vocabs = (1, 2, 16, 17, 48), (1, 16, 100, 1000)
    made = [
        divergence(rows, vocab, dtype, labels, loss, before=before, after=after)
        for rows, (vocab, before, after) in itertools.product(
            rows, ((1, 0, 0), (16, 0, 16), (100, 0, 0), (100, 3, 1), (1000, 0, 0), (1000, 8, 8), (1000, 1, 7))
        )
        for dtype, labels, loss in (
            (torch.bfloat16, False, "forward_kl"),
            (torch.float32, True, "forward_kl"),
            (torch.float32, False, "perturbed"),
        )
    ]
    made += [make(*shape) for make in (softmax, scale_rows, trilateral) for shape in itertools.product(rows, vocabs)]
    made += [scale_rows(rows, vocab, False) for rows, vocab in itertools.product(rows, vocabs)]
    random.Random(0).shuffle(made)
    return made
