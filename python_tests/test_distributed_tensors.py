"""DTensors in two processes: rows sharded or replicated give what one process gets; a sharded vocabulary is refused."""

import pytest
import torch
from cases import logits
from torch import distributed, multiprocessing

import kdkernels as kd

ROWS, VOCAB = 5, 20  # an odd number of rows: the shards differ in size
CASES = {
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum", "weight": True},
    "mean": {},
    "masked mean": {"mask": True, "weight": True},
    "batchmean": {"reduction": "batchmean"},
    "normalizer": {"normalizer": torch.tensor([7])},
    "no row": {"mask": "none", "normalizer": 0},
}


def inputs(*leading):
    generator = torch.Generator().manual_seed(5)
    student, teacher = logits(*leading, VOCAB), logits(*leading, VOCAB, seed=1)
    labels = torch.randint(0, VOCAB, leading, generator=generator)
    labels.view(-1)[1] = -100
    return student, teacher, labels, torch.arange(labels.numel()).view(leading) % 3 > 0, torch.rand(leading)


def calls(*leading):
    """Each call by name: (student, place) -> result, where place(tensor) puts what goes with the rows in its place."""
    _, teacher, labels, mask, _ = inputs(*leading)
    weight, means = torch.linspace(0.5, 1.5, labels.numel()).view(leading), logits(VOCAB, VOCAB, seed=3).softmax(-1)
    found = {}
    for name, case in CASES.items():
        options = dict(case)
        for key, value in (("mask", mask), ("weight", weight)):
            if key in options:
                options[key] = torch.zeros_like(mask) if options[key] == "none" else value

        def divergence(z, place, options=options):
            here = {key: place(x) if key in ("mask", "weight") else x for key, x in options.items()}
            return kd.divergence(z, place(teacher), kd.JensenShannon(), **here)

        def distillation(z, place, options=options):
            here = {key: place(x) if key in ("mask", "weight") else x for key, x in options.items()}
            return kd.distillation(z, place(teacher), place(labels), alpha=place(mask.float()), **here)

        found[f"divergence {name}"], found[f"distillation {name}"] = divergence, distillation
    found["softmax"] = lambda z, place: kd.log_softmax(z, temperature=2.0) * place(teacher)
    found["trilateral"] = lambda z, place: kd.trilateral_distances(z, place(teacher), place(labels), means)
    return found


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def run_process(rank, path):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=2)
    mesh, results = init_device_mesh("cpu", (2,)), {}
    for leading, placement, dtype in (
        ((ROWS,), Shard(0), torch.float32),
        ((ROWS,), Shard(0), torch.float16),
        ((ROWS,), Replicate(), torch.float32),
        ((3, ROWS), Shard(1), torch.float32),
    ):
        student = inputs(*leading)[0].to(dtype)
        for plain in (False, True):
            place = (lambda x: x) if plain else (lambda x, p=placement: distribute_tensor(x, mesh, [p]))
            for name, call in calls(*leading).items():
                if plain and name == "softmax":
                    continue  # the product with a plain tensor is the caller's own
                z = distribute_tensor(student, mesh, [placement]).requires_grad_()
                value = call(z, place)
                value.sum().backward()
                results[leading, str(placement), dtype, plain, name] = (
                    whole(value).detach(),
                    whole(z.grad),
                    isinstance(value, DTensor),
                )
    split = distribute_tensor(logits(4, VOCAB), mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"student is sharded over the vocabulary.*group=.*to_local\(\)"):
        kd.divergence(split, split)
    for name in ("mask", "weight"):
        tensor = distribute_tensor(torch.ones(4) > 0 if name == "mask" else torch.ones(4), mesh, [Shard(0)])
        with pytest.raises(TypeError, match=rf"{name} is a DTensor and the student is not: pass {name}.to_local\(\)"):
            kd.divergence(logits(4, VOCAB), logits(4, VOCAB), **{name: tensor})
    rows = distribute_tensor(logits(7, VOCAB), mesh, [Shard(0)])
    for wrong, given in (("weight", torch.rand(6)), ("mask", torch.ones(6) > 0)):  # every process: none is left waiting
        with pytest.raises(ValueError, match=rf"{wrong} must have one value per row, shape \(7,\), got \(6,\)"):
            kd.divergence(rows, rows, **{wrong: given})
    with pytest.raises(ValueError, match=r"teacher must have the shape of student \(7, 20\), got \(6, 20\)"):
        kd.divergence(rows, logits(6, VOCAB))
    first = torch.arange(7) == 0  # counted by one of the processes only
    for divisor in (0, torch.tensor(0.0), distribute_tensor(torch.tensor(0.0), mesh, [Replicate()])):
        for mask in (None, first, distribute_tensor(first, mesh, [Shard(0)])):
            with pytest.raises(ValueError, match="normalizer must be positive and finite, got .* rows are counted"):
                kd.divergence(rows, rows, mask=mask, normalizer=divisor)
    with pytest.raises(ValueError, match="normalizer must be positive and finite, got -1"):
        kd.divergence(rows, rows, normalizer=torch.tensor(-1.0))
    share = distribute_tensor(torch.tensor(0.5), mesh, [Replicate()])
    with pytest.raises(TypeError, match=r"alpha is a DTensor and the student is not: pass alpha.to_local\(\)"):
        kd.distillation(logits(4, VOCAB), logits(4, VOCAB), torch.arange(4), alpha=share)
    plain = logits(4, VOCAB).requires_grad_()
    for value in (kd.softmax(plain), kd.divergence(plain, logits(4, VOCAB), reduction="none")):
        above = distribute_tensor(torch.ones_like(value), mesh, [Replicate()])
        with pytest.raises(TypeError, match=r"grad_output is a DTensor and the student is not"):
            torch.autograd.grad(value, plain, above)
    torch.save(results, f"{path}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh")
    multiprocessing.spawn(run_process, (str(path),), nprocs=2)
    return [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_get_what_one_gets(saved):
    for (leading, placement, dtype, plain, name), first in saved[0].items():
        student = inputs(*leading)[0].to(dtype).requires_grad_()
        value = calls(*leading)[name](student, lambda x: x)
        value.sum().backward()
        where = f"{name}, {placement}, {dtype}, {'plain' if plain else 'placed'} companions"
        rounding = 2e-3 if dtype == torch.float16 else 1e-6
        for each in (first, saved[1][leading, placement, dtype, plain, name]):
            assert each[2], f"{where}: no DTensor came out"
            torch.testing.assert_close(each[0], value.detach(), rtol=1e-5, atol=rounding, msg=lambda m, w=where: w + m)
            torch.testing.assert_close(
                each[1], student.grad, rtol=rounding, atol=rounding, msg=lambda m, w=where: w + m
            )
