"""`make sanitize`: the compiled extension under AddressSanitizer with UndefinedBehaviorSanitizer, and under
ThreadSanitizer, while the tests of the native kernels and some thousand fuzz cases run.

A copy of the package with its own build lies in build/sanitize/<kind>; the checkout's extension is not touched. What is
switched off, and why:

- detect_leaks=0: Python and torch keep most of what they allocate until the process ends.
- Only our code is instrumented; torch's and Python's accesses are not looked at. Sanitizers see what they allocate.
- ThreadSanitizer knows nothing of libgomp's barriers and would report every parallel region. The extension is linked
  with _fuzz_gomp.cpp instead, which makes and joins threads that it does know, so that no report of ours is suppressed.
- race:libtorch_cpu.so: torch's own parallel loops run on libgomp still, and the memcpy in them is seen. A stack of ours
  never has that library in it: only instrumented frames, and who called an interceptor, are on ThreadSanitizer's.
- race:_dl_deallocate_tls: glibc hands the thread-local memory of a thread that has ended to the next, under a lock that
  is not intercepted.
- A test that forks, or that starts a Python without the sanitizer, is left out by name (LEFT_OUT).

The verdict is what the sanitizers report. That a number is nearer than its tolerance is not asked for here: the checks
keep loops from vectorising, and sums in one lane round more often.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "python_tests"
KINDS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread", "-O1"],
}
LIBRARIES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
SUPPRESSED = "race:libtorch_cpu.so\nrace:_dl_deallocate_tls\n"
SUITES = {  # the tests that run the native kernels; for threads those that use several
    "address": "test_short_rows test_layouts test_semantics test_extremes test_inplace test_trilateral_extremes "
    "test_trilateral_semantics test_half test_coefficients test_threads",
    "thread": "test_threads test_short_rows test_fuzz_surroundings",
}
LEFT_OUT = "forked or small_stack or number_of_threads and 40000"
CASES = {"address": 5000, "thread": 500}


def tools(place: Path) -> Path:
    """pybind11 and ninja, which pip otherwise fetches for each build alone, in the pinned versions."""
    folder = place / "tools"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
        subprocess.run([*command, "-c", ROOT / "constraints.txt", "pybind11", "ninja"], check=True)
    return folder


def build(kind: str, place: Path) -> None:
    """The package's copy with an extension of its own; what is up to date is not compiled again."""
    shutil.copytree(ROOT / "kdkernels", place / "kdkernels", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so"))
    if not (place / "python_tests").exists():
        (place / "python_tests").symlink_to(TESTS)
    flags = " ".join(["-g1", "-fno-omit-frame-pointer", *KINDS[kind]])
    environment = os.environ | {"PYTHONPATH": str(tools(place.parent)), "KDKERNELS_CUDA": "0", "CXXFLAGS": flags}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", place, "--build-temp", place / "temp"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    if kind == "thread":
        target = place / "kdkernels" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-g1", *KINDS[kind]]
        objects = sorted((place / "temp").glob("*.o"))
        subprocess.run([*command, *objects, TESTS / "_fuzz_gomp.cpp", "-o", target], check=True)


def environment(kind: str, place: Path) -> dict[str, str]:
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True) for name in LIBRARIES[kind]]
    (place / "suppressed").write_text(SUPPRESSED)
    log = f"log_path={place / 'report'}"
    options = {"ASAN_OPTIONS": f"{log}:detect_leaks=0", "UBSAN_OPTIONS": f"{log}:print_stacktrace=1"}
    options["TSAN_OPTIONS"] = f"{log}:exitcode=66:suppressions={place / 'suppressed'}"
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | options | {"LD_PRELOAD": " ".join(x.strip() for x in found), "PYTHONPATH": ":".join(paths)}


def run(kind: str, place: Path) -> bool:
    """Whether no sanitizer reported anything; from the copy's folder, so that it is what is imported."""
    for old in place.glob("report*"):
        old.unlink()
    suite = [f"python_tests/{name}.py" for name in SUITES[kind].split()]
    pytest = ["pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "--no-summary", "-k", f"not ({LEFT_OUT})", *suite]
    fuzz = ["python_tests.fuzz_sanitized", "--play", str(CASES[kind])]
    for rest in (pytest, fuzz):
        code = subprocess.run(
            [sys.executable, "-m", *rest], cwd=place, env=environment(kind, place), check=False
        ).returncode
        if code not in (0, 1, 66):  # 1: tests failed; 66: ThreadSanitizer's
            raise SystemExit(f"{kind}: {rest[0]} ended with {code}")
    reports = sorted(place.glob("report*"))
    for report in reports:
        print(report.read_text()[:20000])
    return not reports


def play(cases: int) -> None:
    """Fuzz cases in this process, whose package has to be the sanitized one."""
    sys.path.insert(0, str(TESTS))
    from fuzz_cases import Failure, as_in_the_suite, play
    from fuzz_choices import seeded

    import kdkernels

    assert "sanitize" in kdkernels.__file__, kdkernels.__file__
    played = inexact = 0
    with as_in_the_suite():
        for index in range(2 * cases):
            try:
                played += play(("legal", "illegal")[index % 2], seeded(index))
            except Failure as failure:
                if "off by" not in str(failure):
                    raise
                inexact += 1
    print(f"{played} fuzz cases with torch {importlib.metadata.version('torch')}, {inexact} less exact than vectorised")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=[*KINDS])
    parser.add_argument("--play", type=int)
    wish = parser.parse_args()
    if wish.play:
        play(wish.play)
        return 0
    clean = {}
    for kind in wish.kinds:
        place = ROOT / "build" / "sanitize" / kind
        build(kind, place)
        clean[kind] = run(kind, place)
    print(", ".join(f"{kind}: {'clean' if good else 'NOT CLEAN'}" for kind, good in clean.items()))
    return 0 if all(clean.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
