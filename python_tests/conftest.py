"""Where the tests run, computed once at collection: every device that there is, every backend that can run on it."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Before torch loads its OpenMP: threads that spin at a barrier take ten times as long where others use the cores too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from cases import on

import kdkernels as kd

try:
    from kdkernels import _C
except ImportError:  # an installation without the extension; test_backends.py fails then, the rest still runs
    _C = None

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


class Target(NamedTuple):
    device: str
    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, self))


def _runs(device: str, backend: str) -> bool:
    """Whether this backend takes tensors of this device. Triton's interpreter on CPU tensors has tests of its own."""
    if backend == "triton" and device == "cpu":
        return False
    try:
        kd.softmax(torch.zeros(1, 2, device=device), backend=backend)
    except RuntimeError as error:
        if "cannot run" in str(error):
            return False
        raise
    return True


WHERE = [Target(device, backend) for device in DEVICES for backend in kd.backends() if _runs(device, backend)]
KERNELS = [target for target in WHERE if target.backend != "reference"]
TARGETS = [
    Target(target.device, target.backend, isa)
    for target in WHERE
    for isa in (_C.instruction_sets() if target[:2] == ("cpu", "native") else [None])
]


# What a quick run leaves out: files whose tests wait for other programs - compilers, demos, processes, training runs.
OTHER_PROGRAMS = re.compile(
    r"\b(subprocess|multiprocessing|run_examples|kdkernels\.demo|cuda_host|torch\.compile|transformers|_triton\w*)\b"
)
QUICK_CASES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="make test-quick: see CONTRIBUTING.md for what is left out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A quick run has every test function of the files that are left, with the first, middle and last of its cases."""
    if not config.getoption("--quick"):
        return
    cases: dict[tuple, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not OTHER_PROGRAMS.search(_source(item.path)):
            cases[item.path, item.originalname].append(item)
    kept = {id(each[len(each) * i // (QUICK_CASES - 1)]) for each in cases.values() for i in range(QUICK_CASES - 1)}
    kept |= {id(each[-1]) for each in cases.values()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


@cache
def _source(path: Path) -> str:
    return path.read_text()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda_build: csrc/cuda compiled by nvcc (about 50 seconds of one core)")
    config.addinivalue_line("markers", "usual_memory: leave torch.empty uninitialised (compilers and memory counts)")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """A loss that is a test's parameter was made on the CPU: its coefficients go to the device of the test. And where a
    GPU's backend says that it does not take the dtypes of a test (float64, mixed ones), the test is not for it."""
    given = pyfuncitem.funcargs
    place = next((given[name] for name in ("target", "where", "kernel") if name in given), None)
    place = place if isinstance(place, Target) else None
    if place and "loss" in given:
        given["loss"] = on(place.device, given["loss"])
    try:
        return (yield)
    except Exception as error:  # a test that expects another error, and torch's opcheck, wrap it
        refused = re.search(r"was asked for and cannot run: its .*", str(error))
        if place and place.device == "cuda" and refused:
            pytest.skip(refused[0])
        raise


@pytest.fixture(params=WHERE, ids=str)
def where(request: pytest.FixtureRequest) -> Target:
    """A device and a backend that runs there."""
    return request.param


@pytest.fixture(params=KERNELS, ids=str)
def kernel(request: pytest.FixtureRequest) -> Target:
    """A device and a backend that has kernels: for promises that plain PyTorch does not make."""
    return request.param


@pytest.fixture(params=TARGETS, ids=str)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """As `where`, with each instruction set of the CPU forced in turn."""
    if request.param.isa is None:
        yield request.param
        return
    usual = _C.instruction_set()
    _C.use_instruction_set(request.param.isa)
    try:
        yield request.param
    finally:
        _C.use_instruction_set(usual)


@pytest.fixture(autouse=True)
def nan_filled_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every torch.empty is full of NaN, so that an output which a kernel forgot to write shows."""
    if request.node.get_closest_marker("usual_memory"):
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
