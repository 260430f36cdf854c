"""The pictures: learning curves, and how a learnt alpha is distributed."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .experiment import Outcome
from .protocol import Protocol, plural
from .tgeo import Alphas

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell them apart without any colour.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = "os^DvPX*"


def alpha_histogram(findings: list[Alphas], writer: str) -> bytes:
    """A PNG: how alpha lies on the test images that the teacher gets right and on those that it gets wrong."""
    figure = Figure(figsize=(9, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 1, 41)
    for which, colour in (("right", COLOURS[1]), ("wrong", COLOURS[2])):
        values = np.array([alpha for finding in findings for alpha in getattr(finding, which)])
        if not len(values):
            continue
        label = f"teacher {which}: {len(values)} images, mean {values.mean():.2f}"
        axes.hist(values, edges, weights=np.full(len(values), 100 / len(values)), color=colour, alpha=0.55, label=label)
        axes.axvline(values.mean(), color=colour, linestyle="--", linewidth=1.8)
    axes.set(xlim=(0, 1), xlabel="alpha, the teacher's share in the loss", ylabel="% of the images")
    axes.set_title(
        "TGeo-KD: what the trained controller gives to test images\n"
        f"after the last epoch of {plural(len(findings), 'seed')}; dashed: means",
        loc="left",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure, writer)


def learning_curves(outcomes: list[Outcome], teacher: list[float], protocol: Protocol, writer: str) -> bytes:
    """A PNG: mean test accuracy over the epochs with a band of one standard deviation over the seeds."""
    # Not through pyplot: no window and no global state, whatever backend the user has chosen.
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    epochs = protocol.evaluated()
    for i, outcome in enumerate(outcomes):
        curves = np.array(outcome.curves)
        centre, band = curves.mean(0), curves.std(0, ddof=1) if len(curves) > 1 else 0.0
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        label = f"{outcome.method.name}: {centre[-1]:.1f} %"
        axes.plot(epochs, centre, label=label, markersize=5, markevery=(i % 2, 2), linewidth=1.8, **style)
        axes.fill_between(epochs, centre - band, centre + band, color=style["color"], alpha=0.13, linewidth=0)
    axes.axhline(np.mean(teacher), color="0.4", linestyle="--", label=f"teacher: {np.mean(teacher):.1f} %")
    # The first epochs, when nobody knows anything, would take most of the height.
    settled = min(np.array(outcome.curves).mean(0)[len(epochs) // 5 :].min() for outcome in outcomes)
    axes.set(ylim=(max(0.0, settled - 5), 100), xlim=(0, protocol.epochs))
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.set_title(
        f"Distillation on handwritten digits: {protocol.labelled} labelled images\n"
        f"mean and standard deviation over {plural(protocol.seeds, 'seed')}",
        loc="left",
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return png(figure, writer)


def png(figure: Figure, writer: str) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": writer})
    return picture.getvalue()
