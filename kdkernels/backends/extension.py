"""Why the compiled extension `kdkernels._C` is not there, and what to do about it."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INTERFACE = 2
"""What `csrc/bind.cpp` calls itself: an extension that was built from other sources is called with other arguments."""


def missing(error: ImportError) -> str:
    """In one sentence: it cannot be loaded, this is a checkout that was never built, it is another Python's, or it was
    left out of the installation."""
    built = _built(PACKAGE)
    if built:
        return f"the compiled extension {built} cannot be loaded: {error}"
    root = PACKAGE.parent
    others = ", ".join(sorted(path.name for path in PACKAGE.glob("_C.*.so")))
    found = f" for Python {'.'.join(map(str, sys.version_info[:2]))} (there is {others})" if others else ""
    if (root / "setup.py").is_file() and (root / "csrc").is_dir():
        build = f"`pip install -e {root}` compiles the checkout's, as does `python setup.py build_ext --inplace` there"
        hidden = _hidden()
        shadows = f", and it hides the kdkernels that is installed at {hidden}" if hidden else ""
        instead = "start Python in another folder, or " if hidden else ""
        return f"the checkout {root}, which Python imports, has no compiled extension{found}{shadows}: {instead}{build}"
    return (
        f"the compiled extension is not in {PACKAGE}{found}: it was left out (KDKERNELS_NATIVE=0) or built for another "
        f"Python; `{sys.executable} -m pip install --force-reinstall --no-deps` kdkernels with g++ or clang++ at hand"
    )


def stale(path: str) -> str:
    return (
        f"the compiled extension {path} was built from other sources than this package's: build it again "
        f"(`{sys.executable} -m pip install -e {PACKAGE.parent}` in a checkout)"
    )


def _hidden() -> Path | None:
    """Another kdkernels on the path, with its extension."""
    places = (Path(entry or ".").resolve() / PACKAGE.name for entry in sys.path)
    return next((place for place in places if place != PACKAGE and _built(place)), None)


def _built(package: Path) -> Path | None:
    names = (package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in names if path.is_file()), None)
