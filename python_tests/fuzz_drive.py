"""The bulk fuzzer, `make fuzz`: a million cases of fuzz_cases.py on all cores, and a shrunk reproducer of what fails.

    python python_tests/fuzz_drive.py --cases 1000000 --seconds 5400      # a fresh seed, printed
    python python_tests/fuzz_drive.py --seed 7 --start 250000             # goes on with seed 7
    python python_tests/fuzz_drive.py --replay legal 0,3,17               # one case by its choices

Case i of a seed is the same whatever the number of processes. Each process notes in shared memory the case that it is
at, so that a case that kills it (a segmentation fault, a hang) is named, and another process goes on behind it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

from fuzz_cases import BUILD, Failure, as_in_the_suite, describe, play
from fuzz_choices import Choices, replayed, seeded, shrink
from tqdm import tqdm

MIX = [*["legal"] * 16, *["illegal"] * 3, "exotic"]  # of twenty cases
STRIDE = 1 << 40  # from the cases of one seed to those of the next
HANGS = 120  # seconds, for one case
ENOUGH = 20  # failures, after which the rest is not worth the time
CONTEXT = get_context("spawn")


def choices_of(seed: int, index: int) -> Choices:
    return seeded(seed * STRIDE + index)


def work(at, played, failures, worker: int, seed: int, first: int, step: int, end: int, kinds: list[str]) -> None:
    """Plays every step-th case of [first, end)."""
    with as_in_the_suite():
        for index in range(first, end, step):
            at[worker] = index
            try:
                played[worker] += play(kinds[index % len(kinds)], choices_of(seed, index))
            except Failure as failure:
                played[worker] += 1
                failures.put((index, str(failure)))
    at[worker] = end


class Drive:
    """The processes, where each of them is, and what they found."""

    def __init__(self, wish: argparse.Namespace) -> None:
        self.wish, self.end = wish, wish.start + wish.cases
        self.at, self.played = CONTEXT.RawArray("q", wish.workers), CONTEXT.RawArray("q", wish.workers)
        self.failures = CONTEXT.SimpleQueue()
        self.found: list[tuple[int, str]] = []
        self.moved = [(-1, time.monotonic())] * wish.workers
        self.processes = [self.process(worker, wish.start + worker) for worker in range(wish.workers)]

    def process(self, worker: int, first: int) -> BaseProcess:
        self.at[worker] = first
        rest = (self.failures, worker, self.wish.seed, first, self.wish.workers, self.end, self.wish.kinds)
        process = CONTEXT.Process(target=work, args=(self.at, self.played, *rest), daemon=True)
        process.start()
        return process

    def look(self) -> bool:
        """Takes in what there is; whether any process has something to do."""
        self.take()
        busy = False
        for worker, process in enumerate(self.processes):
            at, now = self.at[worker], time.monotonic()
            if at != self.moved[worker][0]:
                self.moved[worker] = (at, now)
            elif process.is_alive() and now - self.moved[worker][1] > HANGS:
                process.kill()
                process.join()
            if at < self.end and not process.is_alive():
                self.found.append((at, f"the process died: exit code {process.exitcode}"))
                self.processes[worker] = self.process(worker, at + self.wish.workers)
            busy |= self.processes[worker].is_alive()
        return busy

    def run(self) -> None:
        began = time.monotonic()
        calm = 1.0 if sys.stderr.isatty() else 60.0
        with tqdm(total=self.wish.cases, unit="case", smoothing=0.05, mininterval=calm) as bar:
            while self.look() and len(self.found) < ENOUGH and time.monotonic() - began < self.wish.seconds:
                bar.update(min(self.at) - self.wish.start - bar.n)
                bar.set_postfix(failures=len(self.found), refresh=False)
                time.sleep(0.2)
        for process in self.processes:
            process.kill()
            process.join()
        self.take()

    def take(self) -> None:
        while not self.failures.empty():
            self.found.append(self.failures.get())


def in_a_child(kind: str, taken: list[int]) -> bool:
    """Whether these choices fail, found out in a fork: they may kill it."""
    child = os.fork()
    if child == 0:
        signal.alarm(HANGS)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            with as_in_the_suite():
                play(kind, replayed(taken))
        except Failure:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def reproducer(kind: str, choices: Choices, message: str) -> str:
    """The smallest choices that fail still, the call that they stand for and what it says."""
    case = BUILD[kind](choices)
    small = shrink(choices.taken, lambda taken: in_a_child(kind, taken))
    case = BUILD[kind](replayed(small)) or case
    try:
        if not message.startswith("the process died"):
            play(kind, replayed(small))
    except Failure as failure:
        message = str(failure)
    command = f"python python_tests/fuzz_drive.py --replay {kind} {','.join(map(str, small))}"
    return f"{message.splitlines()[0]}\n{describe(case)}\nagain: {command}"


def report(drive: Drive, wish: argparse.Namespace) -> None:
    """Each failure; a shrunk reproducer for the first of those whose messages start alike."""
    seen = set()
    for index, message in sorted(drive.found):
        kind, start = wish.kinds[index % len(wish.kinds)], message[:40]
        told = message if start in seen else reproducer(kind, choices_of(wish.seed, index), message)
        seen.add(start)
        print(f"\ncase {index}: {told}", flush=True)


def replay(kind: str, taken: str) -> None:
    choices = replayed([int(x) for x in taken.split(",") if x])
    with as_in_the_suite():
        print("it passes" if play(kind, choices) else "it is no case: not applicable, or known and open")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5400.0, help="stop after so long, wherever it is")
    parser.add_argument("--seed", type=int, default=None, help="a fresh one unless given")
    parser.add_argument("--start", type=int, default=0, help="the first case's number")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", nargs="+", choices=[*BUILD], default=MIX)
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "CHOICES"))
    return parser.parse_args()


def main() -> int:
    wish = arguments()
    if wish.replay:
        replay(*wish.replay)
        return 0
    wish.seed = secrets.randbelow(1 << 20) if wish.seed is None else wish.seed
    print(f"seed {wish.seed}, cases {wish.start} to {wish.start + wish.cases}, {wish.workers} processes", flush=True)
    began, drive = time.monotonic(), Drive(wish)
    drive.run()
    seconds, played, reached = time.monotonic() - began, sum(drive.played), min(drive.at)
    report(drive, wish)
    print(
        f"\nseed {wish.seed}: {played:,} cases in {seconds:.0f} s, {played / seconds:.0f} a second on {wish.workers} "
        f"processes; {len(drive.found)} failed. Go on with --seed {wish.seed} --start {reached}"
    )
    return 1 if drive.found else 0


if __name__ == "__main__":
    sys.exit(main())
