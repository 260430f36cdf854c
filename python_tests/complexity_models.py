"""Networks for the empirical tangent kernel, and what that kernel is: one backward per example and output, float64."""

import copy

import torch
from cases import F64, logits
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

FEATURES, OUTPUTS = 8, 3


class Tied(nn.Module):
    """Two layers of one weight, a frozen layer, a frozen bias, a scalar, and a parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.inside, self.again, self.frozen = (nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.head, self.unused = nn.Linear(FEATURES, OUTPUTS), nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.again.weight = self.inside.weight
        self.frozen.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.gain * self.head(torch.tanh(self.again(self.frozen(torch.tanh(self.inside(x))))))


class Tokens(nn.Module):
    """Integers in; the embedding's weight is the head's as well."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(OUTPUTS, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, OUTPUTS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embedding(tokens).mean(-2)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, 5), nn.Linear(2, 5)
        self.head = nn.Linear(5, OUTPUTS)

    def forward(self, a, b):
        return self.head(torch.tanh(self.left(a)) * self.right(b.mean(-2)))


class Vector(nn.Module):
    """Outputs (n,), and a buffer that scales them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 1))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, x):
        return self.scale * self.body(x).squeeze(-1)


class Inner(nn.Module):
    """<x, w>: the Jacobian is x itself, without rounding."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return (x * self.weight).sum(-1)


def mlp():
    return nn.Sequential(nn.Linear(FEATURES, 10), nn.Tanh(), nn.Linear(10, OUTPUTS))


def norms():
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, OUTPUTS)
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "norms": norms, "tied": Tied, "tokens": Tokens, "two inputs": TwoInputs, "vector": Vector}


def network(name, dtype=F64, device="cpu"):
    """In training mode, with norms whose statistics are far from those of any batch here."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.data.uniform_(0.5, 2.0)
    return model.to(device, dtype).train()


def inputs(name, n=5, dtype=F64, device="cpu"):
    x = logits(n, FEATURES, dtype=dtype, device=device, spread=1.0)
    if name == "tokens":
        return (torch.arange(4 * n, device=device).reshape(n, 4) ** 2 // 3) % OUTPUTS
    return (x, logits(n, 3, 2, dtype=dtype, device=device, seed=1)) if name == "two inputs" else x


def jacobian(model, x) -> Tensor:
    """(n, d, P): a float64 copy in eval mode, example by example, output by output, with autograd.grad."""
    twin, several = copy.deepcopy(model).double().eval(), x if isinstance(x, tuple) else (x,)
    wanted = [each for each in twin.parameters() if each.requires_grad]
    rows = []
    for i in range(several[0].shape[0]):
        given = (each[i : i + 1].double() if each.is_floating_point() else each[i : i + 1] for each in several)
        for output in twin(*given).reshape(-1):
            grads = torch.autograd.grad(output, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([each.reshape(-1) for each in grads]))
    return torch.stack(rows).unflatten(0, (several[0].shape[0], -1))


def definition(model, x, outputs="all") -> Tensor:
    full = jacobian(model, x)
    rows = full.flatten(0, 1) if outputs == "all" else full.sum(1) if outputs == "sum" else full[:, outputs]
    return rows @ rows.T


def check_kernel(got: Tensor, wanted: Tensor, relative: float) -> None:
    """Each entry is a sum of products: its rounding errors are relative to sqrt(K_ii K_jj), which bounds that sum."""
    assert got.shape == wanted.shape and torch.equal(got, got.T) and not got.requires_grad
    size = wanted.diagonal().sqrt()
    error = (got.double() - wanted).abs()
    assert bool((error <= relative * size[:, None] * size).all()), f"off by {float(error.max()):.3g}"


def allocations(work, mapped=-1) -> tuple[int, int]:
    """The largest number of bytes that PyTorch's allocator held at once during work(), and its largest single one.

    mapped: the size of a file whose mapping into memory PyTorch reports as an allocation, and which is none.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events = [event for event in events if abs(event.nbytes()) != mapped]
    live = peak = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak, largest = max(peak, live), max(largest, event.nbytes())
    return peak, largest
