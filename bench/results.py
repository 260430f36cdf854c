"""Results as JSON lines, one file per machine and in it the latest record of each case; git keeps the earlier ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .cases import Case
from .contenders import OURS
from .measure import Entry

FOLDER = Path(__file__).resolve().parent / "results"

Record = dict[str, Any]


def record(case: Case, entries: list[Entry], facts: dict[str, Any]) -> Record:
    """Times in seconds; `ratio` is a contender's time over ours, from rounds in which both ran."""
    ours = next(entry for entry in entries if entry.name == OURS)
    return {
        "case": case.name,
        "op": case.op,
        "rows": case.rows,
        "vocab": case.vocab,
        "dtype": case.dtype,
        "mode": case.mode,
        "temperature": case.temperature,
        "tensor_bytes": case.tensor_bytes,
        "minimal_bytes": case.units * case.tensor_bytes,
        "contenders": {entry.name: _contender(entry, ours) for entry in entries},
        **facts,
    }


def _contender(entry: Entry, ours: Entry) -> Record:
    if entry.refused:
        return {"refused": entry.refused}
    samples = entry.samples
    low, _, high = quantiles(samples, n=4) if len(samples) > 1 else samples * 3
    return {
        "median_s": median(samples),
        "quartiles_s": [low, high],
        "samples": len(samples),
        "rounds": len(entry.rounds),
        "ratio": entry.ratio_to(ours),
        "peak_bytes": entry.peak_bytes,
        "error": entry.error,
    }


def load(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def merge(path: Path, new: Iterable[Record]) -> None:
    """Put the new records in the place of the old ones of the same cases; a reader sees the old file or the new."""
    kept = {old["case"]: old for old in load(path)}
    kept.update({fresh["case"]: fresh for fresh in new})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(json.dumps(kept[name]) + "\n" for name in sorted(kept)))
    os.replace(partial, path)


def file_for(facts: dict[str, Any]) -> Path:
    return FOLDER / f"{facts['machine']}.jsonl"
