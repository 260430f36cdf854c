"""The reproduction of supervision complexity as a user runs it, and what its numbers have to be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

for package in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(package, reason="the demo's packages: pip install kdkernels[demo]")

from test_demo import python  # noqa: E402

from kdkernels.demo import digits, supervision, supervision_cli  # noqa: E402
from kdkernels.methods import complexity  # noqa: E402


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complexity")
    done = python(folder, "-m", "kdkernels.demo.complexity", "--quick", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "demo_results" / "complexity.json").read_text())


def test_files_and_progress(quick):
    folder, done, numbers = quick
    assert sorted(path.name for path in folder.rglob("*")) == ["complexity.json", "complexity.png", "demo_results"]
    assert (folder / "demo_results" / "complexity.png").read_bytes().startswith(b"\x89PNG")
    assert "%|" in done.stderr, "no progress bar"
    assert numbers["written_by"] == "kdkernels.demo"
    assert numbers["protocol"]["seeds"] == 1


def test_the_table_tells_jitter_condition_and_order(quick):
    _, done, numbers = quick
    (head,) = (line for line in done.stdout.splitlines() if line.startswith("epoch "))
    for word in ("online teacher", "offline teacher", "labels", "random labels", "condition", "jitter", "order held"):
        assert word in head
    assert "held at" in done.stdout
    assert numbers["order"] == ["online teacher", "offline teacher", "labels", "random labels"]


def test_it_does_not_write_over_what_it_has_not_written(tmp_path):
    mine = tmp_path / "complexity.json"
    mine.write_text("{}")
    assert "complexity.json" in supervision_cli.main(["--quick", "--out", str(tmp_path)])
    assert mine.read_text() == "{}"


def test_at_the_end_the_online_teacher_is_the_offline_one_and_at_the_start_it_is_none():
    """The last checkpoint is the final teacher; before the first step neither network has learnt anything."""
    protocol = replace(supervision.Protocol().quick(), seeds=1)
    with torch.random.fork_rng(devices=[]):
        (only,) = supervision.run(digits.load(), protocol)
    start, end = only.moments[0].complexity, only.moments[-1].complexity
    assert end["online teacher"] == end["offline teacher"]
    assert start["online teacher"] < 0.2 * start["offline teacher"]
    for moment in only.moments:
        assert all(moment.complexity[name] >= moment.length[name] for name in moment.complexity)


def test_a_measured_value_is_the_definition():
    """One probe set, every number formed here from the Jacobian's definition."""
    torch.manual_seed(0)
    student, images = torch.nn.Linear(6, 3).double(), torch.randn(5, 6, dtype=torch.float64)
    targets = torch.randn(5, 3, dtype=torch.float64)
    gram = complexity.empirical_ntk(student, images, progress=False)
    inputs = torch.cat([images, torch.ones(5, 1, dtype=torch.float64)], 1)
    kernel = torch.kron(inputs @ inputs.mT, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(gram, kernel)
    kernel += 1e-6 * kernel.diagonal().mean() * torch.eye(15, dtype=torch.float64)
    flat = targets.reshape(-1)
    expected = (flat @ torch.linalg.solve(kernel, flat) * kernel.trace()).sqrt() / 5
    found = complexity.supervision_complexity(gram, targets, jitter=1e-6)
    torch.testing.assert_close(found.value, expected)
