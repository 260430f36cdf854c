"""What every loss against a mixture m = weight p + (1 - weight) q needs, for Triton terms."""

from __future__ import annotations

from .base import is_cuda, jit, tl


@jit
def _log2(x):
    """log2 of numbers in (0, 1], to 2^-22: one instruction for NVIDIA's GPUs, where tl.log2 is a polynomial."""
    if is_cuda():
        value = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        value = tl.log2(x)
    return value


@jit
def against_mixture(log_ratio, weight):
    """(log(p / m), log(q / m), (p - q) / m) for m = weight p + (1 - weight) q from log(p / q); exact zeros at p = q.

    No division, and nothing overflows: with r = smaller / larger = 2^-|log2 p/q|, m / larger = 1 + w (r - 1), w the
    weight of the smaller, lies in [1 - w, 1]; one logarithm of it serves both sides and, as 2^-log2, its reciprocal.
    NaN where p = q = 0.
    """
    teacher_leads = log_ratio >= 0.0
    less = tl.exp2(tl.abs(log_ratio) * -1.4426950408889634) - 1.0
    log2_m = _log2(1.0 + tl.where(teacher_leads, 1.0 - weight, weight) * less)
    gap = tl.where(teacher_leads, -less, less) * tl.exp2(-log2_m)
    log_m = log2_m * 0.6931471805599453
    return tl.minimum(log_ratio, 0.0) - log_m, -tl.maximum(log_ratio, 0.0) - log_m, gap
