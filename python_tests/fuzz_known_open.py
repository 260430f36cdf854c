"""Faults that are known and not yet mended: the fuzzers leave these situations out. Empty is what it has to be.

A key is a `fuzz_illegal.Fault`, a `fuzz_exotic.Exotic` or a `fuzz_graphs` situation as it prints itself, or FAR_LOGITS.
"""

from __future__ import annotations

import math

FAR_LOGITS = "reference: logits far from 0"  # of legal calls: a row's logits around 1e4

_ROWS = ("alpha", "labels", "mask", "weight")
_LOGITS = ("logits", "student", "teacher")
_TENSORS = (*_LOGITS, *_ROWS, "class_mean", "normalizer", "upstream")
_GRAPHS = ("trace", "make_fx", "export")
_OPS = ("divergence", "distillation", "trilateral")
_PLAYED = ("with_another_vocabulary", "with_other_rows", "with_a_teacher_too_small", "with_labels_too_few")
_UNREAD = "an argument that is no plain tensor is read at address 0, or taken as absent"

KNOWN_OPEN: dict[str, str] = {
    FAR_LOGITS: "the reference divides by T before it subtracts the maximum",
    **{f"alpha: a tensor of {x}": "a tensor's values are not looked at" for x in (1.5, -3.0, math.nan)},
    **{f"{name}: sparse {kind}": "PyTorch's message, not ours" for name in _ROWS for kind in ("coo", "csr")},
    "alpha: on meta": "PyTorch's message, not ours",
    "labels: outside, in a subclass": "a subclass loses the range check",
    **{f"{name}: {guise}": _UNREAD for name in _TENSORS for guise in ("wrapper", "without storage", "negated")},
    **{f"{name}: {guise}": "no rule for it" for name in _TENSORS for guise in ("DTensor", "jagged")},
    **{f"{name}: numpy": "numbers of numpy" for name in ("alpha", "normalizer", "temperature", "vocab_size")},
    **{f"{graph}: {op} with_a_gradient": "whether there is a gradient is baked in" for graph in _GRAPHS for op in _OPS},
    **{f"{graph}: {op} {how}": "operators check nothing" for graph in _GRAPHS[:2] for op in _OPS for how in _PLAYED},
    **{f"overwritten teacher: {op} torch.float16": "read in backward" for op in _OPS},
    **{f"overwritten teacher: trilateral torch.{dtype}": "read in backward" for dtype in ("float32", "float64")},
    **{f"inplace beside the teacher: torch.{dtype}": "not looked for" for dtype in ("float32", "float16")},
    "normalizer: a tensor (1,)": "what Trainer passes on several GPUs",
}
