"""Online distillation: the student learns from the teacher of its own moment, an early one early and the last one last.

`TeacherTrajectory` keeps the checkpoints of a teacher's training and replays them, `SideBySide` trains the teacher in
the same loop instead, and `online_distillation` is the loss for both.

Source: Harutyunyan et al., "Supervision Complexity and its Role in Knowledge Distillation", ICLR 2023 (arXiv
2301.12245), algorithm 1: the teacher's checkpoints at t_1 < ... < t_m, the student's training in (t_{i-1}, t_i] under
that of t_i, as we recall it. The format of the checkpoints and the side by side training are ours.
"""

from .distillation import logit_mse, online_distillation
from .side_by_side import SideBySide
from .trajectory import TeacherTrajectory

__all__ = ["SideBySide", "TeacherTrajectory", "logit_mse", "online_distillation"]
