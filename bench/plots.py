"""The pictures: what a step costs and holds at a language model's vocabulary, and the speed-ups over all shapes."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .cases import BOTH, DTYPES, HEADLINE, OPERATIONS, shapes_of
from .contenders import COMPILED, EAGER, INPLACE, OURS, STREAM
from .results import Record

_COST = {"cpu": ("512x32000", "float32"), "cuda": ("8192x32000", "bfloat16")}
_SPEEDUP_OPERATIONS = (*HEADLINE, "trilateral_distances")

# Okabe and Ito's palette, told apart with any colour vision; lightness differs too, for print.
_COLOURS = {
    EAGER: "#D55E00",
    COMPILED: "#E69F00",
    "trl": "#CC79A7",
    "liger": "#F0E442",
    OURS: "#0072B2",
    INPLACE: "#56B4E9",
    STREAM: "#000000",
}
_RIVALS = (EAGER, COMPILED, "trl", "liger")
_CONTENDERS = (*_RIVALS, OURS, INPLACE)


def figures(records: list[Record], machine: str) -> dict[str, Figure]:
    known = {record["case"]: record for record in records}
    device = records[0]["device"]
    shape, dtype = _COST[device]
    names = (f"{op} {shape} {dtype} {BOTH}" for op, operation in OPERATIONS.items() if not operation.bank)
    cost = [known[name] for name in names if name in known]
    drawn = {"speedup": _speedup(known, machine, device)}
    if cost:
        drawn["cost"] = _cost(cost, machine)
    return drawn


def _cost(records: list[Record], machine: str) -> Figure:
    figure = Figure(figsize=(11, 1.2 + 0.75 * len(records)), layout="constrained")
    figure.suptitle(
        f"Value and gradient of {records[0]['rows']}x{records[0]['vocab']} {records[0]['dtype']} logits, {machine}"
    )
    times, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _bars(times, records, lambda record, entry: entry["median_s"] * 1e3, "{:.3g}")
    _bars(memory, records, lambda record, entry: entry["peak_bytes"] / record["tensor_bytes"], "{:.1f}")
    stream = sorted(record["contenders"][STREAM]["median_s"] * 1e3 for record in records)[len(records) // 2]
    times.axvline(stream, color=_COLOURS[STREAM], linestyle="--", linewidth=1, label="torch.add(s, t, out=g)")
    times.set_xlabel("time, ms")
    times.set_yticks(range(len(records)), [record["op"].replace("_", " ") for record in records])
    times.invert_yaxis()
    memory.set_xlabel("peak memory beyond the inputs, in logit tensors")
    handles, labels = times.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _bars(axes: Axes, records: list[Record], value: Any, label: str) -> None:
    for name, found in _places(records, _CONTENDERS).items():
        widths = [value(records[row], records[row]["contenders"][name]) for row, _, _ in found]
        places, thickness = [place for _, place, _ in found], found[0][2]
        bars = axes.barh(places, widths, thickness, color=_COLOURS[name], label=name)
        axes.bar_label(bars, [label.format(width) for width in widths], padding=2, fontsize=7)
    axes.margins(x=0.1, y=0.01)
    _frame(axes, "x")


def _places(records: list[Record | None], names: tuple[str, ...]) -> dict[str, list[tuple[int, float, float]]]:
    """name -> (index of the record, where its bar goes, how thick it is): no gaps for those without a number."""
    thickness = 0.8 / max(2, *(len(_present(record, names)) for record in records))
    found: dict[str, list] = {}
    for index, record in enumerate(records):
        present = _present(record, names)
        for number, name in enumerate(present):
            place = index + (number - (len(present) - 1) / 2) * thickness
            found.setdefault(name, []).append((index, place, thickness))
    return {name: found[name] for name in names if name in found}


def _present(record: Record | None, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if record and record["contenders"].get(name, {}).get("ratio")]


def _speedup(known: dict[str, Record], machine: str, device: str) -> Figure:
    figure = Figure(figsize=(11, 1 + 3 * len(_SPEEDUP_OPERATIONS)), layout="constrained")
    figure.suptitle(f"How many times as fast kdkernels is, value and gradient, {machine}")
    figure.get_layout_engine().set(h_pad=0.1)
    grid = figure.subplots(len(_SPEEDUP_OPERATIONS), len(DTYPES), sharey="row", squeeze=False)
    labelled: dict[str, Any] = {}
    for op, line in zip(_SPEEDUP_OPERATIONS, grid, strict=True):
        for dtype, axes in zip(DTYPES, line, strict=True):
            shapes = [f"{rows}x{vocab}" for rows, vocab in shapes_of(op, device)]
            _speedup_panel(axes, known, op, dtype, shapes)
            labelled.update({name: bars for bars, name in zip(*axes.get_legend_handles_labels(), strict=True)})
        line[0].set_ylabel("rival's time / kdkernels' time")
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _speedup_panel(axes: Axes, known: dict[str, Record], op: str, dtype: str, shapes: list[str]) -> None:
    records = [known.get(f"{op} {shape} {dtype} {BOTH}") for shape in shapes]
    if not any(records):
        axes.set_axis_off()
        return
    for name, found in _places(records, _RIVALS).items():
        ratios = [records[index]["contenders"][name]["ratio"] for index, _, _ in found]
        places, thickness = [place for _, place, _ in found], found[0][2]
        # From 1 upwards or downwards: on a logarithmic axis any other foot of a bar means nothing.
        heights = [ratio - 1.0 for ratio in ratios]
        bars = axes.bar(places, heights, thickness, bottom=1.0, color=_COLOURS[name], label=name)
        axes.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=2, fontsize=8)
    axes.set_yscale("log")
    axes.margins(y=0.14)
    axes.axhline(1.0, color="black", linewidth=1)
    _plain_ticks(axes)
    axes.set_xticks(range(len(shapes)), shapes, fontsize=8)
    axes.set_title(f"{op.replace('_', ' ')}, {dtype}", fontsize=10)
    _frame(axes, "y")


def _plain_ticks(axes: Axes) -> None:
    """1, 2, 5, 10, ... written out: powers of ten alone are too few for this range."""
    low, high = axes.get_ylim()
    shown = [mantissa * 10.0**power for power in range(-3, 6) for mantissa in (1, 2, 5)]
    shown = [value for value in shown if low <= value <= high]
    axes.set_yticks(shown, [f"{value:g}" for value in shown])
    axes.yaxis.set_minor_locator(NullLocator())


def _frame(axes: Axes, direction: str) -> None:
    axes.grid(axis=direction, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
