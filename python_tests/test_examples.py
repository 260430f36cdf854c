"""The examples on the digits as a user runs them."""

from __future__ import annotations

import re

import pytest
from run_examples import ROOT, example

if not (ROOT / "examples").is_dir():
    pytest.skip("an installed package without its examples/", allow_module_level=True)


def accuracies(printed: str) -> dict[str, float]:
    return {name: float(percent) for name, percent in re.findall(r"^(\S.*?) +([\d.]+) % of the test", printed, re.M)}


@pytest.fixture(params=["digits_ptloss.py", "digits_tgeo.py"])
def digits_example(request):
    for package in ("sklearn", "tqdm"):
        pytest.importorskip(package, reason="the digits examples' packages: pip install kdkernels[demo]")
    return request.param


def test_digits(digits_example, tmp_path):
    """Floors far under what these few epochs reach (70 and more) and far over guessing (10)."""
    printed = example(tmp_path, digits_example, "--epochs", "5", "--seed", "1")
    found = accuracies(printed)
    method = {"digits_ptloss.py": "PTLoss", "digits_tgeo.py": "TGeo-KD"}[digits_example]
    assert list(found) == ["teacher", "student alone", "KD", method]
    assert min(found.values()) > 50 and max(found.values()) <= 100
    if method == "PTLoss":
        of_teacher, of_proxy = map(float, re.search(r"teacher ([\d.]+), of its proxy ([\d.]+)", printed).groups())
        assert of_proxy < 0.5 * of_teacher
        assert re.search(r"coefficients( -?[\d.]+){1,5}$", printed, re.M)
    else:
        right, wrong = map(float, re.findall(r"mean alpha ([\d.]+)", printed))
        assert 0 < wrong < right < 1


def complexities(printed: str) -> list[dict[str, float]]:
    """Of each student, the complexity of each of its targets."""
    blocks = re.split(r"^for .*\n", printed, flags=re.M)[1:]
    return [
        {name: float(value) for name, value in re.findall(r"^(\S.*?) +complexity +([\d.]+)", block, re.M)}
        for block in blocks
    ]


def test_digits_complexity(tmp_path):
    """What holds by far: a softened teacher is simpler than itself, noise the most complex, and a student that learnt
    from the big teacher has less left to learn from it."""
    pytest.importorskip("sklearn", reason="the digits examples' packages: pip install kdkernels[demo]")
    printed = example(tmp_path, "digits_complexity.py", "--epochs", "5", "--seed", "1")
    found = accuracies(printed)
    assert list(found) == ["small teacher", "big teacher", "student"] and min(found.values()) > 50
    new, taught = complexities(printed)
    for student in (new, taught):
        assert list(student) == ["big teacher, T = 4", "big teacher", "small teacher", "labels", "random labels"]
        assert max(student, key=student.get) == "random labels"
    assert new["big teacher, T = 4"] < new["big teacher"] < new["labels"]
    assert taught["big teacher"] < new["big teacher"] and taught["labels"] < new["labels"]


def test_digits_online(tmp_path):
    for package in ("sklearn", "safetensors"):
        pytest.importorskip(package, reason="the digits examples' packages: pip install kdkernels[demo]")
    printed = example(tmp_path, "digits_online.py", "--epochs", "5", "--seed", "1")
    assert "recorded 5 checkpoints" in printed
    found = accuracies(printed)
    assert list(found) == ["teacher", "student alone", "KD", "online KD", "side by side"]
    assert min(found.values()) > 50 and max(found.values()) <= 100


def test_digits_auxiliary(tmp_path):
    pytest.importorskip("sklearn", reason="the digits examples' packages: pip install kdkernels[demo]")
    found = accuracies(example(tmp_path, "digits_auxiliary.py", "--epochs", "5", "--seed", "1"))
    assert list(found) == ["teacher", "student alone", "KD", "auxiliary KD", "its bank"]
    assert min(found.values()) > 50 and max(found.values()) <= 100
