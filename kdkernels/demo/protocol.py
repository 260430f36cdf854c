"""What the demo compares and how, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Protocol:
    """Every number that decides a run. The sizes were fixed while looking at validation accuracies only."""

    seeds: int = 5
    tuning_seeds: int = 3
    tries: int | None = None
    """At most so many settings per method are tried (None: the method's whole grid)."""
    epochs: int = 200
    """Of a student, over its labelled images."""
    labelled: int = 50
    batch: int = 25
    teacher_epochs: int = 20
    teacher_batch: int = 64
    teacher_lr: float = 4e-3
    points: int = 20
    """Points of a learning curve."""
    timed_every: int = 10
    """Steps from one timing of the loss to the next."""

    def quick(self) -> Protocol:
        """A run of a few seconds: it exercises everything and measures nothing well."""
        return replace(self, seeds=2, tuning_seeds=1, tries=2, epochs=30, teacher_epochs=6, points=6)

    def evaluated(self) -> list[int]:
        """The epochs after which a learning curve has a point; the last one is the result."""
        points = min(self.points, self.epochs)
        return sorted({round(self.epochs * (i + 1) / points) for i in range(points)})

    def describe(self, train: int, validation: int, test: int) -> str:
        """The protocol in three sentences, for the output."""
        return (
            f"The digits are split once into {train} training, {validation} validation and {test} test images; for "
            f"each of {plural(self.seeds, 'seed')} a teacher CNN learns from all training images and a student from "
            f"{self.labelled} of them ({self.labelled // 10} per class), both under random shifts of one pixel. "
            "Within a seed every method starts from the same weights and sees the same batches; a distilled student is "
            "also given the teacher's logits for those same images, and nothing else (in online KD those of "
            "the teacher after the same share of its own training; in auxiliary KD its features of them as well). "
            "Each method's learning rate and its own parameters are the best of its grid by validation accuracy over "
            f"{plural(self.tuning_seeds, 'other seed')}; PTLoss's coefficients and TGeo-KD's alpha come from the "
            "validation images too (by the quality of proxy teachers, and by gradient); the test accuracy reported is "
            f"the one after the last of {plural(self.epochs, 'epoch')}."
        )


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
