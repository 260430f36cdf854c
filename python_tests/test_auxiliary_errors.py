"""What the auxiliary-variable method refuses: the error names the argument and what came, and nothing is pushed."""

import math

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, ROWS, SETTINGS, assert_same, batch, entries, make_bank, snapshot

from kdkernels.methods import auxiliary

NAN, INF = math.nan, math.inf
SIZES = [
    (0, ValueError, "0"),
    (-3, ValueError, "-3"),
    (2.0, TypeError, "float"),
    (True, TypeError, "bool"),
    ("9", TypeError, "str"),
    (None, TypeError, "NoneType"),
]
POSITIVE = [
    (0.0, ValueError, "0"),
    (-0.5, ValueError, "-0.5"),
    (NAN, ValueError, "nan"),
    ("1", TypeError, "str"),
    (True, TypeError, "bool"),
    (None, TypeError, "NoneType"),
]
NUMBERS = {
    "kappa": POSITIVE,
    "temperature": [*POSITIVE, (INF, ValueError, "inf")],
    "mixture": [
        (-0.1, ValueError, "-0.1"),
        (1.5, ValueError, "1.5"),
        (NAN, ValueError, "nan"),
        ("1", TypeError, "str"),
        (None, TypeError, "NoneType"),
    ],
    "beta": [
        (-1.0, ValueError, "-1"),
        (NAN, ValueError, "nan"),
        (INF, ValueError, "inf"),
        ("1", TypeError, "str"),
        (None, TypeError, "NoneType"),
    ],
}
EVERY_NUMBER = pytest.mark.parametrize(
    ("name", "value", "error", "came"), [(name, *case) for name, cases in NUMBERS.items() for case in cases]
)


def raises(error, name, came=""):
    """`name must <rule>, got <came>`, as everywhere in the package."""
    return pytest.raises(error, match=rf"^{name} must (.|\n)*{came}")


@pytest.mark.parametrize(("value", "error", "came"), SIZES)
@pytest.mark.parametrize("name", ["capacity", "dim", "num_classes"])
def test_sizes_of_a_bank(name, value, error, came):
    with raises(error, name, came):
        auxiliary.InstanceBank(**({"capacity": 4, "dim": 3, "num_classes": 5} | {name: value}))


@pytest.mark.parametrize("value", [torch.int64, torch.bool, torch.complex64, "float32", float])
def test_dtype_of_a_bank(value):
    with raises(TypeError, "dtype", "int64|bool|complex64|float"):
        auxiliary.InstanceBank(4, 3, 5, dtype=value)


@pytest.mark.parametrize(("value", "error", "came"), SIZES)
@pytest.mark.parametrize("name", ["student_dim", "teacher_dim", "num_classes", "capacity"])
def test_sizes_of_a_criterion(name, value, error, came):
    sizes = {"student_dim": 3, "teacher_dim": 4, "num_classes": 5, "capacity": 6}
    with raises(error, name, came):
        auxiliary.AuxiliaryKD(**(sizes | {name: value}))


@EVERY_NUMBER
def test_numbers_of_a_criterion(name, value, error, came):
    with raises(error, name, came):
        auxiliary.AuxiliaryKD(3, 4, 5, capacity=6, **{name: value})


@EVERY_NUMBER
def test_numbers_of_the_functional_form(name, value, error, came):
    bank = make_bank(entries())
    with raises(error, name, came):
        auxiliary.auxiliary_divergence(*batch(), bank, **(SETTINGS | {name: value}))


@pytest.mark.parametrize(("value", "error", "came"), POSITIVE)
def test_kappa_of_the_posterior(value, error, came):
    with raises(error, "kappa", came):
        make_bank(entries()).posterior(batch()[2], value)


@pytest.mark.parametrize("value", ["linear", torch.eye(3), torch.nn.Linear])
def test_projection_that_is_no_module(value):
    with raises(TypeError, "projection", "str|Tensor|type"):
        auxiliary.AuxiliaryKD(3, 4, 5, projection=value)


FEATURES, PROBS, INDEX = entries(4)
PUSHES = {
    "features as a list": (0, FEATURES.tolist(), TypeError, "features", "list"),
    "integer features": (0, FEATURES.long(), TypeError, "features", "int64"),
    "short features": (0, FEATURES[:, :5], ValueError, "features", r"\(4, 5\)"),
    "one feature": (0, FEATURES[0], ValueError, "features", r"\(13,\)"),
    "a cube of features": (0, FEATURES[None], ValueError, "features", r"\(1, 4, 13\)"),
    "features elsewhere": (0, FEATURES.to("meta"), ValueError, "features", "meta"),
    "probs as a list": (1, PROBS.tolist(), TypeError, "probs", "list"),
    "integer probs": (1, PROBS.long(), TypeError, "probs", "int64"),
    "few classes": (1, PROBS[:, :5], ValueError, "probs", r"\(4, 5\)"),
    "few probs": (1, PROBS[:3], ValueError, "probs", r"\(3, 11\)"),
    "labels for probs": (1, PROBS[:, 0], ValueError, "probs", r"\(4,\)"),
    "probs elsewhere": (1, PROBS.to("meta"), ValueError, "probs", "meta"),
    "index as a list": (2, INDEX.tolist(), TypeError, "index", "list"),
    "no index": (2, None, TypeError, "index", "NoneType"),
    "floating index": (2, INDEX.float(), TypeError, "index", "float32"),
    "boolean index": (2, INDEX > 0, TypeError, "index", "bool"),
    "a column": (2, INDEX[:, None], ValueError, "index", r"\(4, 1\)"),
    "few numbers": (2, INDEX[:3], ValueError, "index", r"\(3,\)"),
    "index elsewhere": (2, INDEX.to("meta"), ValueError, "index", "meta"),
}


@pytest.mark.parametrize("case", PUSHES)
def test_pushes(case):
    position, value, error, name, came = PUSHES[case]
    bank = make_bank(entries(), capacity=64)
    before, arguments = snapshot(bank), [FEATURES, PROBS, INDEX]
    arguments[position] = value
    with raises(error, name, came):
        bank.push(*arguments)
    assert_same(bank, before)


Z, ZT, H, HT = batch()
NUMBERED = torch.arange(ROWS)
CALLS = {
    "student as a list": (0, Z.tolist(), TypeError, "student", "list"),
    "integer student": (0, Z.long(), TypeError, "student", "int64"),
    "classes of student": ((0, 1), (Z[:, :5], ZT[:, :5]), ValueError, "student|teacher", "5"),
    "student of three dimensions": ((0, 1), (Z[None], ZT[None]), ValueError, "student", r"\(1, 9, 11\)"),
    "teacher as a list": (1, ZT.tolist(), TypeError, "teacher", "list"),
    "integer teacher": (1, ZT.long(), TypeError, "teacher", "int64"),
    "rows of teacher": (1, ZT[:5], ValueError, "teacher", r"\(9, 11\).*\(5, 11\)"),
    "classes of teacher": (1, ZT[:, :5], ValueError, "teacher", r"\(9, 5\)"),
    "teacher that requires grad": (1, ZT.clone().requires_grad_(), ValueError, "teacher", "detach"),
    "teacher elsewhere": (1, ZT.to("meta"), ValueError, "teacher", "cpu.*meta"),
    "student_features as a list": (2, H.tolist(), TypeError, "student_features", "list"),
    "integer student_features": (2, H.long(), TypeError, "student_features", "int64"),
    "rows of student_features": (2, H[:5], ValueError, "student_features", r"\(5, 13\)"),
    "length of student_features": (2, H[:, :5], ValueError, "student_features", r"\(9, 5\)"),
    "student_features of three dimensions": (2, H[None], ValueError, "student_features", r"\(1, 9, 13\)"),
    "student_features elsewhere": (2, H.to("meta"), ValueError, "student_features", "meta"),
    "teacher_features as a list": (3, HT.tolist(), TypeError, "teacher_features", "list"),
    "integer teacher_features": (3, HT.long(), TypeError, "teacher_features", "int64"),
    "rows of teacher_features": (3, HT[:5], ValueError, "teacher_features", r"\(5, 13\)"),
    "length of teacher_features": (3, HT[:, :5], ValueError, "teacher_features", r"\(9, 5\)"),
    "teacher_features elsewhere": (3, HT.to("meta"), ValueError, "teacher_features", "meta"),
    "index as a list": (4, NUMBERED.tolist(), TypeError, "index", "list"),
    "floating index": (4, NUMBERED.float(), TypeError, "index", "float32"),
    "rows of index": (4, NUMBERED[:5], ValueError, "index", r"\(5,\)"),
    "a column": (4, NUMBERED[:, None], ValueError, "index", r"\(9, 1\)"),
    "index elsewhere": (4, NUMBERED.to("meta"), ValueError, "index", "meta"),
}


def changed(case):
    position, value, *expected = CALLS[case]
    arguments = [Z, ZT, H, HT, NUMBERED]
    for i, x in zip(position, value, strict=True) if isinstance(position, tuple) else [(position, value)]:
        arguments[i] = x
    return arguments, *expected


@pytest.mark.parametrize("case", CALLS)
def test_the_functional_form(case):
    (*arguments, index), error, name, came = changed(case)
    with raises(error, f"({name})", came):
        auxiliary.auxiliary_divergence(*arguments, make_bank(entries()), **SETTINGS, index=index)


@pytest.mark.parametrize("mixture_and_beta", [{}, {"mixture": 0.0, "beta": 0.0}], ids=["bank", "no bank"])
@pytest.mark.parametrize("case", CALLS)
def test_a_criterion(case, mixture_and_beta):
    """Also where features and samples would not be needed: the bank would take them."""
    arguments, error, name, came = changed(case)
    module = auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, capacity=64, **mixture_and_beta)
    module(Z, ZT, H, HT, NUMBERED)
    (bank,) = (each for each in module.modules() if isinstance(each, auxiliary.InstanceBank))
    before = snapshot(bank)
    with raises(error, f"({name})", came):
        module(*arguments)
    assert_same(bank, before)


@pytest.mark.parametrize("value", ["batchmean", "avg", None])
def test_reduction(value):
    module = auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, capacity=64)
    with raises((ValueError, TypeError), "reduction", str(value)):
        module(Z, ZT, H, HT, NUMBERED, reduction=value)
    (bank,) = (each for each in module.modules() if isinstance(each, auxiliary.InstanceBank))
    assert len(bank) == 0


@pytest.mark.parametrize("projection", [torch.nn.Linear(DIM, DIM - 1), torch.nn.Flatten(0)], ids=["short", "flat"])
def test_a_projection_to_another_dimension(projection):
    module = auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, capacity=64, projection=projection)
    with pytest.raises(ValueError, match=r"projection|student_features"):
        module(Z, ZT, H, HT, NUMBERED)
    (bank,) = (each for each in module.modules() if isinstance(each, auxiliary.InstanceBank))
    assert len(bank) == 0


POSTERIORS = {
    "features as a list": (H.tolist(), None, TypeError, "features", "list"),
    "integer features": (H.long(), None, TypeError, "features", "int64"),
    "length of features": (H[:, :5], None, ValueError, "features", r"\(9, 5\)"),
    "one feature": (H[0], None, ValueError, "features", r"\(13,\)"),
    "features elsewhere": (H.to("meta"), None, ValueError, "features", "meta"),
    "floating index": (H, NUMBERED.float(), TypeError, "index", "float32"),
    "rows of index": (H, NUMBERED[:5], ValueError, "index", r"\(5,\)"),
    "index elsewhere": (H, NUMBERED.to("meta"), ValueError, "index", "meta"),
}


@pytest.mark.parametrize("case", POSTERIORS)
def test_the_posterior(case):
    features, index, error, name, came = POSTERIORS[case]
    with raises(error, name, came):
        make_bank(entries()).posterior(features, 0.1, index)


@pytest.mark.parametrize("value", [None, torch.eye(DIM), torch.nn.Linear(2, 2)], ids=["None", "tensor", "layer"])
def test_a_bank_that_is_none(value):
    with raises(TypeError, "bank", "NoneType|Tensor|Linear"):
        auxiliary.auxiliary_divergence(Z, ZT, H, HT, value, **SETTINGS)


def test_an_empty_bank():
    """Rows without a single entry, though none was excluded, are a mistake and not the end of p_S = (1 - lambda) s."""
    bank = auxiliary.InstanceBank(4, DIM, CLASSES)
    with pytest.raises(RuntimeError, match="(?i)bank.*empty|empty.*bank"):
        auxiliary.auxiliary_divergence(Z, ZT, H, HT, bank, **SETTINGS)


def test_a_temperature_without_a_square():
    """T^2 multiplies the first term, and float32 has to hold it."""
    with pytest.raises(ValueError, match="temperature must not exceed"):
        auxiliary.AuxiliaryKD(student_dim=3, teacher_dim=4, num_classes=5, temperature=1e20)
