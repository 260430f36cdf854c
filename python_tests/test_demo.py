"""The demo as a user runs it, and what it promises: one start for all methods, no file lost, one entry a method."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
import torch.nn.functional as F

import kdkernels

for package in ("matplotlib", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(package, reason="the demo's packages: pip install kdkernels[demo]")

from kdkernels.demo import cli, digits, networks, training  # noqa: E402
from kdkernels.demo.experiment import run  # noqa: E402
from kdkernels.demo.methods import METHODS, Method  # noqa: E402
from kdkernels.demo.protocol import Protocol  # noqa: E402

TINY = replace(Protocol().quick(), seeds=1, tries=1, epochs=2, teacher_epochs=1)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    root = str(Path(kdkernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder that a quick run was started in, what it printed, and its numbers."""
    folder = tmp_path_factory.mktemp("demo")
    done = python(folder, "-m", "kdkernels.demo", "--quick")
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "demo_results" / "results.json").read_text())


@pytest.fixture(scope="module")
def splits():
    return digits.load()


def test_files(quick):
    folder, _, _ = quick
    pictures = ["learning_curves.png", "tgeo_alpha.png"]
    assert sorted(path.name for path in folder.rglob("*")) == [
        "demo_results",
        *pictures[:1],
        "results.json",
        *pictures[1:],
    ]
    for name in pictures:
        assert (folder / "demo_results" / name).read_bytes().startswith(b"\x89PNG")


def test_table(quick):
    _, done, numbers = quick
    lines = done.stdout.splitlines()
    for entry in numbers["methods"]:
        (line,) = (line for line in lines if line.startswith(f"{entry['method']}  "))
        assert f"{mean(entry['test']):.1f} +- " in line
    assert [entry["method"] for entry in numbers["methods"]] == [method.name for method in METHODS]
    assert "%|" in done.stderr, "no progress bar"


def test_training_learns(quick):
    """Floors far under what a quick run reaches (teacher 85, students 82 and more) and far over guessing (10)."""
    _, _, numbers = quick
    assert min(numbers["teacher_test"]) > 65
    for entry in numbers["methods"]:
        assert min(entry["test"]) > 60, entry["method"]
        assert len(entry["test"]) == numbers["protocol"]["seeds"]
        assert all(len(curve) == len(numbers["epochs"]) for curve in entry["curves"])


def test_fused_and_eager_agree_and_are_timed(quick):
    _, _, numbers = quick
    for entry, method in zip(numbers["methods"], METHODS, strict=True):
        assert entry["loss_ms"] > 0
        if method.eager is not None:
            assert 0 < entry["difference"] < 1e-5
            assert entry["eager_ms"] > 0


def test_alphas_are_told(quick):
    _, done, numbers = quick
    (entry,) = (entry for entry in numbers["methods"] if entry["findings"])
    assert entry["method"] == "TGeo-KD"
    for finding, teacher in zip(entry["findings"], numbers["teacher_test"], strict=True):
        assert all(0 < alpha < 1 for which in finding.values() for alpha in which)
        right, wrong = len(finding["right"]), len(finding["wrong"])
        assert 100 * right / (right + wrong) == pytest.approx(teacher, abs=1e-3)
    assert "mean alpha on test images" in done.stdout


def test_settings_come_from_validation(quick):
    _, _, numbers = quick
    for entry in numbers["methods"]:
        best = max(entry["tried"], key=lambda tried: tried["accuracy"])
        assert entry["setting"] == best["setting"] and entry["validation"] == best["accuracy"]
    assert len({len(method.grid) for method in METHODS}) == 1, "a method was given more tries than another"


def test_deterministic(splits):
    """Whatever the global generator's state, which a run also leaves alone."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        outcomes, teacher = run(splits, METHODS[:2], TINY)
        assert torch.equal(state, torch.get_rng_state())
        results.append(([outcome.curves for outcome in outcomes], [o.validation for o in outcomes], teacher))
    assert results[0] == results[1]


def test_splits_share_no_image(splits):
    pixels = [part.images.flatten(1) for part in splits]
    assert sum(map(len, splits)) == 1797
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert torch.cdist(pixels[a], pixels[b]).min() > 0


def test_shifts_move_by_one_pixel_at_most():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1.0
    moved = digits.shifted(image.expand(200, 1, 8, 8), torch.Generator().manual_seed(0))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert moved.shape == (200, 1, 8, 8) and moved.sum() == 200
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


def test_a_method_is_one_entry(splits):
    """One that trains parameters of its own: it changes neither the student's first weights nor the other methods."""
    firsts, offsets = [], []

    class Offset(torch.nn.Module):
        def __init__(self, task, setting, student):
            super().__init__()
            self.offset = torch.nn.Parameter(torch.zeros(10))
            self.peer = networks.student()  # takes random numbers
            offsets.append(self.offset)

        def forward(self, student, batch):
            firsts.append(student.detach())
            return F.cross_entropy(student + self.offset, batch.labels)

    method = Method("offset", Offset, ({"lr": 0.01},))
    (alone,), _ = run(splits, METHODS[:1], TINY)
    (same, mine), _ = run(splits, (METHODS[0], method), TINY)
    assert same.curves == alone.curves and len(mine.results) == 1
    assert any(offset.detach().abs().max() > 0 for offset in offsets), "its parameters were not trained"
    task = training.make_task(splits, 1000, TINY)
    plain = networks.seeded(networks.student, task.seed)
    assert torch.equal(firsts[0], plain(task.batches[0].images))


def test_own_files_are_replaced_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "compare", lambda protocol, out: None)
    (tmp_path / "results.json").write_text('{"mine": 1}')
    assert "results.json was not written by this demo" in cli.main(["--out", str(tmp_path)])
    (tmp_path / "results.json").write_text('{\n "written_by": "kdkernels.demo"\n}')
    assert cli.main(["--out", str(tmp_path)]) == 0
    (tmp_path / "learning_curves.png").write_bytes(b"a picture")
    assert "learning_curves.png was not written" in cli.main(["--out", str(tmp_path)])
    assert "is not a folder" in cli.main(["--out", str(tmp_path / "results.json")])


def test_a_rerun_knows_its_own_files(quick, monkeypatch):
    monkeypatch.setattr(cli, "compare", lambda protocol, out: None)
    assert cli.main(["--out", str(quick[0] / "demo_results")]) == 0


@pytest.mark.parametrize("package", ["matplotlib", "safetensors", "sklearn", "tqdm"])
def test_missing_package_is_named(package, monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name.startswith("kdkernels.demo."):
            monkeypatch.delitem(sys.modules, name)
            # Where `from . import` looks first.
            monkeypatch.delattr(kdkernels.demo, name.split(".")[2], raising=False)
        elif name.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", ["demo", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("kdkernels.demo", run_name="__main__")
    assert package in stopped.value.code and "pip install kdkernels[demo]" in stopped.value.code


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_counts_are_checked(number, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--seeds", number])
    assert "must be a whole number above 0" in capsys.readouterr().err
