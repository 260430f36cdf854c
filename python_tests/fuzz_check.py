"""Runs a fuzz call and says what is wrong with what came: values, gradient, dtypes, shapes, and what was written."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from fuzz_calls import _C, Call
from fuzz_choices import replayed, seeded
from fuzz_oracle import wanted
from fuzz_tensors import expanded, noise, storage_bytes
from fuzz_wanted import Wanted
from tolerance import arithmetic
from torch import Tensor, nn

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@contextmanager
def instruction_set(name: str | None):
    """The CPU's instruction set forced for a block."""
    if name is None:
        yield
        return
    usual = _C.instruction_set()
    _C.use_instruction_set(name)
    try:
        yield
    finally:
        _C.use_instruction_set(usual)


@contextmanager
def unwritten(arguments: dict[str, object]):
    """Fails where the storage of an argument has changed by the end of the block, be it raised or not."""
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and type(v) in PLAIN and v.is_cpu}
    tensors = {k: v for k, v in tensors.items() if v.layout is torch.strided}
    before = {name: storage_bytes(value).clone() for name, value in tensors.items()}
    yield
    for name, value in tensors.items():
        assert torch.equal(storage_bytes(value), before[name]), f"{name} was written to"


PLAIN = (Tensor, nn.Parameter)


def leaf_of(call: Call) -> tuple[Tensor, Tensor]:
    """(What wants a gradient, what the call is given) - the same tensor, or one that an operation made of the other."""
    values = call.student.detach()
    if not call.wants_gradient:
        return values, values
    if call.leaf == "computed":
        leaf = values.requires_grad_()
        return leaf, leaf * 1.0 if call.get("inplace", False) else leaf.view_as(leaf)
    leaf = nn.Parameter(values) if call.leaf == "parameter" else values.requires_grad_()
    return leaf, leaf


def upstream_of(call: Call) -> Tensor:
    """The gradient that comes from above, in one of the forms that autograd sends."""
    shape, dtype = result_shape(call), result_dtype(call)
    if call.upstream == "ones":
        return torch.ones(shape, dtype=dtype)
    if call.upstream == "scaled":
        return torch.full(shape, 128.0, dtype=dtype)
    values = noise(replayed([call.seed]), *shape).to(dtype)
    return expanded(values, seeded(call.seed)) if call.upstream == "expanded" and shape else values


def result_dtype(call: Call) -> torch.dtype:
    return call.student.dtype if "softmax" in call.op else arithmetic(call.student, call.arguments["teacher"])


def result_shape(call: Call) -> tuple[int, ...]:
    rows = tuple(call.student.shape[:-1])
    if "softmax" in call.op:
        return tuple(call.student.shape)
    if call.op == "trilateral_distances":
        return (*rows, 3 if call.get("class_mean") is None else 5)
    return rows if call.get("reduction", "mean") == "none" else ()


def run(call: Call) -> None:
    """Everything that the docstring promises of this call, or an AssertionError that says what was broken."""
    leaf, given = leaf_of(call)
    arguments = {**call.arguments, call.first: given}
    arguments |= {name: guise(arguments[name]) for name, guise in call.dressed.items() if name != "upstream"}
    differentiable, gradients = call.grad_mode == "grad" and call.wants_gradient, [None]
    upstream = upstream_of(call)
    with unwritten(call.arguments), instruction_set(call.target[1]), call.around():
        with MODES[call.grad_mode]():
            result = call.function(**arguments)
        value = plain(result)
        if differentiable:
            above = call.dressed.get("upstream", lambda x: x)(upstream)
            if hasattr(result, "placements"):  # from a DTensor PyTorch takes no other upstream gradient
                above = type(result).from_local(plain(above), result.device_mesh, result.placements)
            kept = [True, False] if call.twice else [False]
            gradients = [plain(torch.autograd.grad(result, leaf, above, retain_graph=keep)[0]) for keep in kept]
    check_kind(call, value, result.requires_grad == differentiable)
    compare(call, value, gradients, upstream)


def plain(tensor: Tensor) -> Tensor:
    """What a subclass, a DTensor or a lazy conjugate holds."""
    assert isinstance(tensor, Tensor), f"got a {type(tensor).__name__}"
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.as_subclass(Tensor)


def check_kind(call: Call, result: Tensor, requires_grad_is_right: bool) -> None:
    assert tuple(result.shape) == result_shape(call), f"shape {tuple(result.shape)}, wanted {result_shape(call)}"
    assert result.dtype == result_dtype(call), f"dtype {result.dtype}, wanted {result_dtype(call)}"
    assert requires_grad_is_right, "the result requires grad where the student does not, or the other way round"


def compare(call: Call, result: Tensor, gradients: list[Tensor | None], upstream: Tensor) -> None:
    """By the rule; PyTorch's own error is computed for those that are not near enough without it."""
    for gradient in gradients:
        if gradient is not None:
            assert gradient.shape == call.student.shape, f"a gradient of shape {tuple(gradient.shape)}"
            assert gradient.dtype == call.student.dtype, f"a gradient of {gradient.dtype}"
        complaint = disagreement(call, result, gradient, wanted(call, upstream))
        if complaint:
            complaint = disagreement(call, result, gradient, wanted(call, upstream, of_pytorch=True))
        assert not complaint, complaint
    if len(gradients) == 2:
        same = torch.equal(gradients[0].nan_to_num(7.0), gradients[1].nan_to_num(7.0))
        assert same, "a second backward through the kept graph gives other bits"


def disagreement(call: Call, result: Tensor, gradient: Tensor | None, want: Wanted) -> str:
    rows, values = len(want.unread), result.double().reshape(want.values.shape)
    if values.dim() and bool((values[want.unread] != 0).any()):
        return "the value of a row that is not read is not 0"
    said = outside("value", values, want.values, want.limits, ~want.unsure, result.dtype)
    if said or gradient is None:
        return said
    flat = gradient.double().reshape(rows, gradient.shape[-1])
    inside = flat[:, : want.gradient.shape[-1]]
    if bool((flat[:, want.gradient.shape[-1] :] != 0).any()):
        return "the gradient beyond vocab_size is not 0"
    if bool((flat[want.unread] != 0).any()):
        return "the gradient of a row that is not read is not 0"
    blank = want.gradient.isnan().any(-1) & ~want.slopeless
    if bool((~inside.isnan().any(-1) & blank).any()):
        return f"the gradient of rows {blank.nonzero().flatten().tolist()} is not NaN"
    certain = ~(want.slopeless | blank)
    return outside("gradient", inside, want.gradient, want.gradient_limits, certain, gradient.dtype)


def outside(what: str, got: Tensor, ref: Tensor, limit: Tensor, certain: Tensor, dtype: torch.dtype) -> str:
    """Where a number is further from the reference than its limit; infinite alike, NaN alike, beyond a dtype alike."""
    most = torch.finfo(dtype).max
    alike = (got == ref) | (got.isnan() & ref.isnan())
    alike |= (ref.abs() > most * (1 - 2.0**-8)) & (got.abs() > most * (1 - 2.0**-7)) & (got.sign() == ref.sign())
    alike |= got.isinf() & (ref.abs() + limit > most)
    wrong = ~alike & ~((got - ref).abs() <= limit)
    wrong &= certain.reshape(certain.shape + (1,) * (got.dim() - certain.dim()))
    if not bool(wrong.any()):
        return ""
    at = tuple(wrong.nonzero()[0].tolist())
    off, most = (float(x.expand(got.shape)[at]) for x in ((got - ref).abs(), limit))
    return (
        f"{what}{list(at)} = {float(got[at])!r}, reference {float(ref[at])!r}, off by {off:.3g} > {most:.3g}; "
        f"{int(wrong.sum())} of {got.numel()} are off"
    )
