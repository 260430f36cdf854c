"""The speed targets as data, and how a machine's records stand to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .cases import BOTH, HEADLINE, SHAPES
from .contenders import COMPILED, EAGER, INPLACE, OURS, STREAM, beside
from .results import Record

# The targets are for AVX-512; a CPU with half the vector width may miss them by this factor.
_NARROW_FACTOR = 1.5
_NOISE = 0.95  # "not slower" is kept by a median this close


@dataclass(frozen=True)
class Target:
    op: str
    shape: str
    versus: str
    goal: float
    """At least this many times as fast as `versus`; with `at_most`, at most this many times as slow."""
    at_most: bool = False
    name: str = OURS
    """The contender whose time it is."""
    relaxed: bool = True
    """Whether _NARROW_FACTOR applies."""


@dataclass(frozen=True)
class Standing:
    what: str
    goal: str
    measured: float | None
    verdict: str


def _targets() -> Iterator[Target]:
    for shape in ("512x32000", "256x128256"):
        yield Target("forward_kl", shape, EAGER, 8.0)
        yield Target("forward_kl", shape, COMPILED, 3.0)
        yield Target("forward_kl", shape, STREAM, 1.8, at_most=True, name=INPLACE)
        yield Target("jensen_shannon", shape, EAGER, 15.0)
        yield Target("jensen_shannon", shape, COMPILED, 5.0)
    for op in HEADLINE:
        for shape in ("128x1000", "4096x100"):
            yield Target(op, shape, EAGER, 3.0)
            yield Target(op, shape, COMPILED, 2.0)
        for versus in (EAGER, COMPILED):
            yield Target(op, "1024x10", versus, 1.0, relaxed=False)
        for rows, vocab in SHAPES:
            yield Target(op, f"{rows}x{vocab}", "float32", 1.0, relaxed=False)
    yield Target("perturbed", "512x32000", beside("forward_kl"), 1.3, at_most=True, relaxed=False)
    yield Target("trilateral_distances", "512x32000", EAGER, 8.0)
    for op in ("trilateral_distances", "trilateral_class_mean"):
        for shape in ("128x100", "4096x100"):
            yield Target(op, shape, EAGER, 3.0)
    yield Target("auxiliary_divergence", "256x16384", EAGER, 2.0)


def standings(records: list[Record]) -> list[Standing]:
    known = {record["case"]: record for record in records}
    narrow = any(record["device"] == "cpu" and "avx512" not in record["isa"] for record in records)
    return [_standing(target, known, narrow) for target in _targets()]


def _standing(target: Target, known: dict[str, Record], narrow: bool) -> Standing:
    factor = _NARROW_FACTOR if narrow and target.relaxed else 1.0
    measured = _measured(target, known)
    name = f"{target.op} {target.shape}"
    if target.at_most:
        limit = target.goal * factor
        met = measured is not None and measured <= limit
        strictly = met and measured <= target.goal
        left = "inplace, " if target.name == INPLACE else ""
        what, goal = f"{name}, {left}as a multiple of {target.versus}", f"<= {target.goal:g}"
    else:
        limit = target.goal / factor if target.relaxed else target.goal * _NOISE
        met = measured is not None and measured >= limit
        strictly = met and (measured >= target.goal or not target.relaxed)
        left = "bfloat16 " if target.versus == "float32" else ""
        what, goal = f"{name}, {left}speed-up over {target.versus}", f">= {target.goal:g}"
    if factor != 1.0:
        goal += f" (here {limit:.2g})"
    verdict = "no number" if measured is None else "met" if strictly else "met for this ISA" if met else "**missed**"
    return Standing(what, goal, measured, verdict)


def _measured(target: Target, known: dict[str, Record]) -> float | None:
    dtype = "bfloat16" if target.versus == "float32" else "float32"
    entries = _contenders(known, target, dtype)
    if target.versus == "float32":  # two cases, so not from the same rounds
        wide, narrow = _contenders(known, target, "float32").get(OURS, {}), entries.get(OURS, {})
        return wide["median_s"] / narrow["median_s"] if "median_s" in wide and "median_s" in narrow else None
    # Both are ratios to OURS, whose own is 1.
    mine, versus = (entries.get(name, {}).get("ratio") for name in (target.name, target.versus))
    if not mine or not versus:
        return None
    return mine / versus if target.at_most else versus / mine


def _contenders(known: dict[str, Record], target: Target, dtype: str) -> Record:
    record = known.get(f"{target.op} {target.shape} {dtype} {BOTH}")
    return record["contenders"] if record else {}
