"""Builds kdkernels._C with ninja: one source per instruction set, each with its own flags, and no torch header.

The CUDA sources are compiled where nvcc and an NVIDIA driver are found, or when asked for: KDKERNELS_CUDA=1 compiles
them (an error without nvcc), KDKERNELS_CUDA=0 leaves them out. Their runtime is linked statically, so that the module
imports on a machine without a driver. KDKERNELS_NATIVE=0 builds no extension at all, and needs no compiler.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")

# Neither errno nor floating-point traps are looked at: without them selects and roots vectorise. Infinities and NaNs
# keep their meaning, so nothing of -ffast-math is wanted.
FLAGS = "-std=c++17 -O3 -fPIC -fopenmp -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall".split()
ISA_FLAGS = {
    "baseline": ["-march=x86-64-v2"] if X86 else [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-march=x86-64-v2"],
    "avx512": ["-march=skylake-avx512", "-mprefer-vector-width=512"],
}


CUDA_SOURCES = ("float32", "float16", "bfloat16", "device")
# Machine code for Ampere (Ada runs it too) and Hopper, and PTX from which the driver compiles for what comes later.
CUDA_FLAGS = (
    "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden "
    "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]"
).split()


def sources() -> dict[str, list[str]]:
    """Each source with the flags that are its own."""
    cuda = {f"cuda/{name}.cu": [] for name in CUDA_SOURCES} if nvcc() else {}
    # Only bind.cpp knows Python: pip's isolated builds have pybind11 in another folder each time, for ninja a change.
    return (
        {"bind.cpp": include_flags(), "cpu/isa.cpp": []}
        | {f"cpu/{isa}.cpp": flags for isa, flags in isa_flags().items()}
        | cuda
    )


def compiler() -> str:
    return os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), "g++")


PROBE = """
#include <Python.h>
#include <omp.h>
#include <string_view>
template <class T> constexpr int bytes() { if constexpr (sizeof(T) > 1) return sizeof(T); else return 1; }
inline constexpr std::string_view text = "C++17";
int probe() { return omp_get_max_threads() + bytes<int>() + int(text.size()); }
"""
REMEDY = (
    "Install one (apt install g++, dnf install gcc-c++, conda install gxx), name another with CXX=, or do without the "
    "compiled extension with KDKERNELS_NATIVE=0, which leaves plain PyTorch on CPUs."
)


def check_compiler() -> None:
    """One sentence in place of what ninja would say of every source."""
    python = sysconfig.get_paths()["include"]
    command = [*shlex.split(compiler()), *FLAGS, f"-isystem{python}", "-shared", "-x", "c++", "-"]
    if not shutil.which(command[0]):
        missing = f"CXX={os.environ['CXX']} is not" if os.environ.get("CXX") else "neither g++ nor clang++ is"
        raise SystemExit(f"kdkernels is compiled from C++, and {missing} on the PATH. {REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        for flags in isa_flags().values():
            arguments = [*command, *flags, "-o", str(Path(folder, "probe.so"))]
            done = subprocess.run(arguments, input=PROBE, capture_output=True, text=True)
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
                raise SystemExit(
                    f"kdkernels needs a compiler with C++17, OpenMP and today's instruction sets (g++ >= 11, clang++ "
                    f">= 12 with libomp), and Python's headers (python3-dev); {compiler()} says: {said}\n{REMEDY}"
                )


def include_flags() -> list[str]:
    import pybind11

    return [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]


def isa_flags() -> dict[str, list[str]]:
    return ISA_FLAGS if X86 else {"baseline": ISA_FLAGS["baseline"]}


@functools.cache
def nvcc() -> Path | None:
    """The CUDA compiler if the CUDA sources are to be built."""
    wish = os.environ.get("KDKERNELS_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"KDKERNELS_CUDA must be 0, 1 or unset, got {wish!r}")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))
    if wish == "1" and not found:
        raise SystemExit("KDKERNELS_CUDA=1 needs nvcc: it is neither on the PATH nor in CUDA_HOME/bin")
    wanted = wish == "1" or (wish == "" and Path("/proc/driver/nvidia/version").exists())
    return Path(found).resolve() if wanted and found else None


def cuda_lines() -> tuple[list[str], str]:
    """ninja's rule for CUDA sources, and what it takes to link them."""
    compiler = nvcc()
    if compiler is None:
        return [], ""
    host = f" -ccbin {os.environ['CXX']}" if os.environ.get("CXX") else ""
    rule = [
        "rule compile_cuda",
        f"  command = {compiler} {' '.join(CUDA_FLAGS)}{host} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $out",
    ]
    root = toolkit(compiler)
    folders = [folder for folder in (root / "lib64", root / "lib", *root.glob("targets/*/lib")) if folder.is_dir()]
    return rule, " ".join([*(f"-L{folder}" for folder in folders), "-lcudart_static -ldl -lrt -lpthread"])


def toolkit(compiler: Path) -> Path:
    """Where a CUDA compiler's toolkit lies: it may be called through a script of another folder, so it is asked."""
    arguments = [str(compiler), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr
    return Path(next(line.split("=", 1)[1] for line in said.splitlines() if line.startswith("#$ TOP="))).resolve()


def ninja_file(build: Path, target: Path) -> str:
    defines = [*(["-DKD_X86"] if X86 else []), *(["-DKD_CUDA"] if nvcc() else [])]
    cuda_rule, cuda_libraries = cuda_lines()
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join([*FLAGS, *defines, *os.environ.get('CXXFLAGS', '').split()])}",
        "rule compile",
        "  command = $cxx $flags $own -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $out",
        "rule link",
        f"  command = $cxx -shared -fopenmp $in {cuda_libraries} -o $out",
        *cuda_rule,
    ]
    objects = []
    for source, own in sources().items():
        objects.append(str(build / (source.replace("/", "_") + ".o")).replace(" ", "$ "))
        path = str(CSRC / source).replace(" ", "$ ").replace(":", "$:")
        rule = "compile_cuda" if source.endswith(".cu") else "compile"
        lines += [f"build {objects[-1]}: {rule} {path}", f"  own = {' '.join(own)}"]
    return "\n".join([*lines, f"build {str(target).replace(' ', '$ ')}: link {' '.join(objects)}", ""])


class ExtensionFirst(build):
    """A compiler that is missing is said before a hundred files are copied."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


class NinjaBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        check_compiler()
        folder = Path(self.build_temp).resolve()
        if self.editable_mode:  # a folder that is thrown away: there ninja would compile everything each time
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(folder, target))
        if subprocess.run([*ninja(), "-C", str(folder)]).returncode:
            raise SystemExit("kdkernels: the C++ compiler failed; its errors stand above")
        leave_in_place(target)


def leave_in_place(built: Path) -> None:
    """The extension beside its sources too: Python that is started in a checkout imports the checkout's package, and
    not the one that is installed."""
    place = ROOT / "kdkernels" / built.name
    if built != place and os.access(place.parent, os.W_OK):
        fresh = place.with_suffix(".new")
        shutil.copy2(built, fresh)
        fresh.replace(place)  # and not written over: a process may be running it


def ninja() -> list[str]:
    """The build requirement's own executable: a path need not lead to it."""
    import ninja as package

    name = "ninja.exe" if sys.platform == "win32" else "ninja"
    return [str(Path(package.BIN_DIR) / name)]


def native() -> bool:
    wish = os.environ.get("KDKERNELS_NATIVE") or "1"
    if wish not in ("0", "1"):
        raise SystemExit(f"KDKERNELS_NATIVE must be 0, 1 or unset, got {wish!r}")
    return wish == "1"


# Relative paths: a source distribution takes along what an extension names.
EVERY = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*") if path.is_file())
EXTENSION = Extension(
    "kdkernels._C",
    sources=[path for path in EVERY if path.endswith(".cpp")],
    depends=[path for path in EVERY if not path.endswith(".cpp")],
)

setup(ext_modules=[EXTENSION] if native() else [], cmdclass={"build": ExtensionFirst, "build_ext": NinjaBuild})
