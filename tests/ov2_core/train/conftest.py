"""Tiny tensors gain nothing from a second thread, and threads that wait for each other on a busy machine cost seconds."""

import importlib.util

import pytest


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
