"""The registered operators are public: they refuse, by name and before any work, what does not fit together."""

import pytest
import torch
from cases import logits

import kdkernels as kd  # noqa: F401 - registers

OPS = torch.ops.kdkernels
ROWS, VOCAB = 9, 50
X, T = logits(ROWS, VOCAB), logits(ROWS, VOCAB, seed=1)
Y = torch.arange(ROWS)
NUMBERS = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
FIELDS = ("labels", "soft_weight", "hard_weight", "table", "loss", "vocab", "reduce", "backend", "numbers")
USUAL = dict(zip(FIELDS, (None, None, None, None, "forward_kl", None, True, "native", NUMBERS), strict=True))
EDGES = {"class_mean": None, "labels": Y, "squared": False, "ignore_index": -100, "vocab": None, "backend": "native"}
SHAPE = r"teacher must have the shape of student \(9, 50\), got "


def divergence(student=X, teacher=T, **changes):
    return OPS.divergence(student, teacher, *(USUAL | changes).values())


def trilateral(student=X, teacher=T, **changes):
    return OPS.trilateral(student, teacher, *(EDGES | changes).values())


def trilateral_backward(**changes):
    distances, statistics = trilateral()
    given = {"statistics": statistics, "distances": distances, "upstream": distances} | changes
    return OPS.trilateral_backward(X, T, *EDGES.values(), *given.values())


WRONG_FOR_BOTH = [
    ({"teacher": T[:4]}, ValueError, SHAPE + r"\(4, 50\)"),
    ({"teacher": T[:, :49]}, ValueError, SHAPE + r"\(9, 49\)"),
    ({"teacher": T.to("meta")}, ValueError, "teacher must be on the student's device cpu, got meta"),
    ({"student": Y}, TypeError, "student must be float32, float16, bfloat16 or float64, got torch.int64"),
    ({"student": torch.tensor(1.0)}, ValueError, r"student must have shape \(..., vocab\)"),
    ({"labels": Y[:4]}, ValueError, r"labels must have shape \(9,\), got \(4,\)"),
    ({"labels": Y.int()}, TypeError, "labels must be torch.int64, got torch.int32"),
    ({"labels": Y.to("meta")}, ValueError, "labels must be on the student's device cpu, got meta"),
    ({"vocab": 51}, ValueError, r"vocab must lie in \[1, 50\], got 51"),
    ({"vocab": 0}, ValueError, r"vocab must lie in \[1, 50\], got 0"),
    ({"backend": "reference"}, ValueError, "backend must be one of 'native', 'triton', got 'reference'"),
]
WRONG_DIVERGENCES = [
    ({"soft_weight": torch.ones(3)}, ValueError, r"soft_weight must have shape \(9,\), got \(3,\)"),
    ({"hard_weight": torch.ones(9).double()}, TypeError, "hard_weight must be torch.float32, got torch.float64"),
    ({"loss": "nothing"}, ValueError, "loss must be one of 'forward_kl'"),
    ({"loss": "perturbed"}, ValueError, "table must be given: 'perturbed'"),
    ({"table": torch.ones(1, 1)}, ValueError, "table must be None for 'forward_kl'"),
    ({"loss": "perturbed", "table": torch.ones(9, 1)}, ValueError, r"1 to 8 orders, got \(9, 1\)"),
    ({"loss": "perturbed", "table": torch.ones(2, 50)}, ValueError, r"\(orders, 64\), 1 to 8 orders, got \(2, 50\)"),
    ({"numbers": NUMBERS[:2]}, ValueError, "numbers must hold parameter, temperature, soft_scale, hard_scale"),
    ({"numbers": NUMBERS[0]}, ValueError, "numbers must hold parameter"),
]
WRONG_TRILATERALS = [
    ({"labels": None}, TypeError, "labels must be int64, one per row, got None"),
    ({"class_mean": torch.ones(9, 50)}, ValueError, r"class_mean must have shape \(50, 50\), got \(9, 50\)"),
    ({"class_mean": torch.ones(50, 50).to("meta")}, ValueError, "class_mean must be on the student's device"),
]


def refused(function, changes, error, message):
    """By the implementation and, as a tracer meets it, by the fake."""
    with pytest.raises(error, match=message):
        function(**changes)
    if "numbers" not in changes and "backend" not in changes:  # a fake does not know numbers, nor what runs here
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises((error, RuntimeError)):
            function(**changes)


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_FOR_BOTH + WRONG_DIVERGENCES)
def test_divergence(changes, error, message):
    refused(divergence, changes, error, message)


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_FOR_BOTH + WRONG_TRILATERALS)
def test_trilateral(changes, error, message):
    refused(trilateral, changes, error, message)


@pytest.mark.parametrize("name", ["statistics", "distances", "upstream"])
def test_trilateral_backward(name):
    whole = {"statistics": (9, 10)}.get(name, (9, 3))
    for wrong in (torch.ones(whole[0], whole[1] - 1), torch.ones(whole[0] - 1, whole[1]), torch.empty(0)):
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            trilateral_backward(**{name: wrong})
    with pytest.raises(TypeError, match=f"{name} must be torch.float32"):
        trilateral_backward(**{name: torch.ones(whole, dtype=torch.float64)})


def test_upstream_of_a_divergence():
    for reduce, right, wrong in ((True, (), (ROWS,)), (False, (ROWS,), ())):
        settings = (USUAL | {"reduce": reduce}).values()
        assert OPS.divergence_gradient(X, T, *settings, torch.ones(right))[0].shape == right
        with pytest.raises(ValueError, match="upstream must have shape"):
            OPS.divergence_gradient(X, T, *settings, torch.ones(wrong))


def test_softmax():
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"upstream must have shape \(9, 50\), got \(3, 50\)"):
        OPS.softmax_backward(X[:3], X, False, "native", one)
    with pytest.raises(ValueError, match="numbers must hold temperature"):
        OPS.softmax(X, False, "native", torch.ones(2))
    with pytest.raises(RuntimeError, match="backend 'triton' was asked for and cannot run"):
        OPS.softmax(X.double(), False, "triton", one)


def test_the_extension_follows_no_null_pointer():
    """What no check saw: a tensor without memory where there are elements."""
    from kdkernels import _C

    good, none = (X.data_ptr(), VOCAB, 0), (0, VOCAB, 0)
    for source, target in ((none, good), (good, none)):
        with pytest.raises(ValueError, match="has no memory"):
            _C.softmax(source, target, ROWS, VOCAB, 1.0, False, False, (-1, 1))
    _C.softmax(none, none, 0, VOCAB, 1.0, False, False, (-1, 1))


@pytest.mark.parametrize("name", ["student", "teacher", "labels", "soft_weight", "hard_weight"])
def test_a_freed_operand_is_not_taken_for_an_absent_one(name):
    given = {"student": X.clone(), "teacher": T.clone(), **USUAL}
    given |= {"labels": Y.clone(), "soft_weight": torch.ones(ROWS), "hard_weight": torch.ones(ROWS)}
    given[name].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory"):
        OPS.divergence(*given.values())
