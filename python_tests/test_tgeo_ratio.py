"""The controller: the paper's features, folded or not, and the distances; one alpha per row, and errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import BF16, F16, F32, F64, logits, name_of
from tgeo_ratios import CLASSES, HIDDEN, ROWS, batch, ratio, table, with_gradients
from tgeo_students import EVERY_DEVICE

import kdkernels as kd
from kdkernels.methods import tgeo


def mlp(module, features):
    hidden = features.double() @ module.first.weight.double().T + module.first.bias.double()
    out = hidden.clamp(min=0) @ module.second.weight.double().T + module.second.bias.double()
    return 1 / (1 + (-out[..., 0]).exp())


def test_the_edges_of_the_triangle():
    """e_sg = e_tg + e_st in the features that the first layer gets, in the paper's order."""
    module, seen = ratio(folded=False), []
    module.first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    student, teacher, labels = batch()
    module(student, teacher, labels)
    blocks = seen[0].view(ROWS, 9, CLASSES).unbind(1)
    e_sg, e_tg, e_st, e_tbarg, e_stbar, S, P, Tbar, G = blocks
    torch.testing.assert_close(e_sg, e_tg + e_st)
    torch.testing.assert_close(e_sg, e_tbarg + e_stbar)
    torch.testing.assert_close(S, student.softmax(-1))
    torch.testing.assert_close(P, teacher.softmax(-1))
    torch.testing.assert_close(e_st, P - S)
    assert torch.equal(G, F.one_hot(labels, CLASSES).float()) and torch.equal(Tbar, table()[labels])
    torch.testing.assert_close(e_tbarg, G - Tbar)


@EVERY_DEVICE
@pytest.mark.parametrize("folded", [True, False])
def test_alpha_from_the_definition(device, folded):
    module, (student, teacher, labels) = ratio(device, F64, folded=folded), batch(dtype=F64, device=device)
    S, P, G = student.softmax(-1), teacher.softmax(-1), F.one_hot(labels, CLASSES).double()
    T = table().double().to(device)[labels]
    delta = torch.cat([G - S, G - P, P - S, G - T, T - S, S, P, T, G], -1)
    torch.testing.assert_close(module(student, teacher, labels), mlp(module, delta), rtol=1e-12, atol=1e-14)


@EVERY_DEVICE
@pytest.mark.parametrize("with_mean", [True, False])
def test_alpha_from_the_distances(device, with_mean):
    mean = table() if with_mean else None
    module = ratio(device, F64, features="distances", class_mean=mean)
    student, teacher, labels = batch(dtype=F64, device=device)
    S, P, G = student.softmax(-1), teacher.softmax(-1), F.one_hot(labels, CLASSES).double()
    edges = [S - G, P - G, S - P]
    if with_mean:
        T = mean.double().to(device)[labels]
        edges += [S - T, T - G]
    delta = torch.stack([edge.norm(dim=-1) for edge in edges], -1)
    torch.testing.assert_close(module(student, teacher, labels), mlp(module, delta), rtol=1e-9, atol=1e-12)
    assert with_gradients(module, student, teacher, labels)[1].shape == (HIDDEN, delta.shape[-1])


@EVERY_DEVICE
@pytest.mark.parametrize("rows", [1, CLASSES - 1, CLASSES, 4 * CLASSES])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-13), (F32, 2e-6)], ids=["float64", "float32"])
def test_folded_is_unfolded(device, dtype, tolerance, rows):
    """Values, and gradients of all parameters, on both sides of the choice that the number of rows makes."""
    folded = ratio(device, dtype)
    unfolded = ratio(device, dtype, folded=False)
    unfolded.load_state_dict(folded.state_dict())
    arguments = batch(rows, dtype, device)
    arguments[2][rows // 2] = -100
    pairs = zip(with_gradients(folded, *arguments), with_gradients(unfolded, *arguments), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_gradcheck():
    module, arguments = ratio(dtype=F64), batch(dtype=F64)
    names = [name for name, _ in module.named_parameters()]

    def call(*values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), arguments)

    assert torch.autograd.gradcheck(call, [each.detach().requires_grad_() for each in module.parameters()])


@pytest.mark.parametrize("features", ["relations", "distances"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_one_alpha_per_row(features, shape):
    module = ratio(features=features)
    student, teacher = (logits(*shape, CLASSES, seed=seed).requires_grad_() for seed in (1, 2))
    labels = torch.full(shape, 3, dtype=torch.int32)
    alpha = module(student, teacher, labels)
    assert alpha.shape == shape and alpha.requires_grad and alpha.dtype == F32
    assert bool(((alpha > 0) & (alpha < 1)).all())
    alpha.sum().backward()
    assert student.grad is None and teacher.grad is None  # logits are constants of it
    by_row = zip(student.view(-1, CLASSES), teacher.view(-1, CLASSES), labels.view(-1), strict=True)
    torch.testing.assert_close(alpha.flatten(), torch.stack([module(*row) for row in by_row]))


@EVERY_DEVICE
@pytest.mark.parametrize("features", ["relations", "distances"])
@pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=name_of)
def test_logits_of_any_dtype(device, dtype, features):
    """Probabilities are taken in the dtype of the parameters, not rounded to that of the logits."""
    module = ratio(device, features=features)
    student, teacher, labels = batch(dtype=dtype, device=device)
    got = module(student, teacher.to(BF16), labels)
    assert got.dtype == F32
    torch.testing.assert_close(got, module(student.float(), teacher.to(BF16).float(), labels), rtol=1e-5, atol=1e-6)


@EVERY_DEVICE
@pytest.mark.parametrize("features", ["relations", "distances"])
@pytest.mark.parametrize("folded", [True, False])
def test_ignored_rows_are_not_read(device, features, folded):
    module, (student, teacher, labels) = ratio(device, features=features, folded=folded), batch(device=device)
    counted = labels % 2 == 0
    upstream = torch.where(counted, 1.0, 0.0)
    wanted = with_gradients(module, student[counted], teacher[counted], labels[counted], upstream=upstream[counted])
    student, teacher = (torch.where(counted[:, None], x, torch.nan) for x in (student, teacher))
    got = with_gradients(module, student, teacher, torch.where(counted, labels, -100), upstream=upstream)
    torch.testing.assert_close(got[0][counted], wanted[0])
    assert bool(got[0].isfinite().all())
    for a, b in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@EVERY_DEVICE
@pytest.mark.parametrize("features", ["relations", "distances"])
def test_labels_that_are_no_class(device, features):
    """Raises on a CPU; on a GPU, which nobody waits for, the row is NaN and the others are what they were."""
    module, (student, teacher, labels) = ratio(device, features=features), batch(device=device)
    good = module(student, teacher, labels)
    for wrong in (CLASSES, -1):
        labels = labels.clone()
        labels[2] = wrong
        if device == "cpu":
            with pytest.raises(ValueError, match=rf"labels must lie in \[0, 11\) .*got {wrong}"):
                module(student, teacher, labels)
            continue
        alpha = module(student, teacher, labels)
        assert alpha.isnan().nonzero().tolist() == [[2]]
        torch.testing.assert_close(alpha[:2], good[:2])


def test_state_dict_carries_the_class_means():
    first = ratio()
    second = tgeo.FusionRatio(CLASSES, HIDDEN, class_mean=torch.zeros(CLASSES, CLASSES))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.class_mean, table())
    assert torch.equal(second(*batch()), first(*batch()))
    assert set(ratio(features="distances", class_mean=None).state_dict()) == set(first.state_dict()) - {"class_mean"}


def test_class_means_are_copied_and_not_trained():
    mean = table()
    module = tgeo.FusionRatio(CLASSES, HIDDEN, class_mean=mean)
    before = module(*batch())
    mean.zero_()
    assert torch.equal(module(*batch()), before)
    assert len(list(module.parameters())) == 4


def test_deep_copies_and_options_in_repr():
    module = ratio(folded=False)
    assert torch.equal(copy.deepcopy(module)(*batch()), module(*batch()))
    assert "num_classes=11, features='relations', folded=False" in repr(module)


STUDENT, TEACHER, LABELS = batch()

BAD_MODULES = [
    ({"features": "edges"}, ValueError, "features must be one of 'relations', 'distances', got 'edges'"),
    ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
    ({"num_classes": True}, TypeError, "num_classes must be an int, got bool"),
    ({"hidden": 0}, ValueError, "hidden must be at least 1, got 0"),
    ({"class_mean": None}, ValueError, "class_mean must be given for features='relations'"),
    ({"class_mean": table(7)}, ValueError, r"class_mean must have shape .*\(11, 11\), got \(7, 7\)"),
    (
        {"class_mean": table()[:, :7], "features": "distances"},
        ValueError,
        r"class_mean must have shape .*got \(11, 7\)",
    ),
    ({"class_mean": table().int()}, TypeError, "class_mean must be float"),
    ({"class_mean": [[1.0]]}, TypeError, "class_mean must be a torch.Tensor, got list"),
    ({"class_mean": table().requires_grad_()}, ValueError, "class_mean must not require grad"),
]

BAD_CALLS = [
    ((STUDENT[:, :7], TEACHER, LABELS), ValueError, "student must have num_classes=11 logits per row, got 7"),
    ((STUDENT, TEACHER[:, :7], LABELS), ValueError, "teacher must have num_classes=11 logits per row, got 7"),
    ((STUDENT, TEACHER[:5], LABELS), ValueError, "teacher must have the shape of student"),
    ((STUDENT, TEACHER, LABELS[:5]), ValueError, r"labels must have one value per row, shape \(9,\), got \(5,\)"),
    (
        (STUDENT, TEACHER, LABELS[:, None]),
        ValueError,
        r"labels must have one value per row, shape \(9,\), got \(9, 1\)",
    ),
    ((STUDENT, TEACHER, LABELS.float()), TypeError, "labels must be integers"),
    ((STUDENT, TEACHER.tolist(), LABELS), TypeError, "teacher must be a torch.Tensor of logits, got list"),
    ((STUDENT.int(), TEACHER, LABELS), TypeError, "student must be float32, float16, bfloat16 or float64"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_MODULES, ids=[message[:40] for *_, message in BAD_MODULES])
def test_errors_at_construction(change, error, message):
    with pytest.raises(error, match=message):
        tgeo.FusionRatio(**({"num_classes": CLASSES, "class_mean": table()} | change))


@pytest.mark.parametrize("features", ["relations", "distances"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS, ids=[message[:40] for *_, message in BAD_CALLS])
def test_errors_at_the_call(features, arguments, error, message):
    with pytest.raises(error, match=message):
        ratio(features=features)(*arguments)


def test_alpha_is_what_the_distillation_takes():
    student, teacher, labels = batch()
    alpha = ratio()(student, teacher, labels).detach()
    assert kd.distillation(student, teacher, labels, alpha=alpha).isfinite()
