"""Situations that the fuzzers leave out, each with the reason; a fault of the library that is not yet mended, too.

A key is a `fuzz_illegal.Fault`, a `fuzz_exotic.Exotic` or a `fuzz_graphs` situation as it prints itself.
"""

from __future__ import annotations

KNOWN_OPEN: dict[str, str] = {
    "upstream: DTensor": "backend='reference' is PyTorch's operators and says it in their words; for kernels see "
    "test_distributed_tensors.py",
}
