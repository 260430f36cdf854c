"""Every check of what users pass and every message: argument, rule, what came; all before anything is launched."""

from .memory import distributed, inplace, placements, readable
from .per_row import alpha, counted_labels, label_range, labels, mask, nothing_counted, weight
from .settings import REDUCTIONS, flag, ignore_index, reduction, squared, temperature, zero
from .sides import LOGIT_DTYPES, class_mean, logits, loss, loss_fits, pair

__all__ = [
    "LOGIT_DTYPES",
    "REDUCTIONS",
    "alpha",
    "class_mean",
    "counted_labels",
    "distributed",
    "flag",
    "ignore_index",
    "inplace",
    "label_range",
    "labels",
    "logits",
    "loss",
    "loss_fits",
    "mask",
    "nothing_counted",
    "pair",
    "placements",
    "readable",
    "reduction",
    "squared",
    "temperature",
    "weight",
    "zero",
]
