"""Which operations of torch a piece of code calls."""

from __future__ import annotations

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "equal")
"""Operations whose result, or its shape, the host has to wait for."""


class Calls(TorchDispatchMode):
    """Counts the calls of each operation, the backward's included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    def reads(self) -> dict[str, int]:
        return {name: self.counts[name] for name in HOST_READS if self.counts[name]}
