"""What a number depends on besides the code: the processor, the versions, the commit.

``python -m bench.machine cpu`` (or cuda) prints the name that the machine's results have.
"""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import kdkernels as kd

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "triton", "liger-kernel", "trl")


def facts(device: str) -> dict[str, Any]:
    instruction_set = _instruction_set() if device == "cpu" else "sm_{}{}".format(*torch.cuda.get_device_capability())
    name = _processor() if device == "cpu" else torch.cuda.get_device_name()
    return {
        "machine": re.sub(r"[^a-z0-9]+", "-", f"{name} {instruction_set}".lower()).strip("-"),
        "processor": name,
        "isa": instruction_set,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"kdkernels": kd.__version__, "python": platform.python_version()} | _versions(),
        "git": _git("rev-parse", "--short=12", "HEAD") or "none",
        # Results are written by the run itself: they make no tree dirty.
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!bench/results")),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _instruction_set() -> str:
    try:
        from kdkernels import _C
    except ImportError:
        return "reference"
    return _C.instruction_set()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if found:
            return re.sub(r"\((R|TM)\)|\s+CPU|\s*@.*", "", found[1]).strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":  # the name of this machine's results, for scripts
    print(facts(sys.argv[1])["machine"])
