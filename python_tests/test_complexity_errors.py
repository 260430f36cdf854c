"""What kdkernels.methods.complexity refuses: the error names the argument, the rule and what came."""

import pytest
import torch
from cases import F16, F32, F64
from complexity_grams import spd, vectors
from complexity_models import FEATURES, Vector, inputs, mlp, network
from torch import nn

from kdkernels.methods import complexity

X, TWO = inputs("mlp", 4, F32), inputs("two inputs", 4, F32)
EITHER = (TypeError, ValueError)


class Returns(nn.Module):
    """A parameter, and outputs that something is done to."""

    def __init__(self, change):
        super().__init__()
        self.linear, self.change = nn.Linear(FEATURES, 6), change

    def forward(self, x):
        return self.change(self.linear(x))


def frozen():
    return mlp().requires_grad_(False)


KERNELS = {
    "no module": ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module, got function"),
    "no input": ({"x": None}, TypeError, "x must .*got NoneType"),
    "a list": ({"x": [[1.0]]}, TypeError, "x must .*got list"),
    "a tuple of numbers": ({"x": (X, 3)}, TypeError, "x must .*int"),
    "an empty tuple": ({"x": ()}, EITHER, "x must"),
    "no example": ({"x": X[:0]}, ValueError, r"x must .*(\(0, 8\)|got 0)"),
    "a scalar": ({"x": torch.tensor(1.0)}, ValueError, r"x must .*\(\)"),
    "unequal": ({"model": network("two inputs", F32), "x": (TWO[0], TWO[1][:3])}, ValueError, r"x must .*4.*3"),
    "nothing to differentiate": ({"model": frozen()}, ValueError, "model must .*grad"),
    "no parameter": ({"model": nn.Flatten()}, ValueError, "model must .*grad"),
    "another word": ({"outputs": "both"}, ValueError, "outputs must .*'?both"),
    "output d": ({"outputs": 3}, ValueError, "outputs must .*got 3"),
    "output -d - 1": ({"outputs": -4}, ValueError, "outputs must .*got -4"),
    "output 1 of (n,)": ({"model": Vector(), "outputs": 1}, ValueError, "outputs must .*got 1"),
    "half an output": ({"outputs": 1.0}, TypeError, "outputs must .*float|outputs must .*1.0"),
    "a bool": ({"outputs": True}, TypeError, "outputs must .*bool|outputs must .*True"),
    "no chunk": ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
    "half a chunk": ({"chunk": 1.5}, TypeError, "chunk must be an int, got float"),
    "no memory": ({"memory": 0}, ValueError, "memory must .*got 0"),
    "negative memory": ({"memory": -1}, ValueError, "memory must .*got -1"),
    "memory in words": ({"memory": "1 GiB"}, TypeError, "memory must .*str"),
    "half precision": ({"dtype": F16}, EITHER, "dtype must .*float16"),
    "integers": ({"dtype": torch.int64}, EITHER, "dtype must .*int64"),
    "a name": ({"dtype": "float64"}, EITHER, "dtype must .*float64"),
    "a tuple comes": ({"model": Returns(lambda z: (z, z))}, EITHER, "model must return .*tuple"),
    "a dict comes": ({"model": Returns(lambda z: {"logits": z})}, EITHER, "model must return .*dict"),
    "three dimensions": ({"model": Returns(lambda z: z.unflatten(-1, (3, 2)))}, EITHER, "model must return .*3, 2"),
    "a mean": ({"model": Returns(lambda z: z.mean())}, EITHER, r"model must return .*\(\)"),
}


@pytest.mark.parametrize("case", KERNELS)
def test_refused_kernels(case):
    options, error, message = KERNELS[case]
    arguments = {"model": network("mlp", F32), "x": X, "progress": False} | options
    with pytest.raises(error, match=message):
        complexity.empirical_ntk(**arguments)


K, Y = spd(12), vectors(4, 3)
BENT = K.clone()
BENT[0, 1] += 1e-6
SINGLE = spd(12, dtype=F32)
SINGLE_BENT = SINGLE.clone()
SINGLE_BENT[0, 1] += 1e-2

GRAMS = {
    "no tensor": ([[1.0]], TypeError, "gram must be a torch.Tensor.*got list"),
    "integers": (torch.eye(12, dtype=torch.int64), TypeError, "gram must .*int64"),
    "complex": (K.to(torch.complex128), TypeError, "gram must .*complex128"),
    "eight bits": (K.to(torch.float8_e4m3fn), TypeError, "gram must be float32, float16.*got torch.float8_e4m3fn"),
    "sparse": (K.to_sparse(), TypeError, "gram must be a dense tensor, got layout torch.sparse_coo"),
    "not square": (K[:, :11], ValueError, r"gram must .*\(12, 11\)"),
    "one dimension": (K[0], ValueError, r"gram must .*\(12,\)"),
    "several": (K[None], ValueError, r"gram must .*\(1, 12, 12\)"),
    "not symmetric": (BENT, ValueError, "gram must .*symmetric"),
    "not symmetric, single": (SINGLE_BENT, ValueError, "gram must .*symmetric"),
    "NaN": (K.clone().fill_(torch.nan), ValueError, "gram must .*(finite|NaN)"),
    "one NaN": (K.clone().index_put_((torch.tensor(3), torch.tensor(3)), K.new_tensor(torch.nan)), ValueError, "gram"),
    "infinite": (torch.diag(K.new_full((12,), torch.inf)), ValueError, "gram must .*finite"),
}
TARGETS = {
    "no tensor": ([1.0] * 12, TypeError, "targets must be a torch.Tensor.*got list"),
    "labels": (torch.arange(12), TypeError, "targets must be float32.*see `residual`.*got torch.int64"),
    "eight bits": (Y.to(torch.float8_e4m3fn), TypeError, "targets must be float32.*got torch.float8_e4m3fn"),
    "sparse": (Y.to_sparse(), TypeError, "targets must be a dense tensor, got layout torch.sparse_coo"),
    "another number": (vectors(11), ValueError, r"targets must .*\(11,\)"),
    "a number too many": (vectors(5, 3), ValueError, r"targets must .*\(5, 3\)"),
    "a scalar": (torch.tensor(1.0), ValueError, r"targets must .*\(\)"),
    "sets without outputs": (vectors(5, 12), ValueError, r"targets must .*\((k, N|5, 12), 1\)"),
    "sets that do not fit": (vectors(2, 5, 3), ValueError, r"targets must .*\(2, 5, 3\)"),
    "elsewhere": (Y.to("meta"), ValueError, "targets must .*device.*meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAMS)
@pytest.mark.parametrize("function", [complexity.supervision_complexity, complexity.kernel_alignment])
def test_refused_grams(function, case):
    gram, error, message = GRAMS[case]
    with pytest.raises(error, match=message):
        function(gram, Y)


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("function", [complexity.supervision_complexity, complexity.kernel_alignment])
def test_refused_targets(function, case):
    targets, error, message = TARGETS[case]
    with pytest.raises(error, match=message):
        function(K, targets)


@pytest.mark.parametrize("dtype", [F64, F32])
def test_asymmetry_of_one_rounding_is_none(dtype):
    gram = spd(12, dtype=dtype)
    gram[0, 1] = torch.nextafter(gram[0, 1], gram.new_tensor(9.0))
    assert gram[0, 1] != gram[1, 0]
    wanted = complexity.supervision_complexity(spd(12, dtype=dtype), Y)
    got = complexity.supervision_complexity(gram, Y)
    assert float(got.value) == pytest.approx(float(wanted.value), rel=1e-4 if dtype == F32 else 1e-12)


@pytest.mark.parametrize("jitter", ["auto", 0, 1e-3])
def test_a_gram_of_zeros(jitter):
    with pytest.raises(ValueError, match="gram"):
        complexity.supervision_complexity(torch.zeros(12, 12), Y, jitter=jitter)


@pytest.mark.parametrize(
    ("jitter", "error"),
    [(-1e-9, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("much", EITHER), (None, TypeError),
     (True, TypeError), (1e300, ValueError), (torch.tensor(1.0), TypeError)],
)  # fmt: skip
def test_refused_jitter(jitter, error):
    with pytest.raises(error, match="jitter must"):
        complexity.supervision_complexity(K, Y, jitter=jitter)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (spd(11), ValueError, r"other must have the shape of gram \(12, 12\), got \(11, 11\)"),
        ([[1.0]], TypeError, "other must be a torch.Tensor.*got list"),
        (K.clone().fill_(torch.nan), ValueError, "other must .*(finite|NaN)"),
        (K.to("meta"), ValueError, "other must .*device.*meta"),
    ],
)
def test_refused_similarities(other, error, message):
    with pytest.raises(error, match=message):
        complexity.ntk_similarity(K, other)


S, LABELS = vectors(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
HIDDEN = S.clone()
HIDDEN[1, 2] = -torch.inf
BOTH_HIDDEN = {"student": HIDDEN, "teacher_or_labels": HIDDEN.clone()}
NO_CLASS = S.clone()
NO_CLASS[1] = -torch.inf
RESIDUALS = {
    "no student": ({"student": [[1.0]]}, TypeError, "student must be a torch.Tensor.*got list"),
    "one dimension": ({"student": S[0], "teacher_or_labels": S[0]}, ValueError, r"student must .*\(5,\)"),
    "integer student": ({"student": S.long()}, TypeError, "student must .*int64"),
    "no teacher": ({"teacher_or_labels": None}, TypeError, "teacher_or_labels must .*NoneType"),
    "other classes": ({"teacher_or_labels": S[:, :4]}, ValueError, r"must .*\(6, 5\).*got \(6, 4\)"),
    "other examples": ({"teacher_or_labels": S[:4]}, ValueError, r"must .*\(6, 5\).*got \(4, 5\)"),
    "too few labels": ({"teacher_or_labels": LABELS[:5]}, ValueError, r"must .*6.*got \(5,\)"),
    "a label of C": ({"teacher_or_labels": LABELS + 1}, ValueError, r"must lie in \[0, 5\), got 5"),
    "ignored": ({"teacher_or_labels": LABELS - 100}, ValueError, r"must lie in \[0, 5\), got -100"),
    "floating labels": ({"teacher_or_labels": LABELS.double()}, EITHER, r"must .*(\(6,\)|float64)"),
    "space": ({"space": "weights"}, ValueError, "space must .*weights"),
    "logits of labels": ({"teacher_or_labels": LABELS, "space": "logits"}, ValueError, "space must .*logits"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    "temperature of logits": ({"space": "logits", "temperature": 4.0}, ValueError, "temperature must .*4"),
    "NaN": ({"student": S * torch.nan}, ValueError, "must differ by finite numbers.*row 0"),
    "NaN of labels": ({"student": S * torch.nan, "teacher_or_labels": LABELS}, ValueError, "must differ by finite"),
    "no class": ({"teacher_or_labels": NO_CLASS}, ValueError, "must differ by finite.*row 1"),
    "difference of infinities": ({**BOTH_HIDDEN, "space": "logits"}, ValueError, "must differ by finite.*row 1"),
    "temperature of labels": ({"teacher_or_labels": LABELS, "temperature": 4.0}, ValueError, "temperature must .*4"),
}


@pytest.mark.parametrize("case", RESIDUALS)
def test_refused_residuals(case):
    options, error, message = RESIDUALS[case]
    with pytest.raises(error, match=message):
        complexity.residual(**{"student": S, "teacher_or_labels": S.flip(0)} | options)


def test_a_class_that_is_masked_out_has_a_residual():
    target, present = S.flip(0).softmax(-1), HIDDEN.softmax(-1)
    torch.testing.assert_close(complexity.residual(HIDDEN, S.flip(0)), target - present)
    assert torch.equal(complexity.residual(**BOTH_HIDDEN), torch.zeros_like(S))


def test_nothing_is_touched_by_a_kernel_that_is_refused():
    model = network("norms", F32)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match="outputs"):
        complexity.empirical_ntk(model, X, outputs=3, progress=False)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
