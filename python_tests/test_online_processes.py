"""A trajectory that several processes write: ranks, writers that died, and one that is still at work."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from online_teachers import network, same
from torch import distributed, multiprocessing

import kdkernels
from kdkernels.methods.online import TeacherTrajectory, checkpoint

# Dies or waits where the temporary file is synchronised; half of it is there in the first case.
WRITER = """
import os, sys
from online_teachers import network
from kdkernels.methods.online import TeacherTrajectory
before = os.fsync
def fsync(file):
    os.fsync = before
    if sys.argv[2] == "die":
        os.ftruncate(file, os.fstat(file).st_size // 2)
        os._exit(9)
    print("waiting", flush=True)
    sys.stdin.readline()
    before(file)
os.fsync = fsync
TeacherTrajectory(sys.argv[1]).record(500, network(500))
"""


def writer(folder, what):
    """A process that imports what this one does, started in the folder of these tests."""
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here}:{Path(kdkernels.__file__).parents[1]}", "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_what_a_dead_writer_left_is_never_read_and_goes_with_the_next_record(tmp_path):
    process = writer(tmp_path, "die")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 9, errors
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size > 0 and left.name != "step-000000000500.safetensors"
    trajectory = TeacherTrajectory(tmp_path, network(99))
    assert trajectory.steps == () and trajectory.last is None and 500 not in trajectory
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        trajectory.at(0.5)
    trajectory.record(500, network(500))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000500.safetensors"]
    assert same(trajectory.at(0.5), network(500))


def test_the_temporary_file_of_a_living_writer_stays(tmp_path):
    """Another process records meanwhile; then the first one finishes as if it had been alone."""
    process = writer(tmp_path, "wait")
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        assert process.stdout.readline() == "waiting\n", process.stderr.read()
        (unfinished,) = tmp_path.iterdir()
        trajectory = TeacherTrajectory(tmp_path, network(99))
        assert trajectory.steps == ()
        trajectory.record(100, network(100))
        assert trajectory.steps == (100,) and unfinished.exists()
        _, errors = process.communicate("\n", timeout=30)
    finally:
        guard.cancel()
        process.kill()
    assert process.returncode == 0, errors
    assert trajectory.steps == (100, 500) and len(list(tmp_path.iterdir())) == 2
    assert same(trajectory.at(1), network(500)) and same(trajectory.at(0), network(100))


def without_links(monkeypatch):
    def link(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def overtaken(monkeypatch, folder, model):
    """The next writer finds, when it gives its file a name, that another one has recorded step 1 meanwhile."""
    dump = checkpoint._dump

    def late(*arguments):
        monkeypatch.setattr(checkpoint, "_dump", dump)
        TeacherTrajectory(folder).record(1, model)
        dump(*arguments)

    monkeypatch.setattr(checkpoint, "_dump", late)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("what", ["other", "same", "overwrite"])
def test_another_writer_of_the_same_step(tmp_path, monkeypatch, links, what):
    """As if it had been there before: an error, nothing to do, or replaced."""
    if not links:
        without_links(monkeypatch)
    overtaken(monkeypatch, tmp_path, network(5 if what == "same" else 6))
    trajectory = TeacherTrajectory(tmp_path, network(99))
    if what == "other":
        with pytest.raises(FileExistsError, match="got 1 with other content: pass overwrite=True"):
            trajectory.record(1, network(5))
    else:
        trajectory.record(1, network(5), overwrite=what == "overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001.safetensors"]
    assert same(trajectory.load(1), network(6 if what == "other" else 5))


def test_without_links_writers_wait_for_each_other(tmp_path, monkeypatch):
    """Between its look at the name and its rename a writer holds a lock of the folder."""
    without_links(monkeypatch)
    replace, refused = os.replace, []

    def watched(*arguments):
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        refused.append(arguments)
        return replace(*arguments)

    monkeypatch.setattr(os, "replace", watched)
    trajectory = TeacherTrajectory(tmp_path, network(99))
    for step in (1, 2):  # the lock is given back
        trajectory.record(step, network(step))
    assert len(refused) == 2 and same(trajectory.load(2), network(2)) and len(list(tmp_path.iterdir())) == 2


def run_process(rank, path):
    """Every rank calls record: with weights of its own, and once each into a folder of its own."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/init", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    shared = TeacherTrajectory(f"{path}/shared", network(99))
    paths = [shared.record(step, network(step + rank)) for step in (10, 20)]
    TeacherTrajectory(f"{path}/own-{rank}").record(1, network(rank))
    distributed.barrier()
    shared.record(20, network(20 + rank))  # there already, and on rank 1 something else
    assert same(shared.at(0.9), network(20)) and shared.steps == (10, 20)
    distributed.barrier()  # all have looked
    if rank == 0:  # and a rank may record alone
        shared.record(30, network(30))
    distributed.barrier()
    assert same(shared.at(1), network(30))
    Path(f"{path}/paths-{rank}").write_text("\n".join(map(str, paths)))
    distributed.destroy_process_group()


def test_only_the_first_rank_writes(tmp_path):
    multiprocessing.spawn(run_process, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "paths-0").read_text() == (tmp_path / "paths-1").read_text()
    assert TeacherTrajectory(tmp_path / "own-0").steps == (1,)
    assert not (tmp_path / "own-1").exists() or not list((tmp_path / "own-1").iterdir())
    trajectory = TeacherTrajectory(tmp_path / "shared", network(99))
    assert trajectory.steps == (10, 20, 30) and len(list((tmp_path / "shared").iterdir())) == 3
    assert same(trajectory.load(10), network(10))


def test_neither_package_imports_what_is_optional():
    """In a fresh interpreter: safetensors and tqdm are imported by the work that needs them."""
    code = (
        "import sys, torch\nbefore = set(sys.modules)\n"
        "import kdkernels.methods.online, kdkernels.methods.complexity\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} & {'safetensors', 'tqdm'}))"
    )
    root = Path(kdkernels.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
