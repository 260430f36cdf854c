"""The logarithms that every loss against a mixture m = weight p + (1 - weight) q needs, for Triton terms."""

from __future__ import annotations

from .base import jit, tl


@jit
def log_over_mixture(log_ratio, q, p, weight):
    """(log(p / m), log(q / m), m) for m = weight p + (1 - weight) q, exact zeros at p = q.

    Everything is taken relative to the larger of p and q: the logarithm's argument then lies in [weight of the larger,
    1] and neither an overflowing ratio nor a second rounding of log m can enter. Undefined (NaN) where p = q = 0.
    """
    teacher_leads = p >= q
    leading = tl.where(teacher_leads, weight, 1.0 - weight)
    # Selects and not tl.minimum, tl.maximum: in this order of arguments a NaN on either side stays one.
    smaller = tl.where(p < q, p, q)
    larger = tl.where(q > p, q, p)
    log_m = tl.log(leading + (1.0 - leading) * (smaller / larger))
    log_p_over_m = tl.where(teacher_leads, -log_m, log_ratio - log_m)
    log_q_over_m = tl.where(teacher_leads, -log_ratio - log_m, -log_m)
    return log_p_over_m, log_q_over_m, weight * p + (1.0 - weight) * q
