"""A call that is recorded and played with other tensors, and memory that changes or is shared between: right, or a
documented exception. Each plays in a fork, because a graph that trusts what it was recorded with can kill its process.
"""

from __future__ import annotations

import os
import signal
import warnings

import pytest
import torch
from cases import F16, F32, F64, logits
from fuzz_illegal import DOCUMENTED, INSIDES
from fuzz_known_open import KNOWN_OPEN
from torch.fx.experimental.proxy_tensor import make_fx

import kdkernels as kd

OPS = {
    "divergence": lambda z, t, y: kd.divergence(z, t, temperature=2.0),
    "distillation": lambda z, t, y: kd.distillation(z, t, y, temperature=2.0),
    "trilateral": lambda z, t, y: kd.trilateral_distances(z, t, y).sum(),
    "softmax": lambda z, t, y: kd.softmax(z, temperature=2.0).square().sum(),
}


def inputs(rows=4, vocab=11, dtype=F32, seed=0):
    labels = torch.arange(rows) % vocab
    return logits(rows, vocab, dtype=dtype, seed=seed), logits(rows, vocab, dtype=dtype, seed=seed + 1), labels


def traced(op, z, t, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(OPS[op], (z, t, y), check_trace=False)


def recorded(op, z, t, y):
    return make_fx(OPS[op])(z, t, y)


def exported(op, z, t, y):
    class Module(torch.nn.Module):
        def forward(self, z, t, y):
            return OPS[op](z, t, y)

    return torch.export.export(Module(), (z, t, y)).module()


RECORDERS = {"trace": traced, "make_fx": recorded, "export": exported}


def same(op, graph, z, t, y):
    """Value and gradient of a graph are those of the call."""
    z, twin = z.detach().requires_grad_(), z.detach().clone().requires_grad_()
    value, wanted = graph(z, t, y), OPS[op](twin, t, y)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(z.grad, twin.grad, rtol=1e-4, atol=1e-6)


def with_a_gradient(op, record):
    same(op, record(op, *inputs()), *inputs(seed=5))


def with_another_vocabulary(op, record):
    same(op, record(op, *inputs()), *inputs(vocab=50))


def with_other_rows(op, record):
    same(op, record(op, *inputs()), *inputs(rows=9))


def with_a_teacher_too_small(op, record):
    (z, _, y), (_, t, _) = inputs(rows=400, vocab=1000), inputs()
    record(op, *inputs())(z, t, y)
    raise AssertionError("a number for a teacher of another shape")


def with_labels_too_few(op, record):
    (z, t, _), (_, _, y) = inputs(rows=400), inputs()
    record(op, *inputs())(z, t, y)
    raise AssertionError("a number for labels of another length")


PLAYED = [with_a_gradient, with_another_vocabulary, with_other_rows, with_a_teacher_too_small, with_labels_too_few]
GRAPHS = [
    (f"{recorder}: {op} {play.__name__}", play, op, record)
    for recorder, record in RECORDERS.items()
    for op in OPS
    for play in PLAYED
    if not (play is with_labels_too_few and op in ("divergence", "softmax"))
    and not (play is with_a_teacher_too_small and op == "softmax")
]


def overwritten(op, dtype):
    """A buffer made under inference_mode, filled for the next batch before this one's backward."""
    z, t, y = inputs(dtype=dtype)
    z.requires_grad_()
    (wanted,) = torch.autograd.grad(OPS[op](z, t, y), z)
    with torch.inference_mode():
        buffer = t.clone()
    value = OPS[op](z, buffer, y)
    with torch.inference_mode():
        buffer.copy_(logits(*t.shape, dtype=dtype, seed=9))
    assert torch.equal(torch.autograd.grad(value, z)[0], wanted)


def shared(op, dtype):
    """inplace=True where student and teacher are rows of one buffer, a row apart."""
    base = logits(5, 11, dtype=dtype).requires_grad_() * 1.0
    before = base.detach().clone()
    y = torch.arange(4)
    try:
        kd.distillation(base[1:], base.detach()[:-1], y, inplace=True)
    except DOCUMENTED:
        assert torch.equal(base.detach(), before)
        raise
    raise AssertionError("a number where the gradient is written over the teacher")


MEMORY = [
    (f"overwritten teacher: {op} {dtype}", overwritten, op, dtype)
    for op in ("divergence", "distillation", "trilateral")
    for dtype in (F32, F16, F64)
] + [(f"inplace beside the teacher: {dtype}", shared, "distillation", dtype) for dtype in (F32, F16)]


def refused_or_right(play, *arguments):
    """What went wrong: nothing where it was right or refused as documented."""
    try:
        play(*arguments)
    except AssertionError as error:  # an exported program refuses other shapes than it was promised by its guards
        return "" if str(error).startswith("Guard failed") else f"wrong: {error}"
    except DOCUMENTED as error:
        inside = any(word in str(error).lower() for word in INSIDES)
        return f"PyTorch's insides: {error}" if inside else ""
    return ""


@pytest.mark.parametrize("name", [case[0] for case in GRAPHS + MEMORY if case[0] not in KNOWN_OPEN])
def test_right_or_refused(name):
    _, play, *arguments = next(case for case in GRAPHS + MEMORY if case[0] == name)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        signal.alarm(60)
        said = refused_or_right(play, *arguments)
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (code, said) == (0, "")


def test_the_names_are_told_apart():
    names = [case[0] for case in GRAPHS + MEMORY]
    assert len({*names}) == len(names)
