"""Which form a row gets on which device, and which columns fall to which block: csrc/cuda/plan.h and partition.h."""

from __future__ import annotations

from typing import NamedTuple

import cuda_host
import pytest

import kdkernels as kd

LANES, BLOCK, CLUSTER, STREAMING = range(4)


class Device(NamedTuple):
    shared: int  # bytes that a block may ask for
    largest_cluster: int


DEVICES = {
    "sm_80": Device(163 * 1024, 1),
    "sm_89": Device(99 * 1024, 1),
    "sm_90": Device(227 * 1024, 16),
}
EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
# All around the end of the lanes' form, then strides that are prime to every power of two, and real vocabularies.
VOCABS = [*range(1, 1100), *range(1100, 60000, 97), *range(60000, 300001, 1009)]
VOCABS += [32000, 32001, 50257, 128256, 151936, 262144, 300000]
ITEMS = pytest.mark.parametrize("item", [2, 4])
TENSORS = pytest.mark.parametrize("tensors", [1, 2])


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return cuda_host.load(tmp_path_factory.getbasetemp())


def power_of_two(n):
    return n > 0 and n & (n - 1) == 0


def least_bytes(columns, item):
    """What staged columns take wherever the row begins: as many elements, up to 15 bytes past a boundary."""
    return -(-(columns * item + 16 - item) // 16) * 16


def test_the_losses_are_the_registrys(host):
    assert host.losses == list(kd.LOSSES)


@EVERY_DEVICE
@ITEMS
@TENSORS
def test_every_plan_can_be_launched(host, tensors, item, device):
    for vocab in VOCABS:
        plan = host.plan(vocab, item, tensors, *device)
        assert 0 <= plan.shared <= device.shared
        assert plan.threads % 32 == 0 and power_of_two(plan.threads) and plan.threads <= 1024
        assert power_of_two(plan.cluster) and plan.cluster <= device.largest_cluster
        assert (plan.cluster > 1) == (plan.form == CLUSTER)
        if plan.form == LANES:
            assert power_of_two(plan.lanes) and plan.lanes <= 32
            assert plan.shared >= plan.threads // plan.lanes * tensors * least_bytes(vocab, item)
        elif plan.form == STREAMING:
            assert plan.shared == 0
        else:
            largest = host.slice(vocab, plan.cluster, 0).columns
            assert plan.shared >= tensors * least_bytes(largest, item)


@EVERY_DEVICE
@ITEMS
@TENSORS
def test_a_row_is_streamed_only_where_no_cluster_holds_it(host, tensors, item, device):
    for vocab in VOCABS:
        plan = host.plan(vocab, item, tensors, *device)
        share = tensors * least_bytes(host.slice(vocab, device.largest_cluster, 0).columns, item)
        if plan.form == STREAMING:
            assert share > 0.9 * device.shared
        else:
            assert vocab <= 1024 or share <= device.shared


@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 16])
def test_slices_cover_a_row_once(host, blocks):
    for vocab in VOCABS:
        slices = [host.slice(vocab, blocks, rank) for rank in range(blocks)]
        end = 0
        for each in slices:
            assert each.first == end
            assert each.columns >= 0
            assert each.columns <= slices[0].columns  # of which shared memory is reserved
            assert each.columns == 0 or each.first % 8 == 0  # 16 bytes of a half precision
            end += each.columns
        assert end == vocab


@pytest.mark.parametrize(("vocab", "item"), [(128256, 2), (128256, 4), (262144, 2)])
def test_large_vocabularies_are_held_by_a_cluster(host, vocab, item):
    assert host.plan(vocab, item, 2, *DEVICES["sm_90"]).form == CLUSTER
    assert host.plan(vocab, item, 2, *DEVICES["sm_80"]).form == STREAMING


@pytest.mark.parametrize("vocab", [1, 2, 16, 17, 100, 1000, 1024])
@EVERY_DEVICE
def test_short_rows_share_a_block(host, vocab, device):
    """As many lanes as leave four columns to each; what a block may have without asking, 48 KiB, is enough."""
    plan = host.plan(vocab, 4, 2, *device)
    assert plan.form == LANES
    assert plan.shared <= 48 * 1024
    assert plan.lanes == max(4, min(32, 1 << (-(-vocab // 4) - 1).bit_length()))


@EVERY_DEVICE
@ITEMS
def test_a_row_is_held_by_one_block_as_long_as_it_is_comfortable(host, item, device):
    for vocab in (1025, 4096, 8192):
        plan = host.plan(vocab, item, 2, *device)
        assert plan.form == BLOCK


@pytest.mark.parametrize("blocks", [1, 7, 132 * 4])
def test_shares_cover_rows_and_columns_once_in_no_more_blocks_than_run_at_once(host, blocks):
    for rows in (1, 2, 131, 132, 528, 529, 4096, 65536, 3_000_000_000):
        for vocab in (1, 100, 1000, 4097, 128256):
            shares = host.shares(rows, vocab, blocks)
            assert 0 < shares.down * shares.across <= blocks
            assert (shares.down - 1) * shares.rows < rows <= shares.down * shares.rows
            assert (shares.across - 1) * shares.columns < vocab <= shares.across * shares.columns
            assert shares.columns % 8 == 0  # so that vectors begin where they would in the whole row
