"""python -m bench.run: measure the cases, print a line for each, and put the records into bench/results/.

A first run on a machine compiles torch.compile's kernels (inductor keeps them on disk); a second one does not.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from tqdm import tqdm

from . import machine, results
from .cases import cases, gpu_cases, quick_cases
from .contenders import OURS, STREAM
from .measure import QUICK, Limits, measure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in less than a minute; writes only with --out")
    parser.add_argument("--all", action="store_true", help="every operation x shape x dtype x mode; takes long")
    parser.add_argument("--only", default="", metavar="REGEX", help="the cases whose name matches, e.g. 'kl 512x.*32'")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch and of kdkernels")
    parser.add_argument("--seconds", type=float, help="time for the rounds of one case")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine>.jsonl, none with --quick")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and leave")
    return parser.parse_args()


def summary(record: results.Record) -> str:
    """One line: our time, and everyone else's as a multiple of it."""
    entries = dict(record["contenders"])
    ours = entries.pop(OURS)
    if "refused" in ours:
        return f"{record['case']:52} {ours['refused']}"
    others = (
        f"{name} {'-' if 'refused' in entry else format(entry['ratio'], '.2f') + 'x'}"
        for name, entry in sorted(entries.items(), key=lambda item: item[0] == STREAM)
    )
    return f"{record['case']:52} {ours['median_s'] * 1e3:9.3f} ms   " + "   ".join(others)


def main() -> None:
    options = _arguments()
    torch.set_num_threads(options.threads)
    standard = gpu_cases() if options.device == "cuda" and not options.all else cases(options.all)
    chosen = quick_cases() if options.quick else standard
    chosen = [case for case in chosen if re.search(options.only, case.name)]
    if options.list:
        print(*(case.name for case in chosen), sep="\n")
        return
    limits = QUICK if options.quick else Limits()
    if options.seconds:
        limits = Limits(seconds=options.seconds)
    facts = machine.facts(options.device)
    path = options.out or (None if options.quick else results.file_for(facts))
    with tqdm(chosen, unit="case", dynamic_ncols=True) as progress:
        for case in progress:
            progress.set_postfix_str(case.name)
            record = results.record(case, measure(case, options.device, limits), facts)
            tqdm.write(summary(record))
            if path:
                results.merge(path, [record])
    if path:
        print(f"{len(chosen)} records in {path}")


if __name__ == "__main__":
    main()
