"""python -m bench.sanitize: every CUDA kernel once, on rows that reach each of its forms; what compute-sanitizer runs.

Small: the sanitizer takes a hundred times as long as the kernels do. Each result is compared with the reference, so
that a run that wrote nothing does not pass.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import kdkernels as kd

from .cases import loss_of

# Lanes of a warp, a block, a cluster, and longer than any on-chip form takes.
VOCABULARIES = (7, 1000, 1271, 6000, 40000, 950_000)
ROWS = 3
DTYPES = (torch.float32, torch.bfloat16)
BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def results(op: str, student: Tensor, teacher: Tensor, labels: Tensor, backend: str) -> list[Tensor]:
    """Value and gradient. The reference runs on the CPU, so that the sanitizer sees kernels of this package only."""
    device = "cpu" if backend == "reference" else student.device
    leaf = student.detach().to(device).requires_grad_()
    teacher, labels = teacher.to(device), labels.to(device)
    if op == "trilateral_distances":
        value = kd.trilateral_distances(leaf, teacher, labels, backend=backend)
    elif op == "softmax":
        value = kd.softmax(leaf, backend=backend)
    else:
        loss = loss_of(op, student.shape[-1], device)
        value = kd.distillation(leaf, teacher, labels, loss, temperature=2.0, reduction="none", backend=backend)
    upstream = torch.linspace(0.5, 1.5, value.numel(), device=value.device).view(value.shape).to(value.dtype)
    (gradient,) = torch.autograd.grad(value, leaf, upstream)
    return [value.detach(), gradient]


def check(op: str, vocab: int, dtype: torch.dtype) -> float:
    """The largest relative L2 error of the native backend; columns are sliced so that no row is aligned."""
    generator = torch.Generator().manual_seed(vocab)
    student, teacher = (torch.randn(ROWS, vocab + 3, generator=generator).to("cuda", dtype)[:, 1:-2] for _ in range(2))
    labels = torch.randint(vocab, (ROWS,), generator=generator).cuda()
    got, want = (results(op, student, teacher, labels, backend) for backend in ("native", "reference"))
    pairs = ((a.float().cpu(), b.float()) for a, b in zip(got, want, strict=True))
    return max(float(torch.dist(a, b) / b.norm()) for a, b in pairs)


def main() -> int:
    wrong = 0
    for op in (*kd.LOSSES, "softmax", "trilateral_distances"):
        for vocab in VOCABULARIES:
            for dtype in DTYPES:
                error = check(op, vocab, dtype)
                wrong += not error <= BOUND[dtype]
                print(f"{op} {vocab} {dtype}: {error:.1e}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
