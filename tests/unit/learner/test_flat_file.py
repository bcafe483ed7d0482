"""Flat tensors in a safetensors file, streamed and read by ranges: the library reads it, and nothing else passes."""

import pytest
import safetensors.torch
import torch

from curriculum.shared_folder import SharedFolder
from learner.zero3 import flat_file
from learner.zero3.flat_file import FlatFile, flat_file_blocks, flat_file_bytes


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {"weights.0": torch.randn(1000), "weights.1": torch.empty(0), "exp_avg.0": torch.randn(7)}


@pytest.fixture
def folder(tmp_path):
    return SharedFolder(str(tmp_path))


def test_the_library_reads_what_was_streamed_bit_for_bit(tensors, folder, monkeypatch):
    monkeypatch.setattr(flat_file, "_BLOCK_ELEMENTS", 300)
    digest = folder.write("file", flat_file_blocks(tensors))
    assert digest.num_bytes == flat_file_bytes(tensors) == folder.num_bytes("file")
    found = safetensors.torch.load_file(folder.path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_a_file_is_sent_in_blocks_of_bounded_size(tensors, monkeypatch):
    monkeypatch.setattr(flat_file, "_BLOCK_ELEMENTS", 300)
    head, *blocks = flat_file_blocks(tensors)
    assert len(head) % 8 == 0
    assert [len(block) // 4 for block in blocks] == [300, 300, 300, 100, 7]


def test_pieces_are_read_of_what_the_library_wrote(tensors, folder):
    safetensors.torch.save_file(tensors, folder.path / "file")
    file = FlatFile(folder, "file")
    assert torch.equal(file.read("weights.0", 250, 617), tensors["weights.0"][250:617])
    assert torch.equal(file.read("exp_avg.0", 0, 7), tensors["exp_avg.0"])
    assert file.read("weights.0", 5, 5).numel() == 0


@pytest.mark.parametrize(("key", "last"), [("weights.0", 1001), ("weights.1", 1)])
def test_more_than_there_is_is_refused_instead_of_taken_from_the_next_tensor(tensors, folder, key, last):
    folder.write("file", flat_file_blocks(tensors))
    with pytest.raises(ValueError, match=f"file has fewer than {last} elements of {key}"):
        FlatFile(folder, "file").read(key, 0, last)


def test_a_file_that_was_cut_is_refused(tensors, folder):
    folder.write("file", flat_file_blocks(tensors))
    (folder.path / "file").write_bytes(folder.read("file")[:-5])
    with pytest.raises(ValueError, match=r"fewer than 7 elements of exp_avg\.0"):
        FlatFile(folder, "file").read("exp_avg.0", 0, 7)


def test_other_types_are_refused(folder):
    safetensors.torch.save_file({"a": torch.zeros(3, dtype=torch.bfloat16)}, folder.path / "file")
    with pytest.raises(ValueError, match="file holds a as BF16, not as F32"):
        FlatFile(folder, "file").read("a", 0, 1)
    with pytest.raises(ValueError, match=r"a is no flat fp32 tensor: torch\.bfloat16"):
        list(flat_file_blocks({"a": torch.zeros(3, dtype=torch.bfloat16)}))
