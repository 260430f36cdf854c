"""Coefficients inside a criterion as its state: what nn.CrossEntropyLoss(weight=) promises of its weight."""

import copy
import io
import multiprocessing
import pickle
import warnings

import pytest
import torch
from cases import ALL_LOSSES, BF16, F16, F32, F64, name_of
from module_cases import KINDS, SHAPES, batch, coefficients, expected

import kdkernels as kd


@SHAPES
@KINDS
def test_in_the_state_dict_and_through_a_file(kind, shape):
    eps = coefficients(shape)
    source, target = kind(kd.Perturbed(eps)), kind(kd.Perturbed(coefficients(shape, seed=6)))
    assert list(source.state_dict()) == ["coefficients"] and not list(source.parameters())
    assert torch.equal(source.state_dict()["coefficients"], eps)
    assert source.coefficients.is_contiguous()  # safetensors takes nothing else
    assert target(*batch(kind)) != expected(kind, eps)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(target(*batch(kind)), expected(kind, eps))
    assert torch.equal(target.loss.coefficients, eps)


@SHAPES
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("where_from", ["constructor", "meta"])
def test_loading_replaces_what_the_loss_uses(shape, assign, where_from):
    kind, eps = kd.DivergenceLoss, coefficients(shape)
    wrong = kd.Perturbed(coefficients(shape, seed=6))
    model = torch.nn.ModuleDict({"loss": kind(wrong)})
    if where_from == "meta":
        model.to("meta").to_empty(device="cpu")
    else:
        model["loss"](*batch(kind))
    model.load_state_dict({"loss.coefficients": eps}, assign=assign)
    assert torch.equal(model["loss"](*batch(kind)), expected(kind, eps))
    assert torch.equal(wrong.coefficients, coefficients(shape, seed=6))  # the caller's own loss is as it was


def test_what_is_no_set_of_coefficients_is_not_loaded():
    criterion = kd.DivergenceLoss(kd.Perturbed(torch.ones(3)))
    for value, message in (
        (torch.tensor([1.0, torch.nan, 0.0]), "must be finite"),
        (torch.tensor([1, 2, 3]), "must be float32"),
        (torch.ones(4), "size mismatch"),
    ):
        with pytest.raises(RuntimeError, match=message):
            criterion.load_state_dict({"coefficients": value})
    with pytest.raises(RuntimeError, match="Missing key"):
        criterion.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        kd.DivergenceLoss().load_state_dict(criterion.state_dict())
    assert torch.equal(criterion.coefficients, torch.ones(3))
    with pytest.warns(UserWarning, match="non-convex"):
        criterion.load_state_dict({"coefficients": torch.tensor([-3.0, 0.0, 0.0])})


@SHAPES
@KINDS
@pytest.mark.parametrize(
    "twin",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), lambda x: x._replicate_for_data_parallel()],
    ids=["copy", "deepcopy", "pickle", "replica"],
)
def test_copies_use_their_own_buffers(kind, shape, twin):
    eps = coefficients(shape)
    criterion = kind(kd.Perturbed(eps))
    criterion(*batch(kind))
    other = twin(criterion)
    assert torch.equal(other(*batch(kind)), expected(kind, eps))
    new = coefficients(shape, seed=6)
    other._buffers = other._buffers | {"coefficients": new}  # as torch.nn.parallel.replicate sets a replica's
    assert torch.equal(other(*batch(kind)), expected(kind, new))
    assert torch.equal(criterion(*batch(kind)), expected(kind, eps))


def test_a_whole_module_through_torch_save():
    criterion = kd.DistillationLoss(kd.Perturbed(coefficients((3,))), alpha=0.3)
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    args = batch(kd.DistillationLoss)
    assert torch.equal(torch.load(file, weights_only=False)(*args), criterion(*args))


def _answer(criterion, args, queue):
    queue.put(float(criterion(*args)))


def test_another_process_gets_the_criterion():
    criterion, args = kd.DivergenceLoss(kd.Perturbed(coefficients((20, 3)))), batch(kd.DivergenceLoss)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(criterion, args, queue))
    process.start()
    got = queue.get(timeout=120)
    process.join()
    assert got == float(criterion(*args))


@SHAPES
def test_writing_into_the_buffer_is_seen(shape):
    """DistributedDataParallel's broadcast, an average of models, functional_call: all of them write or swap buffers."""
    kind, eps = kd.DivergenceLoss, coefficients(shape, seed=6)
    criterion = kind(kd.Perturbed(coefficients(shape)))
    criterion(*batch(kind))
    given = torch.func.functional_call(criterion, {"coefficients": eps}, batch(kind))
    assert torch.equal(given, expected(kind, eps))
    assert torch.equal(criterion(*batch(kind)), expected(kind, coefficients(shape)))
    criterion.coefficients.copy_(eps)
    assert torch.equal(criterion(*batch(kind)), expected(kind, eps))
    criterion.coefficients.data = coefficients(shape)
    assert torch.equal(criterion(*batch(kind)), expected(kind, coefficients(shape)))
    with torch.inference_mode():
        criterion.to("meta").to_empty(device="cpu").load_state_dict({"coefficients": coefficients(shape)})
        assert torch.equal(criterion(*batch(kind)), expected(kind, coefficients(shape)))
        criterion.coefficients.copy_(eps)
        assert torch.equal(criterion(*batch(kind)), expected(kind, eps))


def test_coefficients_that_came_to_require_grad_are_refused():
    """No gradient reaches them: a training that waits for one would wait in silence."""
    criterion, args = kd.DivergenceLoss(kd.Perturbed(torch.ones(3))), batch(kd.DivergenceLoss)
    criterion(*args)
    criterion.coefficients.requires_grad_()
    with pytest.raises(ValueError, match="coefficients must not require grad"):
        criterion(*args)
    criterion = kd.DivergenceLoss(kd.Perturbed(torch.ones(3)))
    criterion.load_state_dict({"coefficients": torch.nn.Parameter(torch.ones(3))}, assign=True)
    with pytest.raises(ValueError, match="coefficients must not require grad"):
        criterion(*args)
    criterion.requires_grad_(False)
    assert torch.equal(criterion(*args), expected(kd.DivergenceLoss, torch.ones(3)))


@SHAPES
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=name_of)
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float", "to"])
def test_a_cast_does_not_round_coefficients(shape, dtype, cast):
    eps = coefficients(shape, dtype=dtype)
    criterion = kd.DivergenceLoss(kd.Perturbed(eps))
    before = criterion(*batch(kd.DivergenceLoss))
    criterion = criterion.to(F16) if cast == "to" else getattr(criterion, cast)()
    assert criterion.coefficients.dtype == dtype and torch.equal(criterion.coefficients, eps)
    assert torch.equal(criterion(*batch(kd.DivergenceLoss)), before)
    criterion.load_state_dict({"coefficients": coefficients(shape, dtype=F64)})
    assert criterion.coefficients.dtype == dtype


@SHAPES
@KINDS
def test_moving_the_module_moves_the_loss(where, kind, shape):
    eps = coefficients(shape)
    criterion = kind(kd.Perturbed(eps), backend=where.backend).to(where.device)
    assert criterion.coefficients.device.type == where.device
    assert torch.equal(criterion(*batch(kind, where.device)), expected(kind, eps, where.device, where.backend))
    criterion = criterion.cpu()
    assert torch.equal(criterion.loss.coefficients, eps)
    assert criterion.to("meta").loss.coefficients.is_meta


def test_another_loss_may_be_assigned():
    criterion, args = kd.DivergenceLoss(kd.Perturbed(torch.ones(2))), batch(kd.DivergenceLoss)
    for loss in (kd.ReverseKL(), kd.Perturbed(torch.ones(20, 2)), kd.Perturbed(torch.ones(3)), kd.JensenShannon(0.3)):
        criterion.loss = loss
        assert torch.equal(criterion(*args), kd.divergence(*args, loss))
        assert list(criterion.state_dict()) == list(loss.tensors())
        assert type(loss).__name__ in repr(criterion)
    with pytest.raises(TypeError, match="loss must be a kdkernels loss"):
        criterion.loss = kd.ReverseKL
    assert criterion.loss == kd.JensenShannon(0.3)


def test_every_loss_says_which_of_its_fields_are_tensors():
    for loss in ALL_LOSSES:
        fields = {name for name in loss.__dataclass_fields__ if isinstance(getattr(loss, name), torch.Tensor)}
        assert set(loss.tensors()) == {name for name in fields if not name.startswith("_")}
        twin = loss.with_tensors({name: tensor.clone() for name, tensor in loss.tensors().items()})
        assert type(twin) is type(loss) and repr(twin) == repr(loss)
        with warnings.catch_warnings(record=True) as caught:
            loss.look()
        assert not caught


def test_alpha_that_is_a_tensor_is_state_too():
    alpha, args = torch.tensor(0.2, dtype=F64), batch(kd.DistillationLoss)
    criterion = kd.DistillationLoss(alpha=alpha).half()
    assert criterion.alpha.dtype == F64 and list(criterion.state_dict()) == ["alpha"]
    torch.testing.assert_close(criterion(*args), kd.distillation(*args, alpha=0.2))
    alpha.fill_(0.7)
    criterion.alpha.fill_(0.7)
    torch.testing.assert_close(criterion(*args), kd.distillation(*args, alpha=0.7))
