"""Ranks as threads of one process, to test what they agree on without a launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from common.runtime import distributed


def run_ranks(monkeypatch: pytest.MonkeyPatch, modules: Iterable[ModuleType], function: Callable[[], Any], count: int):
    """Run ``function`` in one thread a rank, and return what each returns, or the text of its ``UserError``.

    ``common.runtime.distributed`` and the modules that use it take the threads for ranks.
    """
    here = threading.local()
    barrier, shares = threading.Barrier(count), {}

    def exchange(share):
        shares[here.rank] = share
        barrier.wait(30)
        everybody = [shares[rank] for rank in range(count)]
        barrier.wait(30)
        return everybody

    def sum_over_ranks(values):
        everybody = exchange(np.asarray(values, np.float64))
        assert len({part.shape for part in everybody}) == 1
        assert everybody[0].size  # gloo refuses to exchange nothing
        return np.sum(everybody, axis=0)

    replacements = {
        "rank": lambda: here.rank,
        "world_size": lambda: count,
        "is_main_process": lambda: here.rank == 0,
        "sum_over_ranks": sum_over_ranks,
        "gather_objects": exchange,
    }
    for module in (distributed, *modules):
        for name in replacements.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, replacements[name])
    results = [None] * count

    def run(rank):
        here.rank = rank
        try:
            results[rank] = function()
        except UserError as error:
            results[rank] = str(error)

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
