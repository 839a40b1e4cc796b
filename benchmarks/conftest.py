"""The harness: a benchmark hands over one contender and its check; a wrong result is never timed."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """`compare(group, run, check, **facts)`: checks the result of `run()`, then times it as one row of `group`."""

    def row(group: str, run: Callable[[], Any], check: Callable[[Any], bool], **facts: Any) -> None:
        if not check(run()):
            pytest.fail(f"{request.node.name} gives a wrong result: not timed")
        benchmark.group = group
        benchmark.extra_info.update(facts, torch=torch.__version__, threads=torch.get_num_threads())
        benchmark(run)

    return row
