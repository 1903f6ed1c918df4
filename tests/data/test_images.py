"""Data sets: the digits that ship with scikit-learn, and IDX files written by the test."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from subdeq_plugin.data import load
from subdeq_plugin.data.mnist import read_idx
from subdeq_plugin.errors import DataError, OptionError

NAMES = {
    "train-images-idx3-ubyte": (6, 5, 4),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (3, 5, 4),
    "t10k-labels-idx1-ubyte": (3,),
}


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number, (name, shape) in enumerate(NAMES.items()):
        content = idx_bytes(rng.integers(0, 10, shape).astype(np.uint8))
        if number % 2:
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_digits_are_a_stratified_fifth_and_disjoint():
    data = load("digits")
    assert data.train_x.shape == (1437, 1, 8, 8) and data.test_x.shape == (360, 1, 8, 8)
    assert float(data.train_x.min()) == 0 and float(data.train_x.max()) == 1
    share = torch.bincount(data.test_y, minlength=10) / torch.bincount(
        torch.cat([data.train_y, data.test_y]), minlength=10
    )
    assert bool((share - 0.2).abs().max() < 0.01)
    again = load("digits")
    assert torch.equal(again.test_x, data.test_x)


def test_idx_files_are_read_gzipped_or_not(folder):
    data = load("mnist", folder)
    rng = np.random.default_rng(0)
    expected = rng.integers(0, 10, (6, 5, 4)).astype(np.uint8)
    torch.testing.assert_close(data.train_x, torch.from_numpy(expected).float()[:, None] / 255)
    assert data.test_x.shape == (3, 1, 5, 4) and data.test_y.dtype == torch.int64


def test_torchvision_folder_layout(folder, tmp_path):
    nested = tmp_path / "root" / "MNIST" / "raw"
    nested.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            file.rename(nested / file.name)
    assert load("mnist", tmp_path / "root").train_y.shape == (6,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x00\x00\x0d\x01" + b"\x00" * 8, "not an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "ends within its header"),
        (idx_bytes(np.zeros((2, 3), np.uint8))[:-1], "should hold 6 bytes"),
        # mtime=0: a time stamp would give each test process another list of tests.
        (gzip.compress(idx_bytes(np.zeros(9, np.uint8)), mtime=0)[:-6], "cannot be read"),
        (gzip.compress(bytes(100), mtime=0)[:12] + b"\xff" * 20, "cannot be read"),
    ],
)
def test_malformed_idx_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_missing_files_and_mismatched_labels(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match="do not fit together"):
        load("mnist", folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.*--data-root"):
        load("mnist", folder)


def test_unknown_data_set_and_missing_root():
    with pytest.raises(OptionError, match="did you mean 'mnist'"):
        load("mnits")
    with pytest.raises(DataError, match="--data-root"):
        load("mnist")


@pytest.mark.skipif("SUBDEQ_TEST_MNIST" not in os.environ, reason="SUBDEQ_TEST_MNIST names no folder with MNIST")
def test_real_mnist():
    data = load("mnist", Path(os.environ["SUBDEQ_TEST_MNIST"]))
    assert data.train_x.shape == (60000, 1, 28, 28) and data.test_x.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
