"""Strategies for legal calls: everything that the docstrings of divergence, distillation, softmax, log_softmax,
trilateral_distances and of the modules allow, as one `Call` that can be run, compared and described.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from cases import ALL_LOSSES, F16, F32, F64, per_class
from fuzz_choices import Choices
from fuzz_tensors import DTYPES, Plain, describe, laid_out, leading, logits, noise, vocabulary
from torch import Tensor, nn

import kdkernels as kd

try:
    from kdkernels import _C

    TARGETS = [*(("native", isa) for isa in _C.instruction_sets()), ("reference", None)]
except ImportError:  # an installation without the extension
    _C, TARGETS = None, [("reference", None)]

MODULES = {"divergence": kd.DivergenceLoss, "distillation": kd.DistillationLoss}
AT_THE_CALL = ("student", "teacher", "labels", "mask", "weight", "normalizer")  # what a module's forward takes
CHEAP = [loss for loss in ALL_LOSSES if loss.classes is None]


@dataclass
class Call:
    """One call of the library: what it is given, and what surrounds it."""

    op: str
    arguments: dict[str, object]
    target: tuple[str, str | None] = TARGETS[0]
    module: bool = False
    grad_mode: str = "grad"
    wants_gradient: bool = True
    leaf: str = "itself"  # or a Parameter, or what an operation made of the leaf
    upstream: str = "ones"
    seed: int = 0  # of the upstream
    twice: bool = False
    dressed: dict[str, Callable[[Tensor], object]] = field(default_factory=dict)  # arguments in another guise
    around: Callable[[], AbstractContextManager] = nullcontext  # what the call and its backward happen in

    @property
    def first(self) -> str:
        return "logits" if "softmax" in self.op else "student"

    @property
    def student(self) -> Tensor:
        return self.arguments[self.first]

    def get(self, name: str, default: object = None) -> object:
        return self.arguments.get(name, default)

    def function(self, **arguments: object) -> Tensor:
        """The library's answer to these arguments, through the module where this case says so."""
        if not self.module:
            return getattr(kd, self.op)(**arguments)
        now = {name: arguments.pop(name) for name in AT_THE_CALL if name in arguments}
        if isinstance(arguments.get("alpha"), Tensor):
            now["alpha"] = arguments.pop("alpha")
        return MODULES[self.op](**arguments)(**now)

    def __str__(self) -> str:
        lines = [f"kd.{MODULES[self.op].__name__ if self.module else self.op}("]
        lines += [f"    {name}={describe(value)}," for name, value in self.arguments.items()]
        told = {k: v for k, v in vars(self).items() if k not in ("op", "arguments", "module", "dressed", "around")}
        told |= {"dressed": [*self.dressed], "around": getattr(self.around, "__name__", self.around)}
        return "\n".join([*lines, ")  # " + ", ".join(f"{key}={value}" for key, value in told.items())])


def two_sides(c: Choices) -> tuple[Tensor, Tensor, int | None]:
    """Student and teacher in float64, and a vocab_size where their vocabularies differ (and now and then anyway)."""
    shape, vocab, size = leading(c), vocabulary(c), None
    wide = [vocab, vocab]
    if c.chance(20):
        size = vocab
        wide = [vocab + c.pick((0, 1, 16)) for _ in wide]
    student = logits(c, *shape, wide[0])
    teacher = student if wide[0] == wide[1] and c.chance(5) else logits(c, *shape, wide[1])
    return student, teacher, size


def temperature(c: Choices) -> float:
    return c.pick((1.0, 2.0, 0.5, 4, 0.05, 100.0)) if c.chance(80) else 0.05 * 2000.0 ** (c.below(1000) / 1000)


def per_row(c: Choices, shape: tuple[int, ...], kinds: tuple[Callable[[Tensor], Tensor], ...]) -> Tensor:
    """One value per row made of normal numbers by one of the kinds."""
    return c.pick(kinds)(noise(c, *shape))


def mask(c: Choices, shape: tuple[int, ...]) -> Tensor:
    return per_row(c, shape, (lambda x: x > 0.3, lambda x: x < 99.0, lambda x: x > 99.0))


def weight(c: Choices, shape: tuple[int, ...]) -> Tensor:
    """Any dtype; zero, negative and large ones too (float16 has nothing beyond 65504)."""
    kinds = (torch.abs, torch.relu, lambda x: x, torch.zeros_like, lambda x: x * 1e4, lambda x: x * 1e20)
    values, dtype = per_row(c, shape, kinds), c.pick((F32, *DTYPES))
    return (values.clamp(-6e4, 6e4) if dtype is F16 else values).to(dtype)


def labels(c: Choices, shape: tuple[int, ...], vocab: int, ignored: int) -> Tensor:
    y = torch.randint(vocab, shape, generator=torch.Generator().manual_seed(c.below(1 << 16)))
    share = c.pick((None, -0.5, 99.0))
    return y if share is None else y.masked_fill(noise(c, *shape) < share, ignored)


def reductions(c: Choices) -> dict[str, object]:
    chosen = {"reduction": c.pick(("none", "mean", "sum", "batchmean"))}
    if chosen["reduction"] == "mean" and c.chance(40):
        number = c.pick((7, 2.5, 1000))
        dtype = c.pick((None, F32, torch.int64, F64, torch.int32))
        chosen["normalizer"] = number if dtype is None else torch.tensor(number, dtype=dtype)
    return chosen


def rows_options(c: Choices, shape: tuple[int, ...]) -> dict[str, object]:
    chosen = {"temperature": temperature(c), "tau_squared": not c.chance(25), **reductions(c)}
    if c.chance(35):
        chosen["mask"] = mask(c, shape)
    if c.chance(35):
        chosen["weight"] = weight(c, shape)
    return chosen


def loss_for(c: Choices, vocab: int) -> kd.Loss:
    if c.chance(8):
        return per_class(vocab, 1 + c.below(8), c.pick((F32, F64)))
    return c.pick(CHEAP)


def _divergence(c: Choices, hard: bool) -> dict[str, object]:
    student, teacher, size = two_sides(c)
    shape, vocab = tuple(student.shape[:-1]), size or student.shape[-1]
    chosen = {"student": student, "teacher": teacher, "loss": loss_for(c, vocab), **rows_options(c, shape)}
    if size is not None:
        chosen["vocab_size"] = size
    if hard:
        ignored = chosen["ignore_index"] = c.pick((-100, -1, vocab + 3, 0))
        chosen["labels"] = labels(c, shape, vocab, ignored)
        kind = c.below(5)
        chosen["alpha"] = (0.5, 0, 1.0, 0.3)[kind] if kind < 4 else noise(c, *shape).sigmoid().to(c.pick(DTYPES))
    return chosen


def _trilateral(c: Choices) -> dict[str, object]:
    student, teacher, size = two_sides(c)
    vocab = size or student.shape[-1]
    chosen = {"student": student, "teacher": teacher, "squared": c.chance(50)}
    if size is not None:
        chosen["vocab_size"] = size
    ignored = chosen["ignore_index"] = c.pick((-100, -1, vocab + 3, 0))
    chosen["labels"] = labels(c, tuple(student.shape[:-1]), vocab, ignored)
    if vocab < 300 and c.chance(40):
        chosen["class_mean"] = noise(c, vocab, vocab).softmax(-1).to(c.pick(DTYPES))
    return chosen


def _softmax(c: Choices) -> dict[str, object]:
    return {"logits": logits(c, *leading(c), vocabulary(c)), "temperature": temperature(c)}


OPS: dict[str, Callable[[Choices], dict[str, object]]] = {
    "divergence": lambda c: _divergence(c, hard=False),
    "distillation": lambda c: _divergence(c, hard=True),
    "trilateral_distances": _trilateral,
    "softmax": _softmax,
    "log_softmax": _softmax,
}


def uncounted(arguments: dict[str, object]) -> Tensor:
    """Which rows the docstrings say are not read: masked, ignored, or of weight 0."""
    rows = torch.zeros(arguments["student"].shape[:-1], dtype=torch.bool)
    if (y := arguments.get("labels")) is not None:
        rows = rows | (y == arguments.get("ignore_index", -100))
    if (kept := arguments.get("mask")) is not None:
        rows = rows | ~kept
    if (w := arguments.get("weight")) is not None:
        rows = rows | (w.to(F32) == 0)
    return rows


def legal(c: Choices) -> Call:
    op = c.pick(("divergence", "distillation", "trilateral_distances", "softmax", "log_softmax", "distillation"))
    arguments = OPS[op](c)
    if "softmax" not in op and c.chance(30):
        spoiled, poison = uncounted(arguments)[..., None], c.pick((torch.nan, torch.inf, -torch.inf))
        for name in ("student", "teacher"):
            arguments[name] = arguments[name].masked_fill(spoiled, poison)
    dtype = c.pick(DTYPES)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if name in ("student", "teacher", "logits"):
                value = value.to(c.pick(DTYPES) if name == "teacher" and c.chance(40) else dtype)
            arguments[name] = laid_out(value, c)
    call = Call(op, arguments, c.pick(TARGETS))
    arguments["backend"] = call.target[0]
    return surrounded(c, call)


def surrounded(c: Choices, call: Call) -> Call:
    call.module = call.op in MODULES and c.chance(15)
    call.grad_mode = c.pick(("grad", "no_grad", "inference_mode")) if c.chance(20) else "grad"
    call.wants_gradient = not c.chance(10)
    call.leaf = c.pick(("itself", "computed", "parameter"))
    call.upstream, call.seed = c.pick(("ones", "random", "expanded", "scaled")), c.below(1 << 16)
    if call.op in MODULES and call.leaf == "computed" and call.grad_mode == "grad" and c.chance(25):
        call.arguments["inplace"] = True
        call.arguments["student"] = call.student.contiguous()
    call.twice = not call.get("inplace", False) and c.chance(20)
    if c.chance(5):
        tensors = [name for name, value in call.arguments.items() if isinstance(value, Tensor)]
        call.dressed = {name: dress for name in tensors if c.chance(50)}
    return call


def dress(value: object) -> object:
    return value.as_subclass(Plain) if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else value
