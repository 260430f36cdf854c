"""The extra memory of one step at its peak: bytes of tensors, by PyTorch's own allocators, inputs not counted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def with_peak(work: Callable[[], Any], device: str) -> tuple[Any, int]:
    """What `work` returns, and its peak. What the CPU kernels take from malloc for a row or two is not seen."""
    return _cuda_peak(work) if device == "cuda" else _cpu_peak(work)


def _cuda_peak(work: Callable[[], Any]) -> tuple[Any, int]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


def _cpu_peak(work: Callable[[], Any]) -> tuple[Any, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return result, peak
