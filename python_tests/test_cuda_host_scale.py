"""The CUDA kernel that multiplies rows, run by host threads: every layout, dtype and share of rows and columns."""

from __future__ import annotations

import cuda_host
import pytest
import torch
from cases import BF16, F16, F32, logits, name_of
from cuda_host import Team, placed

NAN = float("nan")
TEAM = Team(1, 32)
FACTORS = {
    "one": torch.tensor(1.0),
    "half": torch.tensor(0.5),
    "nan": torch.tensor(NAN),
    "ones": torch.ones(5),
    "rows": torch.tensor([1.0, -2.0, 0.0, 1.0, 0.3]),
    "last": torch.tensor([1.0, 1.0, 1.0, 1.0, NAN]),
}


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return cuda_host.load(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("blocks", [2, 64])
@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize(("vocab", "before"), [(1, 0), (7, 3), (1001, 1), (9000, 2)])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name_of)
def test_rows_are_multiplied_once_and_nothing_beside_them(host, dtype, vocab, before, factor, blocks):
    gradient = placed(logits(5, vocab, dtype=dtype), before, 5)
    wanted = (gradient.view.float() * (factor[:, None] if factor.dim() else factor)).to(dtype)
    host.scale_rows(TEAM, gradient.view, factor, blocks)
    assert torch.equal(gradient.view.nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert gradient.padding_is_untouched()


def test_a_row_whose_factor_is_1_is_not_written(host):
    """A signalling pattern would be rewritten by a product with 1: the bits are what they were."""
    gradient = torch.full((3, 40), 0x7FA0, dtype=torch.int16).view(BF16)  # a NaN that arithmetic makes quiet
    host.scale_rows(TEAM, gradient, torch.tensor([1.0, 2.0, 1.0]))
    assert (gradient[[0, 2]].view(torch.int16) == 0x7FA0).all()
