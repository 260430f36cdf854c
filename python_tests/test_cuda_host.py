"""The CUDA divergence schedule run by host threads: every loss, dtype, team and layout of rows against float64."""

from __future__ import annotations

from functools import lru_cache

import cuda_host
import pytest
import torch
from cases import ALL_LOSSES, BF16, DEFAULT_LOSSES, F16, F32, logits, name_of, per_class
from cuda_host import Team, placed
from oracle import distillation, divergence, eager
from tolerance import check_gradient, check_values, scale

import kdkernels as kd

TEAMS = [
    *(Team(1, lanes) for lanes in (4, 8, 16, 32)),  # lanes of a warp: 4, 8 and 16 are rows of few columns
    Team(2, 8),
    Team(4, 4),
    Team(8, 2),
    Team(16, 2),
    Team(1, 8, staged=False),  # 512 columns of 4099 a thread: what 262144 columns give one on a device
]
FEW_TEAMS = [Team(1, 8), Team(4, 4), Team(16, 2), Team(1, 8, staged=False)]
VOCABS = (
    1,  # fewer columns than threads, and than a vector
    2,
    7,
    17,  # of 16 blocks of 8 columns, one holds a single column and 13 none
    100,
    1000,
    1271,  # 31 * 41: a tail in every dtype; the last of 8 blocks is short
    4099,  # prime; the last of 16 blocks has about half of what the others have
)
# (before, after) of student, teacher and gradient: rows on a boundary; each row elsewhere and the three apart.
LAYOUTS = {"aligned": ((0, 0),) * 3, "misaligned": ((1, 2), (3, 4), (2, 1))}
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name_of)
EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
EVERY_TEAM = pytest.mark.parametrize("team", TEAMS, ids=str)
SOME_TEAMS = pytest.mark.parametrize("team", FEW_TEAMS, ids=str)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return cuda_host.load(tmp_path_factory.getbasetemp())


@lru_cache(maxsize=64)
def inputs(vocab, dtype, rows=3):
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(5))
    return logits(rows, vocab, dtype=dtype), logits(rows, vocab, dtype=dtype, seed=1), labels


@lru_cache(maxsize=512)
def answers(loss, vocab, dtype, temperature):
    """(float64, eager PyTorch, what rounding is measured by), shared by all teams."""
    student, teacher, _ = inputs(vocab, dtype)
    arguments = (student, teacher, temperature)
    return divergence(loss, *arguments), eager(loss, *arguments), scale(*arguments, loss)


def run(host, team, loss, student, teacher, layout="misaligned", in_place=False, **options):
    """(values, gradient); the same values without a gradient, and not an element written beside a row."""
    layout = LAYOUTS[layout]
    z, t = (placed(each, *place) for each, place in zip((student, teacher), layout, strict=False))
    alone = host.divergence(team, loss, z.view, t.view, **options)
    into = z if in_place else placed(torch.full_like(student, torch.nan), *layout[2])
    values = host.divergence(team, loss, z.view, t.view, into.view, **options)
    assert torch.equal(values.view(torch.int32), alone.view(torch.int32))
    assert all(each.padding_is_untouched() for each in (z, t, into))
    return values, into.view.contiguous()


@EVERY_TEAM
@DTYPES
@EVERY_LOSS
def test_every_vocabulary_and_layout(host, loss, dtype, team):
    for vocab in VOCABS:
        student, teacher, _ = inputs(vocab, dtype)
        answer, peer, size = answers(loss, vocab, dtype, 2.0)
        for layout in LAYOUTS:
            values, gradient = run(host, team, loss, student, teacher, layout, temperature=2.0)
            check_values(values, answer, peer, size, F32)
            check_gradient(gradient, answer, peer, size, F32)


@SOME_TEAMS
@pytest.mark.parametrize("loss", [*ALL_LOSSES[len(DEFAULT_LOSSES) :], per_class(1271)], ids=name_of)
def test_other_parameters(host, loss, team):
    student, teacher, _ = inputs(1271, F32)
    values, gradient = run(host, team, loss, student, teacher, temperature=2.0)
    check_values(values, *answers(loss, 1271, F32, 2.0), F32)
    check_gradient(gradient, *answers(loss, 1271, F32, 2.0), F32)


@pytest.mark.parametrize("loss", [kd.ForwardKL(), kd.JensenShannon()], ids=name_of)
def test_a_block_as_it_is_launched(host, loss):
    """512 threads for a row: more than it has vectors. (A second on two cores, most of it at barriers.)"""
    student, teacher, _ = inputs(1271, BF16)
    values, gradient = run(host, Team(1, 512), loss, student, teacher, temperature=2.0)
    check_values(values, *answers(loss, 1271, BF16, 2.0), F32)
    check_gradient(gradient, *answers(loss, 1271, BF16, 2.0), F32)


@pytest.mark.parametrize("team", [Team(8, 32), Team(1, 256, staged=False)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=name_of)
@EVERY_LOSS
def test_a_large_vocabulary(host, loss, dtype, team):
    """Llama 3's, with half of a device's threads: sums of twice as many columns as there."""
    student, teacher, _ = inputs(128256, dtype, rows=1)
    arguments = (student, teacher, 2.0)
    answer, peer, size = divergence(loss, *arguments), eager(loss, *arguments), scale(*arguments, loss)
    values, gradient = run(host, team, loss, student, teacher, temperature=2.0)
    check_values(values, answer, peer, size, F32)
    check_gradient(gradient, answer, peer, size, F32)


@SOME_TEAMS
@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 4.0])  # at 1 the cross-entropy shares the divergence's softmax
@pytest.mark.parametrize("loss", [kd.ForwardKL(), kd.JensenShannon(), per_class(113)], ids=name_of)
def test_with_the_hard_label_term(host, loss, temperature, dtype, team):
    vocab = 113
    student, teacher, labels = inputs(vocab, dtype)
    answer = distillation(loss, student, teacher, labels, 0.3, temperature)
    peer = eager(loss, student, teacher, temperature, labels, 0.3)
    size = scale(student, teacher, temperature, loss).times(0.3).plus(scale(student, student).times(0.7))
    size.gradient[torch.arange(3), labels] += 0.7  # the label's element rounds the 1 that it subtracts
    options = {"temperature": temperature, "labels": labels, "soft_scale": 0.3 * temperature**2, "hard_scale": 0.7}
    for in_place in (False, True):
        values, gradient = run(host, team, loss, student, teacher, in_place=in_place, **options)
        check_values(values, answer, peer, size, F32)
        check_gradient(gradient, answer, peer, size, F32)


@EVERY_TEAM
@DTYPES
@EVERY_LOSS
def test_a_gradient_in_the_students_place(host, loss, dtype, team):
    """Bit for bit what goes elsewhere: whoever writes a column is the last who wants to read it."""
    for vocab in (17, 1271):
        student, teacher, labels = inputs(vocab, dtype)
        options = {"temperature": 2.0, "labels": labels}
        values, gradient = run(host, team, loss, student, teacher, **options)
        again, in_place = run(host, team, loss, student, teacher, in_place=True, **options)
        assert torch.equal(again, values)
        assert torch.equal(in_place, gradient)


@SOME_TEAMS
@DTYPES
@EVERY_LOSS
def test_low_temperature(host, loss, dtype, team):
    student, teacher, _ = inputs(1000, dtype)
    answer, peer, size = answers(loss, 1000, dtype, 0.05)
    ranges = (float((x.double().amax(-1) - x.double().amin(-1)).max()) for x in (student, teacher))
    size = size.deeper(1.0 + max(ranges) / 0.05 / 4)
    values, gradient = run(host, team, loss, student, teacher, temperature=0.05)
    check_values(values, answer, peer, size, F32)
    check_gradient(gradient, answer, peer, size, F32)
