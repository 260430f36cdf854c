"""Every message says which argument, which rule and what came, and nothing is written before it is raised."""

import math
import re

import pytest
import torch
from cases import logits, pair

import kdkernels as kd

ROWS = torch.ones(4)
ZEROS = torch.zeros(4, dtype=torch.int64)
GRAD = torch.ones(4, requires_grad=True)
SHAPES = "teacher must have the shape of student (4, 7), got "
DTYPES = "must be float32, float16, bfloat16 or float64, got torch."
PER_ROW = "must have one value per row, shape (4,), got "
CUT = "vocab_size must lie in [1, 7], the smaller of the two vocabularies, got "
POSITIVE = "must be positive and finite, got "
DIVISOR = "normalizer replaces the divisor of reduction='mean'; it cannot go with "
LABELS = "labels must lie in [0, 7) or equal ignore_index=-100, got "


def student(**options):
    return logits(4, 7, **options)


# (what is changed in a good call, the error, what its message says)
BAD_CALLS = [
    ({"student": [1.0]}, TypeError, "student must be a torch.Tensor of logits, got list"),
    ({"teacher": None}, TypeError, "teacher must be a torch.Tensor of logits, got NoneType"),
    ({"student": torch.ones(4, 7, dtype=torch.int64)}, TypeError, f"student {DTYPES}int64"),
    ({"teacher": torch.ones(4, 7, dtype=torch.complex64)}, TypeError, f"teacher {DTYPES}complex64"),
    (
        {"teacher": torch.ones(4, 7).to_sparse()},
        TypeError,
        "teacher must be a dense tensor, got layout torch.sparse_coo",
    ),
    ({"student": torch.tensor(1.0)}, ValueError, "student must have shape (..., vocab) with vocab >= 1, got ()"),
    ({"student": torch.ones(4, 0)}, ValueError, "student must have shape (..., vocab) with vocab >= 1, got (4, 0)"),
    ({"teacher": torch.ones(5, 7)}, ValueError, f"{SHAPES}(5, 7)"),
    ({"teacher": torch.ones(1, 7)}, ValueError, f"{SHAPES}(1, 7)"),  # rows do not broadcast
    ({"teacher": torch.ones(7)}, ValueError, f"{SHAPES}(7,)"),
    ({"teacher": torch.ones(4, 8)}, ValueError, f"{SHAPES}(4, 8)"),
    ({"teacher": torch.ones(4, 1)}, ValueError, f"{SHAPES}(4, 1)"),  # nor do classes
    ({"teacher": torch.ones(4, 7, requires_grad=True)}, ValueError, "teacher must not require grad"),
    ({"teacher": torch.ones(4, 7, requires_grad=True)}, ValueError, "pass teacher.detach()"),
    ({"vocab_size": 0}, ValueError, f"{CUT}0"),
    ({"vocab_size": 8}, ValueError, f"{CUT}8"),
    ({"vocab_size": -1}, ValueError, f"{CUT}-1"),
    ({"vocab_size": 3.0}, TypeError, "vocab_size must be an int, got float"),
    ({"loss": "forward_kl"}, TypeError, "loss must be a kdkernels loss such as ForwardKL(), got 'forward_kl'"),
    ({"loss": kd.ForwardKL}, TypeError, "an instance and not the class"),
    ({"temperature": 0.0}, ValueError, f"temperature {POSITIVE}0.0"),
    ({"temperature": -2}, ValueError, f"temperature {POSITIVE}-2"),
    ({"temperature": math.inf}, ValueError, f"temperature {POSITIVE}inf"),
    ({"temperature": math.nan}, ValueError, f"temperature {POSITIVE}nan"),
    ({"temperature": torch.tensor(2.0)}, TypeError, "temperature must be a number, got Tensor"),
    ({"temperature": torch.tensor(2.0)}, TypeError, "got Tensor: pass float(temperature)"),
    ({"temperature": 1e20}, ValueError, "temperature must not exceed 1.8e+19, whose square float32 holds"),
    ({"temperature": True}, TypeError, "temperature must be a number, got bool"),
    ({"reduction": "average"}, ValueError, "must be one of 'none', 'sum', 'mean', 'batchmean', got 'average'"),
    ({"reduction": None}, ValueError, "reduction must be one of"),
    ({"reduction": "sum", "normalizer": 3}, ValueError, f"{DIVISOR}'sum'"),
    ({"reduction": "none", "normalizer": 3}, ValueError, f"{DIVISOR}'none'"),
    ({"reduction": "batchmean", "normalizer": 3}, ValueError, f"{DIVISOR}'batchmean'"),
    ({"normalizer": 0}, ValueError, f"normalizer {POSITIVE}0"),
    ({"normalizer": 10**400}, ValueError, f"normalizer {POSITIVE}1000"),
    ({"normalizer": torch.tensor(0)}, ValueError, f"normalizer {POSITIVE}0 while rows are counted"),
    ({"normalizer": torch.tensor(-6.0)}, ValueError, f"normalizer {POSITIVE}-6.0"),
    ({"normalizer": torch.tensor(math.nan)}, ValueError, f"normalizer {POSITIVE}nan"),
    ({"normalizer": torch.tensor([math.inf])}, ValueError, f"normalizer {POSITIVE}inf"),
    ({"tau_squared": "no"}, TypeError, "tau_squared must be True or False, got 'no'"),
    ({"inplace": "no"}, TypeError, "inplace must be True or False, got 'no'"),
    ({"normalizer": ROWS}, ValueError, "normalizer must be a number or a 0-d tensor, got shape (4,)"),
    ({"normalizer": "3"}, TypeError, "normalizer must be a number or a 0-d tensor, got str"),
    ({"normalizer": torch.tensor(3.0, requires_grad=True)}, ValueError, "normalizer must not require grad"),
    (
        {"mask": torch.ones(4, 1, dtype=torch.bool)},
        ValueError,
        f"mask {PER_ROW}(4, 1): pass mask.reshape(4,)",
    ),
    ({"mask": ROWS}, TypeError, "mask must be boolean (True = counted), got torch.float32: pass mask.bool()"),
    ({"mask": (ROWS > 0).to_sparse()}, TypeError, "mask must be a dense tensor, got layout torch.sparse_coo"),
    ({"mask": [True] * 4}, TypeError, "mask must be a torch.Tensor, got list"),
    ({"weight": torch.ones(4, 7)}, ValueError, f"weight {PER_ROW}(4, 7)"),
    ({"weight": ZEROS}, TypeError, "weight must be floating point, got torch.int64: pass weight.float()"),
    ({"weight": 2.0}, TypeError, "weight must be a torch.Tensor, got float"),
    ({"weight": GRAD}, ValueError, "weight must not require grad (it is a constant of the loss): pass weight.detach()"),
    ({"backend": "cudnn"}, ValueError, "must be one of 'auto', 'reference', 'native', 'triton', got 'cudnn'"),
    ({"teacher": torch.ones(4, 7, device="meta")}, ValueError, "teacher must be on the student's device cpu, got meta"),
    ({"weight": ROWS.to("meta")}, ValueError, "weight must be on the student's device cpu, got meta"),
]
BAD_DISTILLATIONS = [
    ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, ValueError, f"labels {PER_ROW}(4, 1)"),
    ({"labels": torch.zeros(4, 7, dtype=torch.int64)}, ValueError, f"labels {PER_ROW}(4, 7): for one-hot rows"),
    ({"labels": torch.rand(4, 7)}, ValueError, "for one-hot rows or probabilities pass labels.argmax(-1)"),
    ({"labels": ROWS}, TypeError, "labels must be integers (int64), got torch.float32"),
    ({"labels": [0, 1, 2, 3]}, TypeError, "labels must be a torch.Tensor, got list"),
    ({"labels": torch.tensor([0, 1, 2, 7])}, ValueError, f"{LABELS}7"),
    ({"labels": torch.tensor([0, -1, 2, 3])}, ValueError, f"{LABELS}-1"),
    ({"alpha": 1.5}, ValueError, "alpha must lie in [0, 1], got 1.5"),
    ({"alpha": -0.1}, ValueError, "alpha must lie in [0, 1], got -0.1"),
    ({"alpha": math.nan}, ValueError, "alpha must lie in [0, 1], got nan"),
    ({"alpha": torch.ones(4, 1)}, ValueError, f"alpha {PER_ROW}(4, 1)"),
    ({"alpha": torch.ones(1)}, ValueError, f"alpha {PER_ROW}(1,)"),
    ({"alpha": torch.tensor([0.1, 0.5, 5.0, -3.0])}, ValueError, "alpha must lie in [0, 1], got 5.0"),
    ({"alpha": torch.tensor([0.1, 0.5, 1.0, math.nan])}, ValueError, "alpha must lie in [0, 1], got nan"),
    ({"alpha": ZEROS}, TypeError, "alpha must be floating point, got torch.int64"),
    ({"alpha": "half"}, TypeError, "alpha must be a number or one value per row, got str"),
    ({"alpha": GRAD}, ValueError, "alpha must not require grad"),
]


def short(value):
    """A test id: the arguments that are wrong; the message says how."""
    return "-".join(value) if isinstance(value, dict) else value.__name__ if isinstance(value, type) else value[-12:]


def refuse(function, arguments, error, message):
    """The error, and no write: the student that inplace=True offers for writing is as it was."""
    z, t = arguments.pop("student", student()), arguments.pop("teacher", student(seed=1))
    before = z.clone() if isinstance(z, torch.Tensor) else z
    if isinstance(z, torch.Tensor) and z.is_floating_point():
        z = (z.requires_grad_() * 1.0).contiguous()
    with pytest.raises(error, match=re.escape(message)):
        function(z, t, **{"inplace": True} | arguments)
    assert torch.equal(z.detach(), before) if isinstance(z, torch.Tensor) else z == before


@pytest.mark.parametrize("op", ["divergence", "distillation"])
@pytest.mark.parametrize(("changes", "error", "message"), BAD_CALLS, ids=short)
def test_messages(op, changes, error, message):
    arguments = dict(changes)
    if op == "distillation":
        arguments["labels"] = ZEROS
    refuse(getattr(kd, op), arguments, error, message)


@pytest.mark.parametrize(("changes", "error", "message"), BAD_DISTILLATIONS, ids=short)
def test_messages_of_distillation(changes, error, message):
    refuse(kd.distillation, {"labels": ZEROS} | changes, error, message)


def test_an_alpha_without_a_value():
    with pytest.raises(ValueError, match="alpha must have a value for a student on cpu, got one on meta"):
        kd.distillation(student(), student(seed=1), ZEROS, alpha=torch.tensor(0.5, device="meta"))


def test_a_flag_of_the_distances():
    for wrong in ("no", 1, -100, None):
        with pytest.raises(TypeError, match=f"squared must be True or False, got {wrong!r}"):
            kd.trilateral_distances(student(), student(seed=1), ZEROS, None, wrong)


@pytest.mark.parametrize("nothing", [0, torch.tensor(0), torch.tensor(0.0)], ids=repr)
def test_a_normalizer_of_0_where_there_is_no_row(nothing):
    """0 where no row counts: of none at all, too."""
    empty, labels = torch.empty(0, 5), torch.empty(0, dtype=torch.int64)
    assert kd.divergence(empty, empty, normalizer=nothing) == 0
    assert kd.distillation(empty, empty, labels, normalizer=nothing) == 0
    assert kd.divergence(student(), student(), mask=ZEROS > 0, normalizer=nothing) == 0


def test_different_vocabularies_name_vocab_size():
    with pytest.raises(ValueError, match="vocab_size="):
        kd.divergence(torch.ones(4, 7), torch.ones(4, 8))
    assert float(kd.divergence(torch.ones(4, 7), torch.ones(4, 8), vocab_size=7)) == 0.0


@pytest.mark.parametrize("function", [kd.softmax, kd.log_softmax])
def test_softmax_messages(function):
    for arguments, error, message in [
        (([1.0],), TypeError, "logits must be a torch.Tensor of logits, got list"),
        (
            (torch.ones(3, dtype=torch.int32),),
            TypeError,
            f"logits {DTYPES}int32",
        ),
        ((torch.ones(3, 0),), ValueError, "logits must have shape (..., vocab) with vocab >= 1, got (3, 0)"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            function(*arguments)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        function(torch.ones(3), temperature=0)
    with pytest.raises(ValueError, match="backend must be one of"):
        function(torch.ones(3), backend="fast")


@pytest.mark.parametrize(
    ("loss", "name", "ends"),
    [
        (kd.JensenShannon, "beta", ("ForwardKL()", "ReverseKL()")),
        (kd.SkewKL, "alpha", ("ForwardKL()", "zero")),
        (kd.SkewReverseKL, "alpha", ("ReverseKL()", "zero")),
    ],
)
def test_parameters_strictly_between_0_and_1(loss, name, ends):
    """The ends raise and name what the loss becomes there."""
    for value in (0.0, 1.0, 0, 1, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"{name} must lie strictly between 0 and 1 .*got {value}") as caught:
            loss(**{name: value})
        assert all(end in str(caught.value) for end in ends)
    for value in (True, "0.5", None, torch.tensor(0.5)):
        with pytest.raises(TypeError, match=f"{name} must be a number, got {type(value).__name__}"):
            loss(**{name: value})


NESTED = [torch.randn(2, 5), torch.randn(3, 5)]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (torch.strided, "student must be a dense tensor, got a nested one: pass torch.cat(list(student.unbind()))"),
        (torch.jagged, "student must be a dense tensor, got layout torch.jagged: pass its rows, .values()"),
    ],
)
def test_nested_logits(layout, message):
    nested = torch.nested.nested_tensor(NESTED, layout=layout)
    for call in (lambda: kd.divergence(nested, nested), lambda: kd.trilateral_distances(nested, nested, ZEROS)):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


def test_inplace_on_a_slice_says_what_to_do_instead():
    z = torch.ones(2, 5, 7, requires_grad=True) * 1
    with pytest.raises(ValueError, match=re.escape("shift the labels instead, F.pad(labels[:, 1:], (0, 1), value=")):
        kd.divergence(z[:, :-1], torch.ones(2, 4, 7), inplace=True)


def test_losses_are_frozen_values():
    assert kd.JensenShannon(beta=0.3) == kd.JensenShannon(0.3) != kd.JensenShannon(0.4)
    assert len({kd.ForwardKL(), kd.ForwardKL(), kd.SkewKL(0.1), kd.SkewKL()}) == 2
    with pytest.raises(AttributeError):
        kd.SkewKL().alpha = 0.5


def test_keywords_are_keywords():
    z, t = pair(4, 7)
    with pytest.raises(TypeError):
        kd.divergence(z, t, kd.ForwardKL(), 2.0)
    with pytest.raises(TypeError):
        kd.distillation(z, t, torch.zeros(4, dtype=torch.int64), kd.ForwardKL(), 0.5)
