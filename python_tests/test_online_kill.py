"""SIGKILL at random times while checkpoints are recorded and read: whatever is listed is whole, at every moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

import kdkernels
from kdkernels.methods import online

KILLS, STEPS = 30, 5


class Uniform(nn.Module):
    """A megabyte in forty tensors: a file of which a part is missing or older holds more than one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.full((6, 1000), value) for _ in range(40))

    def value(self) -> float:
        low, high = (float(bound) for bound in torch.cat(list(self.parts)).aminmax())
        assert low == high, f"a mixture of {low} and {high}"
        return low


def record_until_killed(folder: str, life: float, done: int) -> None:
    """Steps in turn, anew in each life; one byte is sent when one is recorded."""
    trajectory = online.TeacherTrajectory(folder)
    for number in count(int(life)):
        trajectory.record(number % STEPS, Uniform(life), overwrite=True)
        os.write(done, bytes([number % STEPS]))


def live_and_die(folder: str, life: int, seconds: float) -> dict[int, float]:
    """Fork a writer, read while it writes, kill it; what it had recorded."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            record_until_killed(folder, float(life), send)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(send)
    end = time.perf_counter() + seconds
    reader = online.TeacherTrajectory(folder, Uniform(-1.0))
    while (now := time.perf_counter()) < end:
        for step in reader.steps[:1]:
            reader.load(step).value()
        time.sleep(max(0.0, min(0.002, end - now)))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer did not live until it was killed"
    with os.fdopen(receive, "rb") as pipe:
        return dict.fromkeys(pipe.read(), float(life))


def temporaries(folder: str) -> int:
    return len(list(Path(folder).glob(".*")))


def seconds_of_a_record(folder: str) -> float:
    start = time.perf_counter()
    for _ in range(3):
        online.TeacherTrajectory(folder).record(STEPS, Uniform(-time.perf_counter()), overwrite=True)
    return min(0.05, (time.perf_counter() - start) / 3)


def main(folder: str) -> None:
    """In a process of its own that has never started a thread, so that it may fork: an import takes a second."""
    torch.set_num_threads(1)
    rng, known, interrupted, longest = random.Random(0), {}, 0, 3 * seconds_of_a_record(folder)
    reader = online.TeacherTrajectory(folder, Uniform(-1.0))
    for life in range(KILLS):
        known |= live_and_die(folder, life, rng.uniform(0, longest))
        interrupted += temporaries(folder) > 0
        values = {step: reader.load(step).value() for step in reader.steps}
        # A writer may have died between its rename and its report: then the file is newer than what it told.
        assert known.keys() <= values.keys() and all(known[step] <= values[step] <= life for step in known), (
            known,
            values,
        )
    reader.record(STEPS, Uniform(-2.0), overwrite=True)
    print(json.dumps({"interrupted": interrupted, "recorded": len(known), "left": temporaries(folder)}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_whatever_is_listed_loads_whole(tmp_path):
    pytest.importorskip("safetensors", reason="the checkpoints' package: pip install kdkernels[online]")
    paths = (str(Path(kdkernels.__file__).parents[1]), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["left"] == 0, "leftovers were not removed"
    assert found["recorded"] == STEPS
    assert found["interrupted"] >= 5, "hardly a kill met a file half written: the test has no power"


if __name__ == "__main__":
    main(sys.argv[1])
