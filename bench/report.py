"""python -m bench.report [FILES]: tables (markdown) and plots (PNG) from the records, next to them."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import plots, results
from .cases import BOTH, FORWARD, OPERATIONS
from .contenders import COMPILED, EAGER, INPLACE, OURS, STREAM
from .results import Record
from .targets import standings

_FIXED = (OURS, INPLACE, EAGER, COMPILED, STREAM)


def report(records: list[Record]) -> str:
    return "\n".join([*_header(records), "", *_targets(records), *_tables(records), *_refusals(records)]) + "\n"


def _header(records: list[Record]) -> list[str]:
    newest = max(records, key=lambda record: record["date"])
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    commits = sorted({record["git"] + ("+changes" if record["dirty"] else "") for record in records})
    return [
        f"# {title(records)}",
        "",
        f"{versions}; commit {', '.join(commits)}; {newest['date'][:10]}. From logits, through the public API,",
        "allocation and autograd included, all contenders side by side on the same tensors (`bench/measure.py`).",
        "Traffic: the bytes that cannot be avoided, per second, and as a share of the same machine's `torch.add(s, t,",
        "out=g)` on the same shape. Memory: the peak beyond the inputs, in (rows x vocab) tensors of the case's dtype.",
    ]


def title(records: list[Record]) -> str:
    newest = max(records, key=lambda record: record["date"])
    threads = f", {newest['threads']} threads" if newest["device"] == "cpu" else ""
    return f"{newest['processor']} ({newest['isa']}{threads})"


def _targets(records: list[Record]) -> list[str]:
    if records[0]["device"] != "cpu":
        return []  # they are for CPUs
    rows = [
        (each.what, each.goal, "" if each.measured is None else f"{each.measured:.2f}", each.verdict)
        for each in standings(records)
    ]
    return ["## Targets (forward + backward)", "", *_table(("target", "goal", "measured", ""), rows), ""]


def _tables(records: list[Record]) -> list[str]:
    lines = []
    for mode in (BOTH, FORWARD):
        for dtype in ("float32", "bfloat16"):
            chosen = [record for record in records if (record["mode"], record["dtype"]) == (mode, dtype)]
            if chosen:
                lines += [f"## {mode}, {dtype}", "", *_mode_table(sorted(chosen, key=_order)), ""]
    return lines


def _order(record: Record) -> tuple[int, int, int]:
    """By operation as bench.cases lists them, last what only old records have; then from small to large."""
    known = tuple(OPERATIONS)
    rank = known.index(record["op"]) if record["op"] in known else len(known)
    return rank, record["rows"] * record["vocab"], record["vocab"]


def _mode_table(records: list[Record]) -> list[str]:
    others = sorted({name for record in records for name in record["contenders"]} - set(_FIXED))
    head = ("case", "kdkernels", "inplace", "vs eager", "vs torch.compile", *(f"vs {name}" for name in others))
    head += ("/ torch.add", "inplace / torch.add", "GB/s", "of stream", "memory", "eager's", "compiled's")
    return _table(head, [_row(record, others) for record in records])


def _row(record: Record, others: list[str]) -> list[str]:
    entries = record["contenders"]
    times = [_time(entries.get(name, {}).get("median_s")) for name in (OURS, INPLACE)]
    ratios = [_times(entries.get(name, {}).get("ratio")) for name in (EAGER, COMPILED, *others)]
    stream = entries[STREAM].get("ratio")
    over_stream = [_times(_over(entries.get(name, {}).get("ratio"), stream)) for name in (OURS, INPLACE)]
    seconds = entries[OURS].get("median_s")
    rate = record["minimal_bytes"] / seconds / 1e9 if seconds and record["minimal_bytes"] else None
    # The stream moves three tensors in its time; ours moves minimal_bytes in its own.
    share = record["minimal_bytes"] / (3 * record["tensor_bytes"]) * stream if stream else None
    traffic = ["" if rate is None else f"{rate:.1f}", "" if share is None else f"{share:.0%}"]
    memory = [_units(record, name) for name in (OURS, EAGER, COMPILED)]
    return [f"{record['op']} {record['rows']}x{record['vocab']}", *times, *ratios, *over_stream, *traffic, *memory]


def _refusals(records: list[Record]) -> list[str]:
    """Why a cell is empty that should not be."""
    refused = [
        f"- {record['case']}, {name}: {entry['refused']}"
        for record in records
        for name, entry in record["contenders"].items()
        if "refused" in entry
    ]
    return ["## Without a number", "", *refused] if refused else []


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value and by else None


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _units(record: Record, name: str) -> str:
    peak = record["contenders"].get(name, {}).get("peak_bytes")
    return "" if peak is None else f"{peak / record['tensor_bytes']:.2f}"


def _table(head: tuple[str, ...], rows: list) -> list[str]:
    rule = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines; default: all in bench/results/")
    paths = parser.parse_args().files or sorted(results.FOLDER.glob("*.jsonl"))
    if not paths:
        parser.error(f"no records in {results.FOLDER}: run python -m bench.run first")
    for path in paths:
        records = results.load(path)
        text = report(records)
        print(text)
        path.with_suffix(".md").write_text(text)
        for name, figure in plots.figures(records, title(records)).items():
            figure.savefig(path.with_name(f"{path.stem}-{name}.png"), dpi=150)


if __name__ == "__main__":
    main()
