"""csrc/cuda compiled by nvcc for sm_80 and sm_90: no warning, no spilled register, every kernel that is launched."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cuda_host
import pytest

import kdkernels as kd

NVCC = shutil.which("nvcc")
pytestmark = [pytest.mark.cuda_build, pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")]

SOURCES = ("float32", "float16", "bfloat16", "device")
TARGETS = ("sm_80", "sm_90")
ELEMENTS = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}
# A kernel's name and what of its mangled template arguments tells two of them apart.
FORMS = (("rows_by_lanes", ""), ("rows_by_blocks", "Lb1E"), ("rows_by_blocks", "Lb0E"), ("rows_by_clusters", ""))
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'\n.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Entry(NamedTuple):
    """What ptxas says of a kernel; shared: bytes that it takes beside what a launch asks for."""

    name: str
    target: str
    spilled: int
    registers: int
    shared: int

    def has(self, *identifiers: str) -> bool:
        """Whether all of them occur in the mangled name, where an identifier follows its length."""
        return all(f"{len(each)}{each}" in self.name for each in identifiers)


def compiled(source, directory):
    """What nvcc prints when it compiles a source for all targets, and what it says of each kernel."""
    command = [NVCC, "-std=c++17", "-O3", "-Xptxas", "-v", "-c", str(cuda_host.CSRC / "cuda" / f"{source}.cu")]
    command += [f"-gencode=arch=compute_{target[3:]},code={target}" for target in TARGETS]
    done = subprocess.run([*command, "-o", str(directory / f"{source}.o")], capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-8000:]
    return output, [_entry(found) for found in REPORT.finditer(output)]


def _entry(found):
    spilled = sum(int(found[each]) for each in ("stack", "stores", "loads"))
    shared = re.search(r"(\d+) bytes smem", found["rest"])
    return Entry(found["name"], found["target"], spilled, int(found["registers"]), int(shared[1]) if shared else 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """{source: (output, entries)}: some 10 seconds of a core for each dtype."""
    directory = tmp_path_factory.mktemp("cuda")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOURCES, pool.map(lambda source: compiled(source, directory), SOURCES), strict=True))


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_warning(built, source):
    assert "warning" not in built[source][0].lower()


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_no_kernel_spills(built, dtype):
    entries = built[dtype][1]
    assert len(entries) == built[dtype][0].count("Compiling entry function")
    assert [each for each in entries if each.spilled] == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_every_form_of_every_schedule_is_there(built, dtype, target):
    entries = [each for each in built[dtype][1] if each.target == target]
    works = re.findall(r"struct (\w+Work)\b", (cuda_host.CSRC / "cuda" / "works.h").read_text())
    assert "DivergenceWork" in works
    schedules = [(work, "") for work in works if work != "DivergenceWork"]
    terms = ["PerturbedOf" if loss is kd.Perturbed else loss.__name__ for loss in kd.LOSSES.values()]
    schedules += [("DivergenceWork", term) for term in terms]
    wanted = [(*form, *filter(None, schedule)) for form in FORMS for schedule in schedules]
    wanted += [("trilateral_gradient", ""), ("scale_rows", "")]
    for kernel, staged, *arguments in wanted:
        found = [x for x in entries if x.has(kernel, *arguments, ELEMENTS[dtype]) and staged in x.name]
        assert len(found) == 1, (kernel, staged, arguments)
    assert len(entries) == len(wanted)


@pytest.mark.parametrize(
    ("target", "limit", "largest_cluster"), [("sm_80", 163, 1), ("sm_80", 99, 1), ("sm_90", 227, 16)]
)
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_what_is_staged_fits_beside_what_a_kernel_has_of_its_own(
    built, tmp_path_factory, dtype, target, limit, largest_cluster
):
    """A device's limit holds for both together. 99 KiB: sm_86 and sm_89, for which the code of sm_80 runs."""
    host, item = cuda_host.load(tmp_path_factory.getbasetemp()), 4 if dtype == "float32" else 2
    for kernel, form in (("rows_by_lanes", 0), ("rows_by_blocks", 1), ("rows_by_clusters", 2)):
        own = max(x.shared for x in built[dtype][1] if x.target == target and x.has(kernel))
        for tensors in (1, 2):
            plans = (host.plan(v, item, tensors, limit * 1024, largest_cluster) for v in range(1, 300_000, 61))
            largest = max((plan.shared for plan in plans if plan.form == form), default=0)
            assert largest + own <= limit * 1024, (kernel, tensors)
