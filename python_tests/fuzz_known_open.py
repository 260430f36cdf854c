"""Faults that are known and not yet mended: the fuzzers leave these situations out. Empty is what it has to be.

A key is a `fuzz_illegal.Fault`, a `fuzz_exotic.Exotic` or a `fuzz_graphs` situation as it prints itself, or FAR_LOGITS.
"""

from __future__ import annotations

import math

FAR_LOGITS = "reference: logits far from 0"  # of legal calls: a row's logits around 1e4

_ROWS = ("alpha", "labels", "mask", "weight")
_LOGITS = ("logits", "student", "teacher")
_TENSORS = (*_LOGITS, *_ROWS, "class_mean", "normalizer", "upstream")
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
    "normalizer: a tensor (1,)": "what Trainer passes on several GPUs",
}
