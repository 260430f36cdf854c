"""What the papers need around their losses, as modules that are imported when they are first named.

from kdkernels.methods import pt      # perturbed loss (PTLoss): proxy teachers, and the search for coefficients
from kdkernels.methods import tgeo    # trilateral geometry (TGeo-KD): a fusion ratio per sample, learnt bilevel
from kdkernels.methods import auxiliary  # auxiliary-variable KD: the student's own features retrieve a prediction
from kdkernels.methods import complexity  # how complex labels or teachers are for a student, by its tangent kernel
from kdkernels.methods import online  # online distillation: the student learns from the teacher of its own moment

`import kdkernels as kd; kd.methods.pt.search_coefficients(...)` does as well.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import auxiliary, complexity, online, pt, tgeo

__all__ = ["auxiliary", "complexity", "online", "pt", "tgeo"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
