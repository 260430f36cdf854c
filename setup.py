"""Builds kdkernels._C with ninja: one source per instruction set, each with its own flags, and no torch header.

The CUDA sources are compiled where nvcc and an NVIDIA driver are found, or when asked for: KDKERNELS_CUDA=1 compiles
them (an error without nvcc), KDKERNELS_CUDA=0 leaves them out. Their runtime is linked statically, so that the module
imports on a machine without a driver.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
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
    isas = ISA_FLAGS if X86 else {"baseline": ISA_FLAGS["baseline"]}
    cuda = {f"cuda/{name}.cu": [] for name in CUDA_SOURCES} if nvcc() else {}
    return {"bind.cpp": [], "cpu/isa.cpp": []} | {f"cpu/{isa}.cpp": flags for isa, flags in isas.items()} | cuda


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


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
    import pybind11

    includes = [f"-isystem {path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    defines = [*(["-DKD_X86"] if X86 else []), *(["-DKD_CUDA"] if nvcc() else [])]
    cuda_rule, cuda_libraries = cuda_lines()
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join([*FLAGS, *defines, *includes, *os.environ.get('CXXFLAGS', '').split()])}",
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


class NinjaBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(ninja_file(build, target))
        subprocess.run([*ninja(), "-C", str(build)], check=True)


def ninja() -> list[str]:
    """The build requirement's own executable: a path need not lead to it."""
    import ninja as package

    name = "ninja.exe" if sys.platform == "win32" else "ninja"
    return [str(Path(package.BIN_DIR) / name)]


# Relative paths: a source distribution takes along what an extension names.
EVERY = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*") if path.is_file())
EXTENSION = Extension(
    "kdkernels._C",
    sources=[path for path in EVERY if path.endswith(".cpp")],
    depends=[path for path in EVERY if not path.endswith(".cpp")],
)

setup(ext_modules=[EXTENSION], cmdclass={"build_ext": NinjaBuild})
