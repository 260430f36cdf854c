"""What kdkernels.methods.pt refuses: the error names the argument, the rule and what came."""

import pytest
import torch

from kdkernels.methods import pt

T, ONE = torch.full((2, 4), 0.25), torch.ones(1)
REFUSED = {
    "no tensor": ([0.5, 0.5], ONE, TypeError, "teacher_probs must be a torch.Tensor"),
    "integers": (torch.eye(3, dtype=torch.int64), ONE, TypeError, "teacher_probs must be float32"),
    "a scalar": (torch.tensor(1.0), ONE, ValueError, "teacher_probs must have shape"),
    "no class": (torch.zeros(3, 0), ONE, ValueError, "teacher_probs must have shape"),
    "logits": (torch.tensor([2.0, 1.0]), ONE, ValueError, "teacher_probs must sum to one.*3.0"),
    "one row of two": (torch.tensor([[1.0, 0.0], [0.9, 0.0]]), ONE, ValueError, "teacher_probs must sum to one.*0.89"),
    "negative": (torch.tensor([1.5, -0.5]), ONE, ValueError, "teacher_probs must not be negative.*-0.5"),
    "NaN": (torch.tensor([1.0, float("nan")]), ONE, ValueError, "teacher_probs must not be negative or NaN"),
    "infinite": (torch.tensor([float("inf"), 0.0]), ONE, ValueError, "teacher_probs must sum to one"),
    "a list": (T, [1.0], TypeError, "coefficients must be a torch.Tensor"),
    "integer coefficients": (T, torch.ones(1, dtype=torch.int64), TypeError, "coefficients must be float32"),
    "order 9": (T, torch.ones(9), ValueError, "coefficients must have shape"),
    "order 0": (T, torch.ones(0), ValueError, "coefficients must have shape"),
    "three dimensions": (T, torch.ones(1, 4, 2), ValueError, "coefficients must have shape"),
    "other classes": (T, torch.ones(3, 2), ValueError, r"coefficients must have shape \(M,\) or \(4, M\).*\(3, 2\)"),
    "infinite coefficient": (T, torch.tensor([1.0, float("inf")]), ValueError, "coefficients must be finite"),
    "differentiable": (T, torch.ones(1, requires_grad=True), ValueError, "coefficients must not require grad"),
    "device": (T, torch.ones(1, device="meta"), ValueError, "coefficients must be on the teacher's device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    probs, coefficients, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        pt.proxy_teacher(probs, coefficients)


Z, LABELS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1])
SETS = {
    "one dimension": (T[0], LABELS, ValueError, r"must have shape \(N, C\)"),
    "three dimensions": (T[None], LABELS, ValueError, r"must have shape \(N, C\)"),
    "no example": (T[:0], LABELS[:0], ValueError, r"must have shape \(N, C\) with N >= 1.*\(0, 4\)"),
    "another number": (T, LABELS, ValueError, r"labels must have shape \(2,\).*\(3,\)"),
    "labels of two dimensions": (T, LABELS[:2, None], ValueError, r"labels must have shape \(2,\).*\(2, 1\)"),
    "a list of labels": (T, [0, 1], TypeError, "labels must be a torch.Tensor, got list"),
    "floating labels": (T, torch.ones(2), TypeError, "labels must be integers.*float32"),
    "a label of C": (T, torch.tensor([0, 4]), ValueError, r"labels must lie in \[0, 4\), got 4"),
    "ignore_index": (T, torch.tensor([0, -100]), ValueError, r"labels must lie in \[0, 4\), got -100"),
    "elsewhere": (T, torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "labels must be on the device"),
}


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("function", [pt.quality, pt.search_coefficients])
def test_refused_sets(case, function):
    values, labels, error, message = SETS[case]
    with pytest.raises(error, match=message):
        function(values, labels)


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [(None, TypeError, "proxy must be a torch.Tensor"), (4 * T, ValueError, "proxy must sum to one"),
     (T.long(), TypeError, "proxy must be float32")],
)  # fmt: skip
def test_refused_by_quality(probs, error, message):
    with pytest.raises(error, match=message):
        pt.quality(probs, torch.tensor([0, 1]))


SEARCHES = {
    "no tensor": ({"teacher_logits": [[1.0]]}, TypeError, "teacher_logits must be a torch.Tensor"),
    "integer logits": ({"teacher_logits": Z.long()}, TypeError, "teacher_logits must be float32"),
    "NaN": ({"teacher_logits": Z.clone().fill_(torch.nan)}, ValueError, "teacher_logits must hold no NaN"),
    "inf": ({"teacher_logits": Z.clone().fill_(torch.inf)}, ValueError, "teacher_logits must hold no NaN, no .inf"),
    "-inf": ({"teacher_logits": Z.clone().fill_(-torch.inf)}, ValueError, "no row of -inf alone"),
    "no draws": ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
    "half a draw": ({"draws": 0.5}, TypeError, "draws must be an int"),
    "order 0": ({"orders": (1, 0)}, ValueError, r"orders must lie in 1..8, got 0"),
    "order 9": ({"orders": [9]}, ValueError, r"orders must lie in 1..8, got 9"),
    "half an order": ({"orders": [1.5]}, TypeError, "orders must be ints"),
    "one order": ({"orders": 3}, TypeError, "orders must be a sequence"),
    "no order": ({"orders": ()}, ValueError, "orders must name at least one"),
    "low = high": ({"low": 1.0, "high": 1.0}, ValueError, "low must be below high"),
    "low > high": ({"low": 11}, ValueError, "low must be below high, got low=11"),
    "infinite": ({"high": float("inf")}, ValueError, "high must be finite"),
    "text": ({"low": "-1"}, TypeError, "low must be a number"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    "seed": ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
}


@pytest.mark.parametrize("case", SEARCHES)
def test_refused_searches(case):
    options, error, message = SEARCHES[case]
    with pytest.raises(error, match=message):
        pt.search_coefficients(**{"teacher_logits": Z, "labels": LABELS, "progress": False} | options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a generator that is not on the CPU needs a GPU")
def test_a_generator_of_a_device_is_refused():
    with pytest.raises(ValueError, match="generator must be a CPU generator"):
        pt.search_coefficients(Z, LABELS, generator=torch.Generator("cuda"), progress=False)
