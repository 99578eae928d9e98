"""What all tests share: fixed random states, and no GPU tests where there is no GPU."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples in each run, and no limit of time on one: the machine may be busy.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("fixed")

# Processes that have torch imported already: seconds less for each. Here, because the first of them, in whatever test, starts
# the server that all of them come from.
multiprocessing.get_context("forkserver").set_forkserver_preload(["gentransforms"])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    torch.manual_seed(20240229)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small networks: on busy cores, threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
