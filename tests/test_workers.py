"""Loader workers where shared memory is small, as in many containers."""

import math
import warnings

import pytest
import torch
from torch.utils.data import Dataset

import data_loader
from data_loader import free_shared_memory, make_loader, stacked


def refuse(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")


class Numbers(Dataset):
    """Tensors full of their index. In a worker, `free` bytes of shared memory are said to be free; none can be had,
    unless it `works`."""

    def __init__(self, free: float, works: bool = False):
        self.free, self.works = free, works

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if torch.utils.data.get_worker_info():
            data_loader.free_shared_memory = lambda: self.free
            for name in ("_new_using_fd_cpu", "_new_using_filename_cpu", "_share_fd_cpu_", "_share_filename_cpu_"):
                if not self.works:
                    setattr(torch.UntypedStorage, name, refuse)
        return torch.full((3, 400), index, dtype=torch.uint8), index


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that an array can't be written to
        return tuple(torch.cat(parts) for parts in zip(*loader, strict=True))


@pytest.mark.parametrize(("start", "free"), [("fork", 0), ("fork", math.inf), ("spawn", 1e4)])
def test_batches_come_without_shared_memory(start, free):
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    loader = make_loader(Numbers(free), 4, num_workers=1 if start == "spawn" else 2)
    loader.multiprocessing_context = start
    x, y = everything(loader)
    assert y.tolist() == [0, 1, 2, 3, 4, 5] and y.dtype == torch.int64 and x.dtype == torch.uint8
    assert torch.equal(x, torch.arange(6, dtype=torch.uint8)[:, None, None].expand(6, 3, 400))
    x += 1  # they are as good as others
    assert x.max() == 6


@pytest.mark.parametrize("free", [0, math.inf])
def test_with_ample_room_shared_memory_is_used(free):
    loader = make_loader(Numbers(free, works=True), 4, num_workers=1)
    loader.pin_memory = False  # with CUDA a batch is copied to pinned memory
    x, _ = next(iter(loader))
    assert x.is_shared() == (free > 0)


def test_free_shared_memory(monkeypatch):
    assert free_shared_memory() >= 0
    monkeypatch.setattr(data_loader.shutil, "disk_usage", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    assert free_shared_memory() == math.inf


def test_a_batch_is_as_torch_collates_it():
    samples = [(torch.rand(2, 3), label) for label in (4, 0, 1)]
    for ours, theirs in zip(stacked(samples), torch.utils.data.default_collate(samples), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
