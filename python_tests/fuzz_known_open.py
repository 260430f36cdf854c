"""Faults that are known and not yet mended: the fuzzers leave these situations out. Empty is what it has to be.

A key is a `fuzz_illegal.Fault`, a `fuzz_exotic.Exotic` or a `fuzz_graphs` situation as it prints itself, or FAR_LOGITS.
"""

from __future__ import annotations

FAR_LOGITS = "reference: logits far from 0"  # of legal calls: a row's logits around 1e4

KNOWN_OPEN: dict[str, str] = {
    "upstream: DTensor": "backend='reference' is PyTorch's operators and says it in their words; for kernels see "
    "test_distributed_tensors.py",
}
