"""``python -m kdkernels.demo.complexity``: the supervision complexity of labels and teachers over a student's training.

`supervision` says what is measured and how, `supervision_report` what is made of it. Here it is started, or said how to
install what it needs.
"""

from __future__ import annotations

import sys

from .__main__ import NEEDED


def main(arguments: list[str] | None = None) -> int | str:
    """Measure; returns what to give to `sys.exit`."""
    try:
        from . import supervision_cli
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in NEEDED:
            raise
        return f"kdkernels.demo.complexity needs {package}, which is not installed: pip install kdkernels[demo]"
    return supervision_cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
