"""Runs the demo, or says how to install what it needs."""

from __future__ import annotations

import sys

NEEDED = ("matplotlib", "numpy", "safetensors", "sklearn", "tqdm")


def _main() -> int:
    try:
        from .cli import main
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in NEEDED:
            raise
        return f"kdkernels.demo needs {package}, which is not installed: pip install kdkernels[demo]"
    return main()


if __name__ == "__main__":
    sys.exit(_main())
