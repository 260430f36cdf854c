"""Builds kdkernels._C with ninja: one source per instruction set, each with its own flags, and no torch header."""

from __future__ import annotations

import os
import platform
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


def sources() -> dict[str, list[str]]:
    """Each source with the flags that are its own."""
    isas = ISA_FLAGS if X86 else {"baseline": ISA_FLAGS["baseline"]}
    return {"bind.cpp": [], "cpu/isa.cpp": []} | {f"cpu/{isa}.cpp": flags for isa, flags in isas.items()}


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def ninja_file(build: Path, target: Path) -> str:
    import pybind11

    includes = [f"-isystem {path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    defines = ["-DKD_X86"] if X86 else []
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join([*FLAGS, *defines, *includes, *os.environ.get('CXXFLAGS', '').split()])}",
        "rule compile",
        "  command = $cxx $flags $own -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $out",
        "rule link",
        "  command = $cxx -shared -fopenmp $in -o $out",
    ]
    objects = []
    for source, own in sources().items():
        objects.append(str(build / (source.replace("/", "_") + ".o")).replace(" ", "$ "))
        path = str(CSRC / source).replace(" ", "$ ").replace(":", "$:")
        lines += [f"build {objects[-1]}: compile {path}", f"  own = {' '.join(own)}"]
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
