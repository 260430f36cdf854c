"""Distillation with an auxiliary variable: which of the teacher's past instances a sample resembles.

`InstanceBank` is a queue of what the teacher made of past samples, features and label distributions. `AuxiliaryKD` is
the criterion: the student's prediction is mixed with the one that its own feature retrieves from the bank, and both it
and the resemblances are drawn towards the teacher's. `auxiliary_divergence` is the loss beneath, row by row.

    criterion = auxiliary.AuxiliaryKD(student_dim=64, teacher_dim=128, num_classes=100)
    optimizer = torch.optim.AdamW([*student.parameters(), *criterion.parameters()], lr=1e-3)
    loss = criterion(student_logits, teacher_logits, student_features, teacher_features, index)

Source: ours. Of Peng, Fang, Zhang, Lu, "Knowledge Distillation with Auxiliary Variable", ICML 2024 (PMLR 235), only the
abstract was open to us: the student's predictive distribution is rewritten with an auxiliary variable that is related
to the target. This package realises that idea with instance membership as the variable. It is not the authors' code,
nor are its formulas their equations.
"""

from .bank import InstanceBank
from .divergence import auxiliary_divergence
from .module import AuxiliaryKD

__all__ = ["AuxiliaryKD", "InstanceBank", "auxiliary_divergence"]
