"""One test for every backend and operator: each kind of tensor in each argument is right, or refused by name."""

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of
from conformance import FUNCTIONS, OPERATORS, REFUSED, SUPPORTED, UPSTREAMS, X, plain

BACKENDS = ("native", "reference")
# What a kernel's argument may be: a door (public function or operator), an argument of it, and who answers.
ARGUMENTS = [(FUNCTIONS, name, backend) for name in FUNCTIONS for backend in BACKENDS]
ARGUMENTS += [(OPERATORS, name, "native") for name in OPERATORS]
EVERY_ARGUMENT = pytest.mark.parametrize(
    ("door", "name", "backend"),
    ARGUMENTS,
    ids=lambda x: ("function" if x is FUNCTIONS else "operator") if isinstance(x, dict) else x,
)
ROUNDING = {F32: 1e-6, BF16: 2**-7, F16: 2**-10, F64: 1e-12}


@EVERY_ARGUMENT
@pytest.mark.parametrize("kind", SUPPORTED)
def test_supported(door, name, backend, kind):
    if kind == "lazily negated" and name == "mask":
        pytest.skip("a boolean has no sign")
    argument = door[name]
    expected = argument.call(argument.good.clone(), backend)
    found = plain(argument.call(SUPPORTED[kind](argument.good), backend))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-7)


@EVERY_ARGUMENT
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(door, name, backend, kind):
    argument = door[name]
    if kind == "elsewhere" and name in ("student", "distances student"):
        argument = argument._replace(name="teacher")  # which then is the one that does not go with it
    if kind == "elsewhere" and name == "logits":
        pytest.skip("a softmax of meta tensors goes with nothing else")
    if kind == "wrong shape" and name == "logits":
        pytest.skip("logits of any shape are logits")
    if kind == "wrong shape" and "student" in name:
        argument = argument._replace(name="teacher")
    if kind == "sparse" and name == "normalizer":
        pytest.skip("one element, and PyTorch's own conversion reads it")
    if kind == "sparse" and door is OPERATORS:  # the dispatcher's own refusal
        with pytest.raises(NotImplementedError, match="SparseCPU"):
            argument.call(REFUSED[kind](argument.good), backend)
        return
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument.name}\b"):
        argument.call(REFUSED[kind](argument.good), backend)


@EVERY_ARGUMENT
def test_zeros_without_memory(door, name, backend):
    argument = door[name]
    if not argument.good.dtype.is_floating_point:
        pytest.skip("PyTorch has them for floating point")
    shape = argument.good.shape
    if name == "normalizer":  # a divisor of 0 is refused while rows count, whatever its memory
        with pytest.raises(ValueError, match="normalizer must be positive and finite, got 0"):
            argument.call(torch._efficientzerotensor(shape), backend)
        return
    found, expected = (argument.call(f(shape), backend) for f in (torch._efficientzerotensor, torch.zeros))
    assert torch.equal(found, expected) or (found.isinf() & expected.isinf()).all()


@pytest.mark.parametrize("call", UPSTREAMS.values(), ids=UPSTREAMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
@pytest.mark.parametrize("kind", [*SUPPORTED, "zeros"])
def test_upstream_gradients(call, backend, dtype, kind):
    if kind == "parameter":
        pytest.skip("no upstream gradient is one")
    z = X.to(dtype).requires_grad_()
    value = call(z, backend)
    upstream = logits(1, *value.shape, dtype=value.dtype, seed=4)[0]
    if kind == "zeros":
        made, upstream = torch._efficientzerotensor(value.shape, dtype=value.dtype), torch.zeros_like(upstream)
    elif kind == "lazily negated" and value.dtype in (BF16, F16):
        made = torch._neg_view(-upstream)  # PyTorch has no complex numbers of these
    else:
        made = SUPPORTED[kind](upstream)
    (expected,) = torch.autograd.grad(value, z, upstream, retain_graph=True)
    (found,) = torch.autograd.grad(value, z, made)
    torch.testing.assert_close(plain(found), expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("name", ["labels", "distances labels"])
@pytest.mark.parametrize("kind", ["plain", "subclass", "parameter"])
def test_a_subclass_keeps_the_range_check(name, kind):
    argument = FUNCTIONS[name]
    labels = argument.good.clone()
    labels[4] = 40
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 11\)"):
        argument.call(SUPPORTED[kind](labels), "native")
