"""The command line of the demo."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from time import perf_counter

import torch

from . import digits, output, report
from .experiment import run
from .methods import METHODS
from .plot import alpha_histogram, learning_curves
from .protocol import Protocol

CURVES, ALPHAS, NUMBERS = "learning_curves.png", "tgeo_alpha.png", "results.json"


def main(arguments: list[str] | None = None) -> int | str:
    """Run the comparison; returns what to give to `sys.exit`."""
    options = parse(arguments)
    try:
        output.prepare(options.out, (CURVES, ALPHAS, NUMBERS))
    except output.NotOurs as error:
        return str(error)
    torch.set_num_threads(1)  # networks this small lose time to a second thread
    protocol = Protocol().quick() if options.quick else Protocol()
    given = {name: getattr(options, name) for name in ("seeds", "epochs") if getattr(options, name)}
    compare(replace(protocol, **given), options.out)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kdkernels.demo",
        description="Distils a teacher CNN into small students on scikit-learn's handwritten digits; "
        f"prints a table and writes {CURVES}, {ALPHAS} and {NUMBERS}.",
    )
    full, quick = Protocol(), Protocol().quick()
    numbers = {"type": positive, "metavar": "N"}
    parser.add_argument("--seeds", **numbers, help=f"repetitions ({full.seeds}; quick: {quick.seeds})")
    parser.add_argument("--epochs", **numbers, help=f"of each student ({full.epochs}; quick: {quick.epochs})")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("demo_results"), help="folder of the results (%(default)s)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def compare(protocol: Protocol, out: Path) -> None:
    """Run, print, write."""
    start = perf_counter()
    splits = digits.load()
    description = protocol.describe(*map(len, splits))
    print(fill(description, 110), end="\n\n", flush=True)
    outcomes, teacher = run(splits, METHODS, protocol)
    rows = report.summary(outcomes)
    seconds = perf_counter() - start
    content = report.document(outcomes, rows, teacher, protocol, description, seconds, output.WRITER)
    output.write(out / NUMBERS, content.encode())
    output.write(out / CURVES, learning_curves(outcomes, teacher, protocol, output.WRITER))
    findings = [finding for outcome in outcomes for finding in outcome.findings]
    output.write(out / ALPHAS, alpha_histogram(findings, output.WRITER))
    print(f"\n{report.table(rows, teacher)}\n\n{report.notes(rows, protocol)}{report.alpha_note(outcomes)}")
    print(f"{seconds:.0f} s; wrote {CURVES}, {ALPHAS} and {NUMBERS} to {out}")
