"""Importing the package again in one process: purged, interrupted, reloaded. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import importlib, sys, warnings
import torch
from torch.fx.experimental.proxy_tensor import make_fx

def ours():
    return [name for name in sys.modules if name.partition(".")[0] == "kdkernels"]

def purge():
    for name in ours():
        del sys.modules[name]

def everything_works(kd, wanted=None):
    student, teacher = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    inputs = student.requires_grad_(), teacher, torch.arange(5)
    kinds = {
        "divergence": lambda z, t, y: kd.divergence(z, t, kd.ReverseKL(), temperature=2.0),
        "distillation": lambda z, t, y: kd.distillation(z, t, y, kd.JensenShannon()),
        "trilateral": lambda z, t, y: kd.trilateral_distances(z, t, y).sum(),
        "softmax": lambda z, t, y: kd.softmax(z).square().sum(),
    }
    assert kd.backends()["native"] == "available", kd.backends()
    results = {}
    for name, call in kinds.items():
        value = call(*inputs)
        results[name] = value.detach(), *torch.autograd.grad(value, student)
        graph = make_fx(lambda z, t, y: torch.autograd.grad(call(z, t, y), z)[0], tracing_mode="fake")(*inputs)
        torch.testing.assert_close(graph(*inputs), results[name][1])  # traced: the operator's fake and its backward
    for name, (value, gradient) in (wanted or {}).items():
        assert torch.equal(value, results[name][0]) and torch.equal(gradient, results[name][1]), name
    return results
"""


def passes(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_purged_and_imported_again():
    passes("""
        import kdkernels as first
        wanted = everything_works(first)
        for _ in range(3):
            purge()
            import kdkernels as again
            assert again is not first
            everything_works(again, wanted)
        everything_works(first, wanted)  # whoever holds the first one can go on with it
    """)


def test_graphs_outlive_the_modules_that_they_were_made_with():
    """An operator that was taken back and defined anew would leave them with an address that is no longer there."""
    passes("""
        import gc
        import kdkernels
        student, teacher = torch.randn(2, 4, 7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit has several
            traced = torch.jit.trace(kdkernels.divergence, (student, teacher))
        graph = make_fx(lambda z, t: kdkernels.divergence(z, t))(student, teacher)
        overload, wanted = torch.ops.kdkernels.divergence.default, kdkernels.divergence(student, teacher)
        for _ in range(3):
            purge()
            del kdkernels
            gc.collect()
            import kdkernels
            assert torch.ops.kdkernels.divergence.default is overload
            assert torch.equal(traced(student, teacher), wanted) and torch.equal(graph(student, teacher), wanted)
    """)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_interrupted_anywhere(error):
    """An exception at every 31st line of ours that an import runs, and after each the import that shall work."""
    passes(f"""
        class Clock:
            def __init__(self, last):
                self.left = last

            def __call__(self, frame, event, argument):
                if not frame.f_globals.get("__name__", "").startswith("kdkernels"):
                    return None
                self.left -= event == "line"
                if self.left == 0:
                    raise {error}
                return self

        last, interruptions = 1, 0
        while True:
            clock = Clock(last)
            sys.settrace(clock)
            try:
                import kdkernels
            except {error}:
                interruptions += 1
            finally:
                sys.settrace(None)
            if clock.left > 0:
                break
            import kdkernels
            assert torch.ops.kdkernels.divergence.default
            if interruptions % 8 == 0:
                everything_works(kdkernels)
            purge()
            last += 31
        assert interruptions > 20
        import kdkernels
        everything_works(kdkernels)
    """)


def test_an_interruption_within_a_registration():
    """Half an operator is taken back: it has a schema and neither an appearance nor a derivative."""
    passes("""
        usual = torch.library.register_fake
        for count in range(1, 5):
            left = count

            def interrupted(*arguments, **keywords):
                global left
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
                return usual(*arguments, **keywords)

            torch.library.register_fake = interrupted
            try:
                import kdkernels
            except KeyboardInterrupt:
                pass
            torch.library.register_fake = usual
        import kdkernels
        everything_works(kdkernels)
    """)


def test_parts_reloaded():
    passes("""
        import kdkernels
        wanted = everything_works(kdkernels)
        names = [name for name in ours() if not name.endswith("._C")]
        for name in names:
            importlib.reload(sys.modules[name])
        for name in reversed(names):
            importlib.reload(sys.modules[name])
        everything_works(kdkernels, wanted)
    """)


def test_another_version_may_define_its_operators_differently():
    passes("""
        import kdkernels
        wanted = everything_works(kdkernels)
        from kdkernels.ops.shared import register
        register("softmax(Tensor logits, float much) -> Tensor", lambda logits, much: logits, fake=lambda z, m: z)
        purge()
        import kdkernels
        everything_works(kdkernels, wanted)
    """)
