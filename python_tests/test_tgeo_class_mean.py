"""The teacher's mean prediction of each class: streaming, at once, over processes, and with classes that are empty."""

import warnings

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of
from tgeo_students import EVERY_DEVICE
from torch import distributed, multiprocessing

from kdkernels.methods import tgeo
from kdkernels.methods.tgeo import class_mean

CLASSES, ROWS = 7, 60

DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)


def data(dtype=F32, device="cpu"):
    """Every class has a sample, class 0 one only."""
    labels = torch.cat([torch.tensor([0]), torch.arange(ROWS - 1) % (CLASSES - 1) + 1])
    return logits(ROWS, CLASSES, dtype=dtype, device=device), labels.to(device)


def definition(teacher, labels):
    probabilities = teacher.double().softmax(-1)
    return torch.stack([probabilities[labels == c].mean(0) for c in range(CLASSES)])


@EVERY_DEVICE
@DTYPES
def test_is_the_mean_of_each_class(device, dtype):
    teacher, labels = data(dtype, device)
    got = tgeo.class_means(teacher, labels, CLASSES)
    assert got.dtype == F32 and got.device == teacher.device and not got.requires_grad
    torch.testing.assert_close(got.double(), definition(teacher, labels), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got.sum(-1), torch.ones(CLASSES, device=device))


@EVERY_DEVICE
def test_streaming_is_at_once(device):
    teacher, labels = data(F32, device)
    means = tgeo.ClassMeans(CLASSES).to(device)
    for rows in torch.arange(ROWS, device=device).split(13):
        means.update(teacher[rows], labels[rows])
    got = means.table(F64)
    torch.testing.assert_close(got, definition(teacher, labels), rtol=1e-13, atol=1e-15)
    assert torch.equal(means.table(), got.float()) and torch.equal(
        tgeo.class_means(teacher, labels, CLASSES), got.float()
    )
    assert means.counts.tolist() == labels.bincount().tolist()


def test_a_batch_that_is_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr(class_mean, "_CHUNK", 10 * CLASSES)
    teacher, labels = data()
    torch.testing.assert_close(tgeo.class_means(teacher, labels, CLASSES).double(), definition(teacher, labels))


def test_leading_dimensions_ignored_rows_and_grad():
    teacher, labels = data()
    ignored = torch.rand(ROWS, generator=torch.Generator().manual_seed(0)) < 0.3
    ignored[0] = False
    teacher = torch.where(ignored[:, None], torch.nan, teacher)
    wanted = definition(teacher[~ignored], labels[~ignored]).float()
    given = torch.where(ignored, -100, labels).view(5, 12)
    cube = teacher.view(5, 12, CLASSES).requires_grad_()
    got = tgeo.class_means(cube, given, CLASSES)
    torch.testing.assert_close(got, wanted)
    assert not got.requires_grad
    means = tgeo.ClassMeans(CLASSES)
    means.update(cube, given.masked_fill(given == -100, -1).int(), ignore_index=-1)
    assert torch.equal(means.table(), got)


def test_classes_without_samples_are_uniform_and_said():
    means = tgeo.ClassMeans(CLASSES)
    teacher, labels = data()
    few = (labels == 2) | (labels == 5)
    means.update(teacher[few], labels[few])
    with pytest.warns(UserWarning, match="^5 of 7 classes have no sample: the mean of each is uniform$") as caught:
        got = means.table(F64)
    assert len(caught) == 1 and caught[0].filename == __file__
    wanted = definition(teacher, labels)
    wanted[[0, 1, 3, 4, 6]] = 1 / CLASSES
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-15)
    means.update(teacher, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means.table()
    with pytest.warns(UserWarning, match="7 of 7"):
        assert torch.equal(tgeo.ClassMeans(CLASSES).table(), torch.full((CLASSES, CLASSES), 1 / CLASSES))


def test_state_dict():
    teacher, labels = data()
    first, second = tgeo.ClassMeans(CLASSES), tgeo.ClassMeans(CLASSES)
    first.update(teacher[:20], labels[:20])
    assert set(first.state_dict()) == {"sums", "counts"}
    second.load_state_dict(first.state_dict())
    for means in (first, second):
        means.update(teacher[20:], labels[20:])
    assert torch.equal(first.table(F64), second.table(F64))


def test_sums_of_another_dtype():
    teacher, labels = data()
    means = tgeo.ClassMeans(CLASSES, dtype=F32)
    means.update(teacher, labels)
    assert means.sums.dtype == F32
    torch.testing.assert_close(means.table().double(), definition(teacher, labels), rtol=1e-5, atol=1e-7)


def run_process(rank, path):
    """Of three batches the first process has two; class 0 is in the second one's only."""
    distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=2)
    teacher, labels = data()
    means = tgeo.ClassMeans(CLASSES)
    for part in (slice(20, 40), slice(40, 60)) if rank == 0 else (slice(0, 20),):
        means.update(teacher[part], labels[part])
    own = means.state_dict()["sums"].clone()
    tables = [means.table(F64), means.table(F64)]
    tables.append(tgeo.class_means(teacher[rank::2], labels[rank::2], CLASSES))
    torch.save({"tables": tables, "unchanged": torch.equal(own, means.sums)}, f"{path}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_share_their_samples(tmp_path):
    multiprocessing.spawn(run_process, (str(tmp_path),), nprocs=2)
    wanted = definition(*data())
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"{rank}.pt")
        assert saved["unchanged"]
        for table in saved["tables"][:2]:
            torch.testing.assert_close(table, wanted, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(saved["tables"][2], wanted.float())


T, L = data()

BAD = [
    (lambda: tgeo.ClassMeans(0), ValueError, "num_classes must be at least 1, got 0"),
    (lambda: tgeo.ClassMeans(3.0), TypeError, "num_classes must be an int, got float"),
    (
        lambda: tgeo.ClassMeans(3, torch.int64),
        TypeError,
        "dtype must be float32, float16, bfloat16 or float64, got torch.int64",
    ),
    (lambda: tgeo.class_means(T, L, 8), ValueError, "teacher_logits must have num_classes=8 logits per row, got 7"),
    (lambda: tgeo.class_means([1.0], L, 7), TypeError, "teacher_logits must be a torch.Tensor of logits, got list"),
    (lambda: tgeo.class_means(T, L[:5], 7), ValueError, r"labels must have one value per row, shape \(60,\)"),
    (lambda: tgeo.class_means(T, L.float(), 7), TypeError, "labels must be integers"),
    (lambda: tgeo.class_means(T, L + 1, 7), ValueError, r"labels must lie in \[0, 7\) or equal ignore_index"),
    (lambda: tgeo.class_means(T, L - 1, 7), ValueError, r"labels must lie in \[0, 7\) .*, got -1"),
    (
        lambda: tgeo.ClassMeans(7).update(T.to("meta"), L.to("meta")),
        ValueError,
        "must be on the module's device cpu, got",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@EVERY_DEVICE
def test_nothing_is_added_by_a_batch_that_raises(device):
    """Also on a GPU, which this waits for: a sum with a wrong row in it could not be mended."""
    means, (teacher, labels) = tgeo.ClassMeans(CLASSES).to(device), data(F32, device)
    labels[-1] = CLASSES
    with pytest.raises(ValueError, match="got 7"):
        means.update(teacher, labels)
    assert not means.sums.any() and not means.counts.any()
