"""The rows that one boundary ranks, as ``guided_score`` and ``keep_highest`` read them."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = Any  # integers: numpy while planned, torch once on the device
Pool = tuple[int, int, int, int, int]  # start, length, num_keep, first_row, target


class RankedRows(NamedTuple):
    """Requests one after another: their keys, the guiding rows among these, and the pools that guiding rows rank.

    A pool is a run of visual tokens that compete with each other. Lengths and places are known on the host; which
    tokens of a pool stay is decided on the device.
    """

    cu_queries: Array  # [requests + 1] where each request's guiding rows begin
    cu_keys: Array  # [requests + 1] where each request's keys begin
    query_positions: Array  # [queries] each guiding row's key, counted from the first key of its request
    guiding_keys: Array  # [queries] the same, counted over all requests
    pool_start: Array  # [pools] each pool's first key, counted over all requests
    pool_length: Array  # [pools] keys of the pool
    pool_request: Array  # [pools] the request that the pool belongs to; it has guiding rows
    num_keep: Array  # [pools] how many of the pool's tokens stay, at most its length
    first_row: Array  # [pools] the row, before the boundary, of the pool's first token
    target: Array  # [pools] the row, behind the boundary, of the pool's first survivor
    max_queries: int  # most guiding rows of any request
    max_keys: int  # most keys of any request
    max_pool: int  # longest pool

    def pack(self) -> list[Array]:
        """The arrays, in the order in which they move to a device together."""
        return list(self[:-3])

    def unpack(self, arrays: Iterator[Array]) -> "RankedRows":
        """The same rows with the arrays replaced by the next of ``arrays``, which come in the order of ``pack``."""
        return RankedRows._make([*islice(arrays, len(self) - 3), *self[-3:]])


class RankedRowsBuilder:
    """Collects the requests that a boundary ranks, on the host."""

    def __init__(self) -> None:
        self.num_keys = 0
        self._key_counts: list[int] = []
        self._positions: list[Sequence[int]] = []
        self._pools: list[tuple[int, ...]] = []  # pool_start to target, one row per pool

    def add(self, num_keys: int, guiding_rows: Sequence[int], pools: Sequence[Pool]) -> None:
        """Add a request.

        Args:
            num_keys: rows that the request holds before the boundary.
            guiding_rows: its guiding rows, counted from its first key.
            pools: its pools to rank; ``start`` counts from the request's first key, the rest is as in ``RankedRows``.
        """
        for start, length, *keep_and_rows in pools:
            self._pools.append((self.num_keys + start, length, len(self._key_counts), *keep_and_rows))
        self._key_counts.append(num_keys)
        self._positions.append(guiding_rows)
        self.num_keys += num_keys

    def build(self) -> RankedRows | None:
        """All requests as numpy arrays of int64; None if there is nothing to rank."""
        if not self._pools:
            return None
        query_counts = [len(positions) for positions in self._positions]
        cu_queries, cu_keys = (np.cumsum([0, *counts]) for counts in (query_counts, self._key_counts))
        positions = np.concatenate([np.array(positions, dtype=np.int64) for positions in self._positions])
        pool_start, pool_length, pool_request, num_keep, first_row, target = np.array(self._pools).T.copy()
        return RankedRows(
            cu_queries=cu_queries,
            cu_keys=cu_keys,
            query_positions=positions,
            guiding_keys=np.repeat(cu_keys[:-1], query_counts) + positions,
            pool_start=pool_start,
            pool_length=pool_length,
            pool_request=pool_request,
            num_keep=num_keep,
            first_row=first_row,
            target=target,
            max_queries=max(query_counts),
            max_keys=max(self._key_counts),
            max_pool=int(pool_length.max()),
        )
