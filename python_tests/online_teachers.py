"""Small teachers whose weights say which step they are of, and folders of them."""

import torch
from cases import F32
from torch import nn

from kdkernels.methods import online

FEATURES, CLASSES, ROWS = 6, 5, 8
STEPS = (100, 250, 400, 1200)


def network(seed=0):
    """With buffers (norm), something that only training mode does (dropout), and biases."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(FEATURES, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, CLASSES)
        )
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model


class Tied(nn.Module):
    def __init__(self, seed=0, tied=True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding, self.head = nn.Embedding(CLASSES, FEATURES), nn.Linear(FEATURES, CLASSES, bias=False)
        for each in (self.embedding, self.head):
            each.weight.data.normal_(generator=generator)
        if tied:
            self.head.weight = self.embedding.weight


class Mixed(nn.Module):
    """Every dtype that checkpoints hold, a scalar, an empty tensor, and a parameter that is not contiguous."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, dtype in {"f32": F32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)))
        self.turned = nn.Parameter(torch.randn(4, 3, generator=generator).t())
        self.register_buffer("count", torch.tensor(seed + 7))
        self.register_buffer("mask", torch.rand(5, generator=generator) < 0.5)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("forgotten", torch.ones(2), persistent=False)


def filled(folder, steps=STEPS, model=None):
    """A trajectory of network(step) at each of the steps, read through a model of its own."""
    trajectory = online.TeacherTrajectory(folder, network(seed=99) if model is None else model)
    for step in steps:
        trajectory.record(step, network(step))
    return trajectory


def same(model, other):
    """Whether two modules or mappings hold the same names and the same bits."""
    one, two = ({**getattr(each, "state_dict", lambda each=each: each)()} for each in (model, other))
    return one.keys() == two.keys() and all(
        (x.shape, x.dtype) == (two[name].shape, two[name].dtype) and torch.equal(bits(x), bits(two[name]))
        for name, x in one.items()
    )


def bits(tensor):
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def copies(model):
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def batch(seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, FEATURES, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)
