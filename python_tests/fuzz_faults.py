"""What the docstrings forbid, argument by argument: values that make a legal call illegal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from fuzz_calls import Call, dress, uncounted
from torch import Tensor, nn

import kdkernels as kd

Make = Callable[[Call], object]


class Legal(Exception):
    """What was to be illegal is legal for this call: there is no such row, or no smaller number."""


@dataclass(frozen=True)
class Fault:
    """An argument, what is wrong with it, and how that is made from the legal value."""

    argument: str
    what: str
    make: Make
    demands: dict[str, object] | None = None  # what else has to be so for it to be illegal

    def __str__(self) -> str:
        return f"{self.argument}: {self.what}"


def _always(*values: object) -> list[tuple[str, Make]]:
    return [(repr(value)[:40], lambda call, value=value: value) for value in values]


def _tensor(argument: str, what: str, change: Callable[[Tensor], object]) -> tuple[str, Make]:
    return what, lambda call: change(_given(call, argument))


def _given(call: Call, argument: str) -> Tensor:
    """The legal value; one value per row for an optional argument that this call does without."""
    value = call.get(argument)
    if isinstance(value, Tensor):
        return value.detach()
    rows = call.student.shape[:-1]
    return torch.ones(rows, dtype=torch.bool) if argument == "mask" else torch.full(rows, 0.5)


def _no_tensors(name: str) -> list[tuple[str, Make]]:
    return [
        _tensor(name, "a list", lambda x: x.tolist()),
        _tensor(name, "a numpy array", lambda x: np.zeros(tuple(x.shape), dtype=np.float32)),
        _tensor(name, "a tuple of tensors", lambda x: (x, x)),
        *_always("logits", b"bytes", object),
    ]


def _no_dense(name: str) -> list[tuple[str, Make]]:
    return [
        _tensor(name, "sparse coo", lambda x: x.detach().to_sparse() if x.dim() else _legal()),
        _tensor(name, "sparse csr", lambda x: x.detach().to_sparse_csr() if x.dim() == 2 else _legal()),
        _tensor(name, "on meta", lambda x: x.detach().to("meta")),
    ]


def _no_rows(name: str) -> list[tuple[str, Make]]:
    """Shapes that are not one value per row."""
    return [
        _tensor(name, "one dimension more", lambda x: x.unsqueeze(-1)),
        _tensor(name, "one row more", lambda x: torch.cat([x, x[:1]]) if x.dim() and len(x) else _legal()),
        _tensor(name, "one per element", lambda x: x.unsqueeze(-1).expand(*x.shape, 2)),
    ]


def _legal() -> object:
    raise Legal


def _dtypes(name: str, *dtypes: torch.dtype) -> list[tuple[str, Make]]:
    return [_tensor(name, str(dtype), lambda x, dtype=dtype: torch.zeros(x.shape, dtype=dtype)) for dtype in dtypes]


def _logits(name: str) -> list[tuple[str, Make]]:
    return [
        *_no_tensors(name),
        *_always(None, 1.0, 3),
        *_dtypes(name, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.int8, torch.float8_e4m3fn),
        _tensor(name, "quantized", lambda x: torch.quantize_per_tensor(torch.zeros(x.shape), 0.1, 0, torch.qint8)),
        _tensor(name, "0-d", lambda x: torch.tensor(1.0)),
        _tensor(name, "vocab 0", lambda x: x[..., :0]),
        *_no_dense(name)[: 2 if name == "logits" else 3],
    ]


def _wrong_label(label: Callable[[int], int], dressed: bool = False) -> Make:
    def make(call: Call) -> Tensor:
        value = label(call.get("vocab_size") or call.student.shape[-1])
        counted = ~uncounted(call.arguments)
        kept = call.get("mask")
        counted = counted if kept is None else counted & kept
        if value == call.arguments["ignore_index"] or not bool(counted.any()):
            raise Legal
        labels = call.arguments["labels"].clone(memory_format=torch.contiguous_format)
        labels.view(-1)[counted.reshape(-1).nonzero()[-1]] = value
        return dress(labels) if dressed else labels

    return make


_GRAD = lambda call: torch.ones(call.student.shape[:-1], requires_grad=True)  # noqa: E731
_WRONG_LABELS = [
    (f"{name}", _wrong_label(label)) for name, label in (("the vocabulary", lambda v: v), ("-1", lambda v: -1))
]
_WRONG_LABELS += [("2^40", _wrong_label(lambda v: 1 << 40)), ("-2^63", _wrong_label(lambda v: -(1 << 63)))]
_WRONG_LABELS += [("outside, in a subclass", _wrong_label(lambda v: v, dressed=True))]


def _wrong_alpha(call: Call, value: float) -> Tensor:
    if bool(uncounted(call.arguments).all()):  # a row that is not read may hold anything
        raise Legal
    return torch.full(call.student.shape[:-1], value)


def _table(call: Call, *shape: int) -> Tensor:
    vocab = call.get("vocab_size") or call.student.shape[-1]
    return torch.full((vocab + shape[0], vocab + shape[1]), 0.5)


_OF_PAIRS: dict[str, list[tuple[str, Make]]] = {
    "student": _logits("student"),
    "teacher": [
        *_logits("teacher"),
        _tensor("teacher", "requires grad", lambda x: x.detach().clone().requires_grad_()),
        _tensor("teacher", "a trainable Parameter", lambda x: nn.Parameter(x.detach().clone())),
        _tensor("teacher", "one row more", lambda x: torch.cat([x, x[:1]]) if x.dim() > 1 and len(x) else _legal()),
        _tensor("teacher", "one dimension more", lambda x: x.unsqueeze(0)),
        _tensor("teacher", "a dimension less", lambda x: x.sum(0) if x.dim() > 1 and len(x) else _legal()),
        _tensor("teacher", "rows that would broadcast", lambda x: x[:1] if x.dim() > 1 and len(x) > 1 else _legal()),
    ],
    "vocab_size": _always(0, -1, 1 << 40, 3.0, True, "7", [7], math.nan),
    "backend": _always("cudnn", None, 3, "Native", "", "triton"),
}


def _zero(call: Call) -> int:
    """A count of 0 is none where a row counts, and right where none does."""
    counted = torch.ones(call.student.shape[:-1], dtype=torch.bool)
    mask, labels = call.get("mask"), call.get("labels")
    if isinstance(mask, Tensor):
        counted &= mask
    if isinstance(labels, Tensor):
        counted &= labels != call.get("ignore_index", -100)
    if not bool(counted.any()):
        raise Legal
    return 0


_OF_ROWS = {
    "temperature": _always(0, -1.0, math.nan, math.inf, -math.inf, None, "2", True, [1.0], 2j, torch.ones(2), object),
    "loss": _always("forward_kl", kd.ForwardKL, None, nn.KLDivLoss(), 0.5),
    "reduction": _always("average", None, 3, "", b"mean", True, "Mean"),
    "mask": [
        *_no_tensors("mask"),
        *_no_dense("mask"),
        *_no_rows("mask"),
        *_dtypes("mask", torch.float32, torch.int64, torch.uint8),
        *_always(True, 1.0),
    ],
    "weight": [
        *_no_tensors("weight"),
        *_no_dense("weight"),
        *_no_rows("weight"),
        *_dtypes("weight", torch.int64, torch.bool, torch.complex64),
        *_always(2.0, 1),
        ("requires grad", _GRAD),
    ],
    "normalizer": [
        ("0", _zero),
        *_always(-1.0, math.nan, math.inf, "3", True, 2j, [3.0], torch.ones(2), torch.ones(2, 2), object),
        *_always(torch.tensor(True), torch.tensor(1j), torch.tensor(3.0, requires_grad=True)),
    ],
}
_OF_LABELS = {
    "labels": [
        *_no_tensors("labels"),
        *_no_dense("labels"),
        *_no_rows("labels"),
        *_dtypes("labels", torch.float32, torch.bool, torch.complex64),
        *_always(None, 0),
        *_WRONG_LABELS,
        ("one-hot", lambda call: torch.zeros(call.student.shape, dtype=torch.int64)),
    ],
    "ignore_index": _always(1.5, None, "a", True, [0], math.nan, torch.ones(2)),
}
_OF_ALPHA = {
    "alpha": [
        *_always(1.5, -0.1, math.nan, math.inf, "half", None, True, [0.5], 2j, object),
        *_no_rows("alpha"),
        *_dtypes("alpha", torch.int64, torch.bool, torch.complex64),
        *_no_dense("alpha"),
        ("requires grad", _GRAD),
        *((f"a tensor of {x}", lambda call, x=x: _wrong_alpha(call, x)) for x in (1.5, -3.0, math.nan)),
    ],
}
_OF_MEANS = {
    "class_mean": [
        *_always("table", 0.5, [[0.5]], object),
        ("a column more", lambda call: _table(call, 0, 1)),
        ("a row more", lambda call: _table(call, 1, 0)),
        ("1-d", lambda call: _table(call, 0, 0)[0]),
        ("integers", lambda call: _table(call, 0, 0).long()),
        ("complex", lambda call: _table(call, 0, 0).to(torch.complex64)),
        ("requires grad", lambda call: _table(call, 0, 0).requires_grad_()),
        ("sparse", lambda call: _table(call, 0, 0).to_sparse()),
        ("on meta", lambda call: _table(call, 0, 0).to("meta")),
    ],
}
_TEMPERATURE = {"temperature": _OF_ROWS["temperature"], "backend": _OF_PAIRS["backend"], "logits": _logits("logits")}
_TABLES = {
    "divergence": {**_OF_PAIRS, **_OF_ROWS},
    "distillation": {**_OF_PAIRS, **_OF_ROWS, **_OF_LABELS, **_OF_ALPHA},
    "trilateral_distances": {**_OF_PAIRS, **_OF_LABELS, **_OF_MEANS},
    "softmax": _TEMPERATURE,
    "log_softmax": _TEMPERATURE,
}


def _faults(op: str) -> list[Fault]:
    made = [Fault(argument, what, make) for argument, rest in _TABLES[op].items() for what, make in rest]
    if "softmax" in op or op == "trilateral_distances":
        return made
    for reduction in ("sum", "none", "batchmean"):
        made.append(Fault("normalizer", f"with {reduction}", lambda call: 7, {"reduction": reduction}))
    leaf = "a leaf that requires grad", lambda call: call.student.detach().clone().requires_grad_()
    made.append(Fault("inplace", leaf[0], lambda call: True, {"student": leaf[1], "module": False}))
    made.append(Fault("inplace", "rows on one another", lambda call: True, {"student": _overlapping}))
    made.append(Fault("inplace", "every other column", lambda call: True, {"student": _scattered}))
    return made


def _overlapping(call: Call) -> Tensor:
    if math.prod(call.student.shape[:-1]) < 2:
        raise Legal
    return call.student.detach().reshape(-1)[: call.student.shape[-1]].clone().expand(call.student.shape)


def _scattered(call: Call) -> Tensor:
    if call.student.shape[-1] < 2 or not call.student.numel():
        raise Legal
    return torch.stack([call.student.detach()] * 2, -1)[..., 0]


FAULTS: dict[str, list[Fault]] = {op: _faults(op) for op in _TABLES}
