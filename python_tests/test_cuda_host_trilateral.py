"""The CUDA geometry schedule run by host threads: trilateral distances and their backward against float64."""

from __future__ import annotations

from functools import lru_cache

import cuda_host
import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of
from cuda_host import placed
from oracle_trilateral import eager, trilateral
from test_cuda_host import FEW_TEAMS, LAYOUTS, TEAMS
from test_trilateral import check_distances
from tolerance import check_gradient

VOCABS = (1, 2, 7, 17, 100, 1000, 1271)  # test_cuda_host.py says what each is for
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name_of)
SQUARED = pytest.mark.parametrize("squared", [False, True], ids=["lengths", "squares"])
MEANS = pytest.mark.parametrize("means", [None, F32], ids=["three", "five"])
INF = float("inf")


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return cuda_host.load(tmp_path_factory.getbasetemp())


@lru_cache(maxsize=128)
def inputs(vocab, dtype, means, rows=3):
    """Student, teacher, labels, random upstream and class mean (of the dtype `means`, or None)."""
    student, teacher = (logits(rows, vocab, dtype=dtype, seed=seed) for seed in (0, 1))
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(5))
    table = logits(vocab, vocab, seed=3).softmax(-1).to(means) if means else None
    return student, teacher, labels, logits(rows, 5 if means else 3, seed=7), table


@lru_cache(maxsize=256)
def answers(vocab, dtype, means, squared):
    arguments = (*inputs(vocab, dtype, means), squared)
    return *trilateral(*arguments), eager(*arguments)


def run(host, team, student, teacher, labels, upstream, table, squared, layout="misaligned"):
    """(distances, gradient); the same distances where no backward will follow, and nothing written beside a row."""
    places = LAYOUTS[layout]
    z, t = (placed(each, *place) for each, place in zip((student, teacher), places, strict=False))
    mean = None if table is None else placed(table, *places[2]).view
    statistics = torch.full((len(labels), host.statistics), torch.nan)
    distances = host.trilateral(team, z.view, t.view, labels, mean, statistics=statistics, squared=squared)
    alone = host.trilateral(team, z.view, t.view, labels, mean, squared=squared)
    assert torch.equal(distances.view(torch.int32), alone.view(torch.int32))
    gradient = placed(torch.full_like(student, torch.nan), *places[2])
    rest = (z.view, t.view, labels, mean, statistics, distances, upstream, gradient.view)
    host.trilateral_backward(team, *rest, squared=squared)
    assert all(each.padding_is_untouched() for each in (z, t, gradient))
    return distances, gradient.view.contiguous()


def check(host, team, vocab, dtype, means, squared, layout="misaligned"):
    answer, size, peer = answers(vocab, dtype, means, squared)
    distances, gradient = run(host, team, *inputs(vocab, dtype, means), squared, layout)
    check_distances(distances, answer, peer, size, F32)
    check_gradient(gradient, answer, peer, size, F32)


@pytest.mark.parametrize("team", TEAMS, ids=str)
@DTYPES
@SQUARED
@MEANS
def test_every_vocabulary_and_layout(host, means, squared, dtype, team):
    for vocab in VOCABS:
        for layout in LAYOUTS:
            check(host, team, vocab, dtype, means, squared, layout)


@pytest.mark.parametrize("team", FEW_TEAMS, ids=str)
@pytest.mark.parametrize("means", [BF16, F16, F64], ids=name_of)
def test_dtypes_of_the_class_mean(host, means, team):
    check(host, team, 113, F32, means, False)
    check(host, team, 113, BF16, means, True)


@pytest.mark.parametrize("team", FEW_TEAMS, ids=str)
@MEANS
def test_labels_that_are_ignored_or_no_class(host, means, team):
    """An ignored row is not read: 0. Any other label outside: NaN, and no access out of bounds."""
    student, teacher, labels, upstream, table = (
        None if each is None else each.clone() for each in inputs(1271, F32, means, rows=6)
    )
    labels[1:5] = torch.tensor([-100, 1271, -1, 2**40])
    student[1], teacher[1] = torch.nan, torch.nan
    distances, gradient = run(host, team, student, teacher, labels, upstream, table, False)
    assert bool((distances[1] == 0).all())
    assert bool((gradient[1] == 0).all())
    assert bool(distances[2:5].isnan().all())
    assert bool(gradient[2:5].isnan().all())
    counted = torch.tensor([0, 5])
    (answer, size), peer = (
        of(student[counted], teacher[counted], labels[counted], upstream[counted], table, False)
        for of in (trilateral, eager)
    )
    check_distances(distances[counted], answer, peer, size, F32)
    check_gradient(gradient[counted], answer, peer, size, F32)


@pytest.mark.parametrize("team", FEW_TEAMS, ids=str)
@MEANS
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_nan_stays_in_its_row(host, side, means, team):
    student, teacher, *rest = inputs(1271, F32, means)
    clean = run(host, team, student, teacher, *rest, False)
    for column in (0, 640, 1270):
        each = {"student": student.clone(), "teacher": teacher.clone()}
        each[side][1, column] = torch.nan
        distances, gradient = run(host, team, *each.values(), *rest, False)
        assert bool(distances[1, 2].isnan())
        assert bool(gradient[1].isnan().all())
        for row in (0, 2):
            assert torch.equal(distances[row], clean[0][row])
            assert torch.equal(gradient[row], clean[1][row])


@pytest.mark.parametrize("team", FEW_TEAMS, ids=str)
@MEANS
@SQUARED
def test_minus_infinity_is_a_class_without_mass(host, squared, means, team):
    student, teacher, labels, upstream, table = (
        None if each is None else each.clone() for each in inputs(1271, F32, means)
    )
    student[0, ::3], teacher[1, :700], student[2], teacher[2] = -INF, -INF, -INF, -INF
    student[2, labels[2]], teacher[2, 5] = 0.0, 0.0  # S = G, and P one-hot elsewhere
    arguments = (student, teacher, labels, upstream, table, squared)
    (answer, size), peer = trilateral(*arguments), eager(*arguments)
    distances, gradient = run(host, team, *arguments)
    check_distances(distances, answer, peer, size, F32)
    check_gradient(gradient, answer, peer, size, F32)
    assert distances[2, 0] == 0
