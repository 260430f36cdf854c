"""The queue of what the teacher made of past samples."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from ...backends.reference import accumulation_dtype
from . import arguments
from .graphs import outside_graphs
from .posterior import Entries, posterior, unit_rows


class InstanceBank(nn.Module):
    """The newest `capacity` instances: unit features v_i, label distributions q_i, and the number of each sample.

    First in, first out, in buffers on the module's device. How much is filled and where the next entry goes is known
    from shapes alone, so that no device is waited for; the state_dict carries it, and a run that is resumed goes on
    with the same bank. ``len(bank)`` is the number of entries.

    Args:
        capacity: entries at most, >= 1.
        dim: of the (teacher's) features, >= 1.
        num_classes: C >= 1.
        dtype: of what is stored; arithmetic is float32 at least.

    Raises: TypeError, ValueError where an argument breaks a rule above.

    Source: ours; a queue of past teacher features is what second-hand accounts tell of Peng et al., ICML 2024.
    """

    features: Tensor
    probs: Tensor
    index: Tensor

    def __init__(self, capacity: int, dim: int, num_classes: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, value in (("capacity", capacity), ("dim", dim), ("num_classes", num_classes)):
            arguments.at_least_one(name, value)
        arguments.storage(dtype)
        self.capacity, self.dim, self.num_classes = capacity, dim, num_classes
        self.filled = self.next = 0
        self.register_buffer("features", torch.zeros(capacity, dim, dtype=dtype))
        self.register_buffer("probs", torch.zeros(capacity, num_classes, dtype=dtype))
        self.register_buffer("index", torch.zeros(capacity, dtype=torch.int64))

    def __len__(self) -> int:
        return self.filled

    @outside_graphs
    @torch.no_grad()
    def push(self, features: Tensor, probs: Tensor, index: Tensor) -> None:
        """Add copies of a batch; each of them takes the place of the oldest entry once the bank is full.

        A row with a NaN or an infinity, in features or probs, enters as zeros: it would be in every later loss.

        Args:
            features: (B, dim) floating point, of any norm: they are normalised here. A row of zeros stays one, whose
                similarity to everything is 0.
            probs: (B, C) floating point, a distribution per row; that they are one is not checked.
            index: (B,) int64, the sample's number in the data set.

        Of a batch beyond the capacity its last `capacity` samples stay. Where torch.distributed is initialised every
        process has to call this; the batches, of sizes that may differ, enter in the order of ranks, and every bank
        gets all of them. (Their sizes are exchanged then, which waits for the device.)

        Raises: TypeError, ValueError where an argument breaks a rule above; nothing has been written.
        """
        self.check(features, probs, index)
        unit, _ = unit_rows(features.to(accumulation_dtype(features)))
        usable = (unit.isfinite().all(-1) & probs.isfinite().all(-1)).unsqueeze(-1)
        unit, probs = torch.where(usable, unit, 0.0), torch.where(usable, probs, 0.0)
        fresh = _gathered((unit.to(self.features.dtype), probs.to(self.probs.dtype), index))
        count = len(fresh[2])
        skipped = max(0, count - self.capacity)
        start = (self.next + skipped) % self.capacity
        first = min(count - skipped, self.capacity - start)  # up to the end of the buffers, then from their beginning
        for buffer, values in zip((self.features, self.probs, self.index), fresh, strict=True):
            buffer[start : start + first] = values[skipped : skipped + first]
            buffer[: count - skipped - first] = values[skipped + first :]
        self.filled = min(self.filled + count, self.capacity)
        self.next = (self.next + count) % self.capacity

    def check(self, features: object, probs: object, index: object) -> None:
        """Raise what `push` raises."""
        device = self.features.device
        arguments.rows("features", features, self.dim, device)
        arguments.rows("probs", probs, self.num_classes, device, len(features))
        arguments.index(index, len(features), device)

    @outside_graphs
    @torch.no_grad()
    def posterior(self, features: Tensor, kappa: float, index: Tensor | None = None) -> Tensor:
        """p_aux(y|x) = sum_i q_i(y) softmax_i(<h^, v_i> / kappa), (B, C): a classifier without parameters of its own.

        Equivalent to ``softmax(F.normalize(features) @ v.T / kappa, -1) @ q``, by chunks of rows
        (256 for 16,384 entries and on).

        Args:
            features: (B, dim) floating point, of any norm, on the bank's device. No gradient is taken.
            kappa: > 0, a number; 1 / kappa is the concentration.
            index: (B,) int64; a sample's entries of the same number are left out then. A row for which none is left
                is zero.

        Returns: float32, float64 for float64 features.

        Raises: TypeError, ValueError where an argument breaks a rule above; RuntimeError where the bank is empty.
        """
        arguments.rows("features", features, self.dim, self.features.device)
        arguments.kappa(kappa)
        if index is not None:
            arguments.index(index, len(features), self.features.device)
        arguments.filled(len(self))
        with torch.autocast(features.device.type, enabled=False):
            return posterior(features, self.entries(accumulation_dtype(features)), index, kappa)

    def entries(self, dtype: torch.dtype) -> Entries:
        """What is filled; copies where the bank stores another dtype, views of the buffers otherwise."""
        count = self.filled
        return Entries(self.features[:count].to(dtype), self.probs[:count].to(dtype), self.index[:count])

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.filled, self.next])

    def set_extra_state(self, state: Tensor) -> None:
        self.filled, self.next = arguments.position(state, self.capacity)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """All of it or nothing: rows that nobody pushed would enter every posterior."""
        buffers = dict(self.named_buffers(recurse=False))
        missing = [key for name in (*buffers, "_extra_state") if (key := prefix + name) not in state_dict]
        if missing:
            missing_keys.extend(missing)
            return
        try:
            for name, buffer in buffers.items():
                arguments.stored(name, state_dict[prefix + name], buffer.shape)
            arguments.position(state_dict[prefix + "_extra_state"], self.capacity)
        except ValueError as error:
            error_msgs.append(f"{prefix or 'bank: '}{error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        stored = self.features.dtype
        return f"capacity={self.capacity}, dim={self.dim}, num_classes={self.num_classes}, dtype={stored}"


def _gathered(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The rows of all processes in the order of ranks; each may have its own number of them."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return tensors
    own = torch.tensor([len(tensors[0])], device=tensors[0].device)
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, own)
    counts = torch.cat(every).tolist()
    return tuple(_gathered_rows(each, counts) for each in tensors)


def _gathered_rows(rows: Tensor, counts: list[int]) -> Tensor:
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(received, padded)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])
