"""What a run leaves behind: a table for the terminal and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

import torch

import kdkernels as kd

from .experiment import Outcome
from .methods import Setting
from .protocol import Protocol, plural
from .timing import milliseconds

AGREE = 1e-5
"""Loss and eager twin may differ by so much, relative to max(1, value); beyond it no time is shown."""


def spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def summary(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per method; gains are over the first method, seed by seed."""
    rows = []
    for outcome in outcomes:
        gains = [ours - alone for ours, alone in zip(outcome.results, outcomes[0].results, strict=True)]
        agree = all(clock.difference <= AGREE for clock in outcome.clocks)
        own, eager = (milliseconds(outcome.clocks, which) if agree else None for which in (0, 1))
        rows.append(
            {
                "method": outcome.method.name,
                "setting": outcome.setting,
                "validation": max(score for _, score in outcome.validation),
                "test": outcome.results,
                "gain": gains,
                "wins": sum(gain > 0 for gain in gains),
                "loss_ms": own,
                "eager_ms": eager,
                "difference": max(clock.difference for clock in outcome.clocks),
            }
        )
    return rows


def table(rows: list[dict[str, Any]], teacher: list[float]) -> str:
    """The summary as aligned text."""
    head = ("method", "chosen on validation", "test accuracy %", "gain, points", "wins", "loss ms", "eager ms", "ratio")
    lines = [head, ("teacher", "", plus_minus(teacher), "", "", "", "", "")]
    for first, row in zip([True] + [False] * len(rows), rows, strict=False):
        own, eager = row["loss_ms"], row["eager_ms"]
        gain = "" if first else plus_minus(row["gain"], sign="+")
        wins = "" if first else f"{row['wins']}/{len(row['gain'])}"
        ratio = f"{eager / own:.1f}x" if own and eager else "-"
        times = (f"{time:.3f}" if time else "-" for time in (own, eager))
        lines.append((row["method"], words(row["setting"]), plus_minus(row["test"]), gain, wins, *times, ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def plus_minus(values: Sequence[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.1f} +- {spread(values):.1f}"


def words(setting: Setting) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def alpha_note(outcomes: list[Outcome]) -> str:
    """One line for each method with an alpha per image."""
    lines = []
    for outcome in outcomes:
        if outcome.findings:
            parts = []
            for which in ("right", "wrong"):
                values = [alpha for finding in outcome.findings for alpha in getattr(finding, which)]
                parts.append(f"{mean(values):.2f} on {len(values)} that the teacher gets {which}" if values else "")
            lines.append(f"{outcome.method.name}: mean alpha on test images {', '.join(filter(None, parts))}.\n")
    return "".join(lines)


def notes(rows: list[dict[str, Any]], protocol: Protocol) -> str:
    """How to read the table."""
    apart = [row["method"] for row in rows if row["difference"] > AGREE]
    warning = f"No times for {', '.join(apart)}: the loss and its eager twin do not agree.\n" if apart else ""
    return (
        f"+-: standard deviation over {plural(protocol.seeds, 'seed')}. gain: over {rows[0]['method']!r}, seed by "
        "seed; wins: seeds with a gain above 0.\n"
        "loss, eager: the loss's forward and backward per step, through kdkernels and composed in PyTorch, medians on "
        f"the run's own\nbatches of {protocol.batch} x 10 logits. So small a batch times the calls, not the memory "
        "traffic that the kernels are for. Online KD's times\ninclude asking the teacher of the moment.\n"
        f"{warning}"
    )


def document(
    outcomes: list[Outcome],
    rows: list[dict[str, Any]],
    teacher: list[float],
    protocol: Protocol,
    description: str,
    seconds: float,
    writer: str,
) -> str:
    """Everything measured, as JSON."""
    methods = []
    for row, outcome in zip(rows, outcomes, strict=True):
        tried = [{"setting": setting, "accuracy": score} for setting, score in outcome.validation]
        findings = [finding._asdict() for finding in outcome.findings]
        methods.append({**row, "curves": outcome.curves, "tried": tried, "findings": findings})
    content = {
        "written_by": writer,
        "protocol": {"description": description, **asdict(protocol)},
        "environment": {
            "kdkernels": kd.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "backends": kd.backends(),
        },
        "seconds": round(seconds, 1),
        "teacher_test": teacher,
        "epochs": protocol.evaluated(),
        "methods": methods,
    }
    return json.dumps(content, indent=1) + "\n"
