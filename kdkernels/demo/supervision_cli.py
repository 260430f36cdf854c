"""The command line of `kdkernels.demo.complexity`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from time import perf_counter

import torch

from . import digits, output, supervision_report
from .cli import positive
from .supervision import Protocol, run

PICTURE, NUMBERS = "complexity.png", "complexity.json"


def main(arguments: list[str] | None = None) -> int | str:
    """Measure; returns what to give to `sys.exit`."""
    options = parse(arguments)
    try:
        output.prepare(options.out, (PICTURE, NUMBERS))
    except output.NotOurs as error:
        return str(error)
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    protocol = Protocol().quick() if options.quick else Protocol()
    measure(replace(protocol, seeds=options.seeds or protocol.seeds), options.out)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kdkernels.demo.complexity",
        description="Measures how complex labels, random labels, an offline and an online teacher are for a student "
        f"that learns scikit-learn's digits; prints a table and writes {PICTURE} and {NUMBERS}.",
    )
    text = f"repetitions ({Protocol().seeds}; quick: {Protocol().quick().seeds})"
    parser.add_argument("--seeds", type=positive, metavar="N", help=text)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("demo_results"), help="folder of the results (%(default)s)")
    return parser.parse_args(arguments)


def measure(protocol: Protocol, out: Path) -> None:
    """Run, print, write."""
    start = perf_counter()
    splits = digits.load()
    description = protocol.describe(splits)
    print(fill(description, 110), end="\n\n", flush=True)
    runs = list(run(splits, protocol))
    seconds = perf_counter() - start
    content = supervision_report.document(runs, protocol, description, seconds, output.WRITER)
    output.write(out / NUMBERS, content.encode())
    output.write(out / PICTURE, supervision_report.picture(runs, protocol, output.WRITER))
    print(f"\n{supervision_report.table(runs)}\n\n{supervision_report.words(runs)}")
    print(f"{seconds:.0f} s; wrote {PICTURE} and {NUMBERS} to {out}")
