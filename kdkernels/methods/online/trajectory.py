"""The checkpoints of a teacher's training, and the teacher of any moment of it."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor, distributed, nn

from . import arguments, checkpoint, states

_NAME = re.compile(r"step-([0-9]{12}|[1-9][0-9]{12,})\.safetensors")  # one name for each step


class TeacherTrajectory:
    """A folder with checkpoints of a teacher, recorded while it trains and replayed while a student does::

        trajectory = online.TeacherTrajectory("teacher")           # in the teacher's loop
        trajectory.record(step, teacher)                           # every so many steps

        trajectory = online.TeacherTrajectory("teacher", teacher)  # in the student's loop
        loss = online.online_distillation(student(x), x, labels, trajectory, step / steps)

    Equivalent to ``torch.save(teacher.state_dict())`` for each step and ``load_state_dict(torch.load())`` at the right
    moment, but one teacher is in memory: a file is streamed into the parameters that are there, and no second
    state_dict is held. Nothing is ever unpickled.

    On disk: ``step-000000001200.safetensors`` with the metadata {"format": "kdkernels.trajectory", "step": "1200"}. A
    file appears whole or not at all, whenever its writer is killed. The files are safetensors files like any others,
    but with tied weights written under each of their names.

    Args:
        folder: a path; made by the first `record`.
        model: the nn.Module to load into, for `at` and `load`; the checkpoints' names and shapes, on any device, in any
            floating point dtype. It is the trajectory's from then on: no training of it, no other weights.

    Raises:
        TypeError, ValueError: an argument of another kind or value; a file that is damaged, foreign or another model's.
        FileNotFoundError: there is no checkpoint, or not this one.
        ImportError: safetensors is not installed (``pip install kdkernels[online]``).

    Source: the trajectory is that of algorithm 1 in Harutyunyan et al., ICLR 2023 (arXiv 2301.12245), as we recall it;
    the format is ours.
    """

    def __init__(self, folder: str | os.PathLike[str], model: nn.Module | None = None) -> None:
        self.folder = arguments.folder(folder)
        if model is not None:
            arguments.module("model", model)
        self._model = model
        self._loaded: tuple[int, ...] | None = None
        """Step and identity of the file that the model holds: one that is written anew is read anew."""

    @property
    def model(self) -> nn.Module | None:
        """What is loaded into, once and for all: another one would pass for holding what this one does."""
        return self._model

    def record(self, step: int, model: nn.Module | Mapping[str, Tensor], overwrite: bool = False) -> Path:
        """Write the checkpoint of a step; its path.

        Where the step is recorded already with the same content, bit for bit, nothing is done: a training that is
        resumed may record again. Where several write a step at once, what the first one wrote was there for the others
        (a file system with neither hard links nor locks may replace it). Where torch.distributed is initialised every
        rank may call it, and rank 0 writes; no rank waits for it. Temporary files of writers that were killed are
        removed.

        Args:
            step: of the teacher's training, an int >= 0.
            model: an nn.Module, of which the state_dict is written (of a data parallel one, that of the module in it),
                or a mapping of names to tensors. The names are those without what torch.compile adds to the names of a
                module or of its parts. Any device, layout in memory and tying; whole dense tensors only.
            overwrite: replace a checkpoint of other content, which otherwise raises FileExistsError.
        """
        arguments.step(step)
        tensors = states.recorded(model, checkpoint.CODES)
        path = self._path(step)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
            return path
        checkpoint.safetensors()
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.sweep(self.folder)
        while not self._recorded(step, tensors, overwrite):
            with suppress(FileExistsError):  # another writer was faster: look at its file
                checkpoint.write(path, tensors, step, replace=overwrite)
                break
        return path

    def _recorded(self, step: int, tensors: Mapping[str, Tensor], overwrite: bool) -> bool:
        """Whether the step is there with this content."""
        path = self._path(step)
        if not path.exists():
            return False
        if checkpoint.same(path, tensors, step):
            return True
        arguments.replaceable(step, path, overwrite)
        return False

    @property
    def steps(self) -> tuple[int, ...]:
        """Those that are recorded, ascending, by the names in the folder as it is now."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return ()
        return tuple(sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match))

    @property
    def last(self) -> int | None:
        """The last step that is recorded, from which a teacher's training can go on; None where there is none."""
        return max(self.steps, default=None)

    def __len__(self) -> int:
        return len(self.steps)

    def __contains__(self, step: object) -> bool:
        return step in self.steps

    def step_at(self, progress: float) -> int:
        """Which checkpoint is the teacher at this progress of the student.

        With checkpoints t_1 < ... < t_m, the first t_i >= progress * t_m: the student's training in (t_{i-1}, t_i], on
        a clock that ends at t_m, is under the teacher of t_i. So 0 gives t_1 and 1 gives t_m.
        """
        progress = arguments.progress(progress)
        steps = self.steps
        arguments.not_empty(steps, self.folder)
        # Quotients are compared, not products: k / n of the student meets k / n of the teacher without rounding.
        return steps[bisect_left(steps, progress, hi=len(steps) - 1, key=lambda step: step / steps[-1])]

    def at(self, progress: float) -> nn.Module:
        """The teacher at this progress in [0, 1], the part of the student's training that is done; see `step_at`.

        ``model`` with that checkpoint, read only if it holds another one; in eval mode, no parameter requiring grad.
        """
        step = self.step_at(progress)
        return self._ready() if self._identity(step) == self._loaded else self._read(step)

    def load(self, step: int) -> nn.Module:
        """As `at`, by step, and read whatever ``model`` holds."""
        arguments.step(step)
        arguments.there(step, self.steps, self.folder)
        return self._read(step)

    def _read(self, step: int) -> nn.Module:
        targets = states.destinations(self.model)
        identity, self._loaded = self._identity(step), None  # a copy that fails half-way must not pass for a whole one
        checkpoint.load(self._path(step), step, targets)
        self._loaded = identity
        return self._ready()

    def _ready(self) -> nn.Module:
        return self.model.eval().requires_grad_(False)

    def _identity(self, step: int) -> tuple[int, ...]:
        file = os.stat(self._path(step))
        return step, file.st_ino, file.st_mtime_ns, file.st_size

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:012d}.safetensors"
