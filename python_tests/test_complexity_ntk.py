"""The empirical neural tangent kernel against one float64 backward per example and output."""

import pytest
import torch
from cases import BF16, F32, F64, logits, name_of
from complexity_models import FEATURES, OUTPUTS, Inner, check_kernel, definition, inputs, jacobian, network
from conftest import DEVICES
from torch import nn

from kdkernels.methods import complexity

EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES)
NAMES = pytest.mark.parametrize("name", ["mlp", "norms", "tied", "tokens", "two inputs", "vector"])

# Rounding of a Jacobian's entry (a backward of a few layers) and of a sum of at most 300 products.
RELATIVE = {F64: 1e-13, F32: 2e-5}


def ntk(model, x, **options):
    return complexity.empirical_ntk(model, x, **{"progress": False} | options)


@EVERY_DEVICE
@NAMES
@pytest.mark.parametrize("dtype", [F64, F32], ids=name_of)
@pytest.mark.parametrize("outputs", ["all", "sum", 0, -1])
def test_is_the_product_of_the_jacobians(device, name, dtype, outputs):
    model, x = network(name, dtype, device), inputs(name, dtype=dtype, device=device)
    got = ntk(model, x, outputs=outputs)
    assert got.dtype == dtype and got.device.type == device
    check_kernel(got, definition(model, x, outputs), RELATIVE[dtype])


def test_the_definition_is_autograd_s_whole_jacobian():
    """The loop that everything here is compared with, against torch.autograd.functional.jacobian."""
    model, x = network("mlp").eval(), inputs("mlp")
    names, values = zip(*model.named_parameters(), strict=True)
    blocks = torch.autograd.functional.jacobian(
        lambda *given: torch.func.functional_call(model, dict(zip(names, given, strict=True)), (x,)), values
    )
    whole = torch.cat([block.flatten(2) for block in blocks], -1)
    torch.testing.assert_close(jacobian(model, x), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "norms", "tied", "vector"])
@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize("columns", [3, 17, 60])
def test_groups_of_parameters_and_chunks_of_examples(name, chunk, columns):
    """3 columns at a time split every weight, 17 the larger ones and biases end up together, 60 only the largest."""
    n = 5
    model, x = network(name), inputs(name, n)
    memory = columns * n * (1 if name == "vector" else OUTPUTS) * 8
    for outputs in ("all", "sum", 0):
        got = ntk(model, x, outputs=outputs, chunk=chunk, memory=memory)
        check_kernel(got, definition(model, x, outputs), RELATIVE[F64])


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_numbers_of_examples_that_no_chunk_divides(n):
    model, x = network("mlp"), inputs("mlp", n)
    wanted = definition(model, x)
    for chunk in (4, 32):
        check_kernel(ntk(model, x, chunk=chunk, memory=n * OUTPUTS * 8 * 45), wanted, RELATIVE[F64])


@pytest.mark.parametrize("columns", [7, 1000])
def test_single_precision_is_exactly_symmetric_too(columns):
    model, x = network("norms", F32), inputs("norms", 9, F32)
    for outputs in ("all", "sum", 1):
        got = ntk(model, x, outputs=outputs, chunk=2, memory=columns * 9 * OUTPUTS * 4)
        assert torch.equal(got, got.T)
        check_kernel(got, definition(model, x, outputs), RELATIVE[F32])


def test_row_i_d_plus_c_is_output_c_of_example_i():
    """What makes targets (n, d).reshape(-1) go with it."""
    model, x = network("mlp"), inputs("mlp")
    everything = ntk(model, x).unflatten(0, (5, OUTPUTS)).unflatten(2, (5, OUTPUTS))
    for c in range(OUTPUTS):
        torch.testing.assert_close(everything[:, c, :, c], ntk(model, x, outputs=c), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ntk(model, x, outputs=c - OUTPUTS), ntk(model, x, outputs=c), rtol=0, atol=0)
    torch.testing.assert_close(everything.sum((1, 3)), ntk(model, x, outputs="sum"), rtol=1e-12, atol=1e-11)
    one = ntk(model, x[:1])
    torch.testing.assert_close(everything[0, :, 0, :], one, rtol=1e-12, atol=1e-12)


def test_one_output_is_the_same_in_every_mode():
    model, x = network("vector"), inputs("vector")
    both = nn.Sequential(model, nn.Unflatten(0, (-1, 1)))  # (n, 1) instead of (n,)
    wanted = definition(model, x)
    for outputs in ("all", "sum", 0, -1):
        for each in (model, both):
            got = ntk(each, x, outputs=outputs)
            assert got.shape == (5, 5)
            check_kernel(got, wanted, RELATIVE[F64])


def test_the_examples_of_a_batch_do_not_meet():
    """A norm in training mode would mix them; each row of the kernel is that of the example alone."""
    model, x = network("norms"), inputs("norms", 6)
    whole, part = ntk(model, x), ntk(model, x[2:5])
    torch.testing.assert_close(part, whole[2 * OUTPUTS : 5 * OUTPUTS, 2 * OUTPUTS : 5 * OUTPUTS], rtol=1e-12, atol=0)


def test_buffers_are_constants_and_frozen_parameters_have_no_share():
    model, x = network("tied"), inputs("tied")
    size = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert jacobian(model, x).shape == (5, OUTPUTS, size)  # a tied weight counts once
    everything = ntk(model, x)
    model.frozen.requires_grad_(True)
    assert float((ntk(model, x) - everything).diagonal().min()) > 1e-6
    model.frozen.requires_grad_(False)
    assert torch.equal(ntk(model, x), everything)


@pytest.mark.parametrize(
    ("dtype", "summed", "result", "value"),
    [
        (F32, None, F32, 2.0**24),  # 4096^2 + 1 has 25 bits
        (F32, F32, F32, 2.0**24),
        (F32, F64, F64, 2.0**24 + 1),
        (F64, None, F64, 2.0**24 + 1),
        (F64, F32, F32, 2.0**24),
        (BF16, None, F32, 2.0**24),
    ],
)
def test_the_dtype_that_the_kernel_is_summed_in(dtype, summed, result, value):
    got = ntk(Inner(2).to(dtype), torch.tensor([[4096.0, 1.0]], dtype=dtype), dtype=summed)
    assert got.dtype == result and got.shape == (1, 1) and float(got) == value


@pytest.mark.parametrize("memory", [1 << 30, 8])
def test_half_precision_outputs_are_summed_in_single(memory):
    """16^2 + 1 has nine bits, one more than bfloat16; in groups of one column too."""
    got = ntk(Inner(2).to(BF16), torch.tensor([[16.0, 1.0], [1.0, 1.0]], dtype=BF16), memory=memory)
    assert got.dtype == F32 and got.tolist() == [[257.0, 17.0], [17.0, 2.0]]


def test_inputs_that_require_grad_and_no_grad_around():
    model, x = network("mlp"), inputs("mlp").requires_grad_()
    wanted = definition(model, x.detach())
    check_kernel(ntk(model, x), wanted, RELATIVE[F64])
    assert x.grad is None
    with torch.no_grad():
        check_kernel(ntk(model, x), wanted, RELATIVE[F64])
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_inputs_that_are_not_contiguous():
    model = network("mlp")
    x = logits(FEATURES, 10, dtype=F64, spread=1.0).t()[::2]
    check_kernel(ntk(model, x), definition(model, x), RELATIVE[F64])
    check_kernel(ntk(model, (x,)), definition(model, x), RELATIVE[F64])
