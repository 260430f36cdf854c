"""Random search for the coefficients of the perturbed loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import api
from ... import checks as logit_checks
from . import checks
from .proxy import by_order, solve
from .quality import measure


class Trial(NamedTuple):
    """One draw: its order M, the Q of its proxy teachers, and whether all of those converged."""

    order: int
    quality: float
    converged: bool


class Search(NamedTuple):
    """What a search found.

    coefficients: (M,) or (C, M), float32, on the device of the logits: for `kdkernels.Perturbed`.
    quality: their Q; vanilla: the Q of the teacher itself. Lower is better.
    trials: every draw, in the order of drawing.
    discarded: how many draws had a row that did not converge. They are never chosen.
    """

    coefficients: Tensor
    quality: float
    vanilla: float
    trials: tuple[Trial, ...]
    discarded: int

    def __repr__(self) -> str:
        """Without the trials, of which there are hundreds."""
        shape = "x".join(map(str, self.coefficients.shape))
        return (
            f"Search({shape} coefficients, quality={self.quality:.6g}, vanilla={self.vanilla:.6g}, "
            f"{len(self.trials)} trials, {self.discarded} discarded)"
        )


@torch.no_grad()
def search_coefficients(
    teacher_logits: Tensor,
    labels: Tensor,
    orders: Sequence[int] = (1, 2, 3, 4, 5),
    draws: int = 100,
    low: float = -1.0,
    high: float = 10.0,
    temperature: float = 1.0,
    per_class: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Search:
    """The coefficients, of ``draws`` uniform draws for each order M, whose proxy teachers have the lowest Q.

    Equivalent to keeping the best of::

        eps = low + (high - low) * torch.rand(M)             # or (C, M) where per_class
        quality(proxy_teacher((teacher_logits / temperature).softmax(-1), eps), labels)

    over all orders and draws; draws with a row that did not converge are passed over. Float64 inside, on the device of
    the logits; beside the teacher's and the proxies' probabilities (N, C) it takes some 32 MiB (on a GPU 256 MiB). 100
    draws of each of 5 orders on 1,000 examples of 100 classes take about ten seconds of one CPU core.

    Args:
        teacher_logits: (N, C), N >= 1, float32, float16, bfloat16 or float64: a validation set, not the training set.
        labels: (N,) integers in [0, C), on the same device.
        orders: the M to try, each in 1..8.
        draws: per order, at least 1.
        low, high: the interval of each coefficient. Below -1/m the loss of order m may not be convex.
        temperature: of the teacher, positive; the one that the loss will be used with.
        per_class: draw (C, M) coefficients and not (M,).
        generator: CPU generator (the draws are made there, so that every device draws the same). Without one, torch's
            default CPU generator. The same seed gives the same answer.
        progress: show a tqdm bar, if tqdm is installed.

    Q falls with the proxies' entropy, so that it rewards sharpness: the best draw often has a first coefficient near
    ``high``. With ``low < -1/2`` it may also have one below -1/m, of which `kdkernels.Perturbed` warns.

    Returns:
        `Search`. Its quality can be worse than ``vanilla``: then the teacher is best left as it is.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value.
        RuntimeError: no draw converged.

    Source: Zhang et al., KDD 2024 (arXiv 2305.05010), algorithm 1: 100 draws from U[-1, 10] for each order up to 5, on
    1,000 validation examples.
    """
    checks.teacher_logits(teacher_logits)
    checks.examples("teacher_logits", teacher_logits, labels)
    orders = checks.orders(orders)
    checks.draws(draws)
    checks.interval(low, high)
    checks.generator(generator)
    logit_checks.temperature(temperature)
    teacher = api.softmax(teacher_logits.double(), temperature=temperature)
    shape = (teacher.shape[1],) if per_class else ()
    drawn = _drawn(orders, draws, shape, low, high, generator)
    trials, coefficients, best = _try(drawn, len(orders) * draws, teacher, labels, progress)
    discarded = sum(not trial.converged for trial in trials)
    if coefficients is None:
        raise RuntimeError(
            f"none of {len(trials)} draws from [{low}, {high}] has proxy teachers that all converged: raise low"
        )
    vanilla = float(measure(teacher, labels))
    return Search(coefficients.to(teacher.device), best, vanilla, trials, discarded)


def _drawn(
    orders: tuple[int, ...],
    draws: int,
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """(*shape, M) float32 on the CPU: what is tried is, bit for bit, what is returned."""
    for order in orders:
        for _ in range(draws):
            unit = torch.rand((*shape, order), generator=generator, dtype=torch.float32, device="cpu")
            yield low + (high - low) * unit


def _try(
    drawn: Iterator[Tensor], total: int, teacher: Tensor, labels: Tensor, progress: bool
) -> tuple[tuple[Trial, ...], Tensor | None, float]:
    """Every trial, and the best of those that converged with its Q."""
    trials, chosen, best = [], None, float("inf")
    with _bar(total, progress) as bar:
        for coefficients in drawn:
            proxy = solve(teacher, by_order(coefficients.to(teacher.device)))
            trial = Trial(coefficients.shape[-1], float(measure(proxy.probs, labels)), bool(proxy.converged.all()))
            trials.append(trial)
            if trial.converged and trial.quality < best:
                chosen, best = coefficients, trial.quality
            if bar is not None:
                bar.update()
    return tuple(trials), chosen, best


def _bar(total: int, progress: bool) -> Any:
    """A progress bar over the draws, or a context of None: tqdm is an extra."""
    if not progress:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return nullcontext()
    return tqdm(total=total, desc="coefficients", unit="draw")
