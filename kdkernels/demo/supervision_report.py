"""What `kdkernels.demo.complexity` leaves behind: a table, the order in words, a picture, and the numbers as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

import kdkernels as kd

from .plot import COLOURS, MARKERS, png
from .protocol import plural
from .report import spread
from .supervision import TARGETS, Moment, Protocol, Run


def in_order(moment: Moment) -> bool:
    """Whether online <= offline < labels < random; at the end the online teacher is the offline one."""
    online, offline, labels, random = (moment.complexity[name] for name in TARGETS)
    return online <= offline < labels < random


def held(runs: list[Run]) -> list[int]:
    """In how many runs the order held, at each moment."""
    return [sum(map(in_order, moments)) for moments in zip(*(run.moments for run in runs), strict=True)]


def table(runs: list[Run]) -> str:
    """A line per moment: mean and standard deviation over the runs."""
    lines = [("epoch", *TARGETS, "order held", "condition", "jitter", "student, test %")]
    for count, moments in zip(held(runs), zip(*(run.moments for run in runs), strict=True), strict=True):
        values = ([each.complexity[name] for each in moments] for name in TARGETS)
        condition, jitter = (max(getattr(each, name) for each in moments) for name in ("condition", "jitter"))
        tests = [each.test for each in moments]
        rest = (f"{count}/{len(runs)}", f"{condition:.1e}", f"{jitter:g}", plus_minus(tests, 1))
        lines.append((str(moments[0].epoch), *(plus_minus(each, 2) for each in values), *rest))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def plus_minus(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} +- {spread(values):.{digits}f}"


def words(runs: list[Run]) -> str:
    """Where the order held, for which neighbours, and each measurement where it did not."""
    counts, moments = held(runs), [moment for run in runs for moment in run.moments]
    lines = [
        f"online <= offline < labels < random held at {sum(counts)} of {len(moments)} measurements, and at "
        f"{counts.count(len(runs))} of {len(counts)} moments in all of {plural(len(runs), 'seed')}."
    ]
    for less, more in zip(TARGETS, TARGETS[1:], strict=False):
        both = [(each.complexity[less], each.complexity[more]) for each in moments]
        equal = sum(a == b for a, b in both)
        lines.append(
            f"  {less} < {more}: {sum(a < b for a, b in both)} of {len(both)}"
            + (f", equal at {equal} (one and the same teacher at the end)" if equal else "")
        )
    for run in runs:
        for moment in run.moments:
            if not in_order(moment):
                values = ", ".join(f"{name} {value:.3f}" for name, value in moment.complexity.items())
                lines.append(f"  not in order: seed {run.seed}, epoch {moment.epoch}: {values}")
    return "\n".join(lines)


def picture(runs: list[Run], protocol: Protocol, writer: str) -> bytes:
    """A PNG: the four complexities over the epochs, and below it the condition of the kernel."""
    figure = Figure(figsize=(9, 7), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    epochs = [moment.epoch for moment in runs[0].moments]
    for name, colour, marker in zip(reversed(TARGETS), COLOURS, MARKERS, strict=False):
        values = np.array([[moment.complexity[name] for moment in run.moments] for run in runs])
        centre = _band(above, epochs, values, colour)
        label = f"{name}: {centre[0]:.2f} to {centre[-1]:.2f}"
        above.plot(epochs, centre, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
    conditions = np.array([[moment.condition for moment in run.moments] for run in runs])
    below.plot(epochs, _band(below, epochs, conditions, "0.3"), color="0.3", linewidth=1.8)
    for axes in (above, below):
        axes.set(yscale="log", xlim=(0, protocol.epochs))
        axes.grid(alpha=0.3)
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:g}")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_ylim(10 ** np.floor(np.log10(conditions.min())), 10 ** np.ceil(np.log10(conditions.max())))
    above.set(ylabel="adjusted supervision complexity")
    below.set(xlabel="epoch of the student", ylabel="condition\nof the kernel")
    above.set_title(
        f"What a student is taught, measured by its own tangent kernel: digits, {protocol.probe} images x 10 outputs\n"
        f"online distillation at T = {protocol.temperature:g}; mean and standard deviation over "
        f"{plural(len(runs), 'seed')}; jitter {protocol.jitter:g}",
        loc="left",
        fontsize=11,
    )
    above.legend(loc="lower right", title="targets: at the start to at the end")
    return png(figure, writer)


def _band(axes: object, epochs: list[int], values: np.ndarray, colour: str) -> np.ndarray:
    """Draws one standard deviation around the mean of (seeds, moments), above the least value; gives the mean."""
    centre, band = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0.0
    lower = np.maximum(centre - band, values.min(0))  # the axis is logarithmic
    axes.fill_between(epochs, lower, centre + band, color=colour, alpha=0.2, linewidth=0)
    return centre


def document(runs: list[Run], protocol: Protocol, description: str, seconds: float, writer: str) -> str:
    """Everything measured, as JSON."""
    content = {
        "written_by": writer,
        "protocol": {"description": description, **asdict(protocol)},
        "environment": {
            "kdkernels": kd.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "backends": kd.backends(),
        },
        "seconds": round(seconds, 1),
        "epochs": [moment.epoch for moment in runs[0].moments],
        "order": list(TARGETS),
        "order_held": held(runs),
        "seeds": [
            {
                "seed": run.seed,
                "teacher_test": run.teacher_test,
                "complexity": {name: [each.complexity[name] for each in run.moments] for name in TARGETS},
                "least": {name: [each.length[name] for each in run.moments] for name in TARGETS},
                **{name: [getattr(each, name) for each in run.moments] for name in ("condition", "jitter", "test")},
            }
            for run in runs
        ],
    }
    return json.dumps(content, indent=1) + "\n"
