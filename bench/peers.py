"""Installed libraries with the same computation from logits: TRL (plain PyTorch) and liger-kernel (Triton, GPU only).

Both are optional. Liger's divergences take log-probabilities or probabilities, so the softmax that its users have to
run first is inside the timing. Its chunked losses include the LM head and start from hidden states: no rival here.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Case, loss_of
from .rivals import Formula

_LIGER_OPS = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")


def names(case: Case, device: str) -> list[str]:
    """Which peers have this case; says nothing about whether their import will succeed."""
    found = []
    if case.op == "jensen_shannon" and find_spec("trl"):
        found.append("trl")
    if case.op in _LIGER_OPS and device == "cuda" and find_spec("liger_kernel"):
        found.append("liger")
    return found


def formula(name: str, case: Case) -> Formula:
    return _trl(case) if name == "trl" else _liger(case)


@cache
def _generalized_jsd_loss():
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss


def _trl(case: Case) -> Formula:
    function, beta = _generalized_jsd_loss(), loss_of(case.op, case.vocab).beta

    def call(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        # .float(): its trainer sees float32 logits, which is what accelerate makes of a bfloat16 model's output.
        return function(student.float(), teacher.float(), beta=beta, temperature=1.0, reduction="batchmean")

    return call


def _liger(case: Case) -> Formula:
    library = importlib.import_module("liger_kernel.transformers")
    normalise = F.log_softmax
    if case.op == "forward_kl":
        module = library.LigerKLDIVLoss(reduction="batchmean", log_target=True)
    elif case.op == "reverse_kl":
        module = library.LigerJSD(beta=1.0)
    elif case.op == "jensen_shannon":
        module = library.LigerJSD(beta=loss_of(case.op, case.vocab).beta)
    else:
        module, normalise = library.LigerTVDLoss(reduction="batchmean"), F.softmax

    def call(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return module(normalise(student, -1, dtype=torch.float32), normalise(teacher, -1, dtype=torch.float32))

    return call
