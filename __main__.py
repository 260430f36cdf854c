"""`python -m kdkernels` in the folder above a checkout, where no kdkernels is installed.

Python then takes the folder for an empty package, which can be imported and has no attributes.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent

raise SystemExit(
    f"{HERE} is a checkout of kdkernels, not the package, and kdkernels is not installed for this Python, so that "
    f"`import kdkernels` gives an empty package here: pip install {HERE}"
)
