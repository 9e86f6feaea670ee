"""EM in batches from a loader or a file on disk is EM on all of the data."""

import numpy as np
import pytest
import torch
from batch_cases import N, agree, data, each_case, fulls, mixture, run
from torch.utils.data import DataLoader, Dataset, TensorDataset


@each_case
@pytest.mark.parametrize("size", [16, 30])
def test_a_loader_is_the_whole(model, make, size):
    x = make()
    loader = DataLoader(TensorDataset(*x), batch_size=size)
    agree(run(model, loader, max_steps=3, tol=0), run(model, *x, max_steps=3, tol=0))


def test_a_loader_that_shuffles_is_the_whole():
    x = data()
    loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True)
    agree(run(mixture, loader, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))


def test_a_data_set_that_reads_rows_one_by_one():
    x = data()

    class Rows(Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return {"x": x[i]}

    loader = DataLoader(Rows(), batch_size=16)
    agree(run(mixture, loader, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))


@pytest.fixture
def on_disk(tmp_path):
    """Data in a file, and in memory."""
    x = data()
    file = np.memmap(tmp_path / "x.bin", dtype=np.float64, mode="w+", shape=(N,))
    file[:] = x.numpy()
    file.flush()
    return np.memmap(tmp_path / "x.bin", dtype=np.float64, mode="r", shape=(N,)), x


@pytest.mark.parametrize("size", [7, 30, 100])
def test_a_file_is_the_whole(on_disk, size):
    file, x = on_disk
    found = run(mixture, file, batch_size=size, max_steps=4, tol=0)
    agree(found, run(mixture, x, max_steps=4, tol=0))
    assert all(v.dtype is torch.float64 for v in found.params.values())


def test_a_file_in_columns(tmp_path):
    x = data(dims=2)
    file = np.memmap(tmp_path / "xy.bin", dtype=np.float64, mode="w+", shape=(N, 2))
    file[:] = x.numpy()
    agree(run(fulls, file, batch_size=16, max_steps=3, tol=0), run(fulls, x, max_steps=3, tol=0))
    assert np.array_equal(file, x.numpy())
