"""What the controller allocates: folded no Delta, of distances nothing of the vocabulary; and that it compiles."""

import pytest
import torch
from cases import logits
from tgeo_ratios import batch, ratio, with_gradients
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import kdkernels as kd
from kdkernels.methods import tgeo


class Sizes(TorchDispatchMode):
    """The numbers of elements of what operations allocate: views of what was there before do not count."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        given = {x.untyped_storage()._cdata for x in tree_flatten((arguments, options))[0] if isinstance(x, Tensor)}
        for x in tree_flatten(result)[0]:
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self.sizes.append(x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.usual_memory
def test_delta_is_never_built(kernel):
    """Folded: two softmaxes of (rows, C) and what is as large as the parameters, in forward and backward together."""
    rows, classes, hidden = 600, 50, 2
    arguments = batch(rows, device=kernel.device, classes=classes)
    counts = {}
    for folded in (True, False):
        module = ratio(kernel.device, classes=classes, hidden=hidden, folded=folded)
        with kd.use_backend(kernel.backend), Sizes() as seen:
            with_gradients(module, *arguments)
        counts[folded] = [sum(size >= times * rows * classes for size in seen.sizes) for times in (1, 9)]
    assert counts[False][1] >= 1  # the measure itself: it sees Delta where it is built
    assert counts[True] == [2, 0]


@pytest.mark.usual_memory
def test_distances_store_nothing_of_the_vocabulary(kernel):
    """A few numbers per row, at a vocabulary of which Delta would have a million entries per row."""
    rows, vocab = 8, 128256
    student, teacher = (logits(rows, vocab, device=kernel.device, seed=seed) for seed in (1, 2))
    labels = torch.arange(rows, device=kernel.device)
    module = tgeo.FusionRatio(vocab, features="distances").to(kernel.device)
    with kd.use_backend(kernel.backend), Sizes() as seen:
        with_gradients(module, student, teacher, labels)
    assert max(seen.sizes) <= rows * 128
    assert sum(each.numel() for each in module.parameters()) < 1000


@pytest.mark.usual_memory
@pytest.mark.parametrize("features", ["relations", "distances"])
def test_compiles_to_one_graph(features):
    module, arguments = ratio(features=features), batch()
    torch._dynamo.reset()
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(got, module(*arguments))
    torch._dynamo.reset()
