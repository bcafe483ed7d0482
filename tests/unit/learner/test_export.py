"""A model folder from the parts of a checkpoint: the same weights to the bit, whatever number of ranks wrote them."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from curriculum.errors import UserError
from curriculum.shared_folder import SharedFolder
from learner.export import empty_weights, export_checkpoint
from learner.weights.finite import NonFiniteWeights
from learner.zero3.model_files import copy_model_files
from learner.zero3.model_folder import write_model
from tests.harness.saved_run import write_parts

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"


@pytest.fixture(scope="module")
def weights():
    """Other than those of the base."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    return {name: weight.detach() + torch.randn_like(weight) for name, weight in model.named_parameters()}


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    copy_model_files(str(BASE), folder, dtype="float32", with_code=False)
    return folder


def export(tmp_path, files, weights, *, num_ranks=1, **options):
    write_parts(tmp_path / "parts", weights, num_ranks=num_ranks)
    export_checkpoint(SharedFolder(str(tmp_path / "parts")), files, tmp_path / "out", card="a card", **options)
    return tmp_path / "out"


def loaded(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_weight_is_put_together_from_the_partitions_of_the_ranks(tmp_path, files, weights, num_ranks):
    found = loaded(export(tmp_path, files, weights, num_ranks=num_ranks))
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def test_a_bf16_model_gets_the_rounded_weights_and_says_so(tmp_path, weights):
    files = tmp_path / "files"
    files.mkdir()
    copy_model_files(str(BASE), files, dtype="bfloat16", with_code=False)
    folder = export(tmp_path, files, weights)
    for name, weight in loaded(folder).items():
        assert torch.equal(weight, weights[name].to(torch.bfloat16)), name
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_everything_else_is_that_of_the_base_byte_for_byte(tmp_path, files, weights):
    folder = export(tmp_path, files, weights)
    names = {path.name for path in BASE.iterdir()} - {"config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | {"README.md", "config.json", "model.safetensors"}
    for name in names:
        assert (folder / name).read_bytes() == (BASE / name).read_bytes(), name
    assert json.loads((folder / "config.json").read_text()) == json.loads((BASE / "config.json").read_text())
    assert (folder / "README.md").read_text() == "a card"


def test_the_type_is_written_where_the_configuration_has_it(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama", "torch_dtype": "float16", "temperature": 0.6}')
    copy_model_files(str(base), tmp_path, dtype="bfloat16", with_code=False)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "model_type": "llama", "torch_dtype": "bfloat16", "temperature": 0.6,
    }  # fmt: skip


def test_weights_beyond_a_file_go_to_several_with_an_index_that_transformers_reads(tmp_path, files, weights):
    def add_files(folder):
        copy_model_files(str(BASE), folder, dtype="float32", with_code=False)

    write_model(tmp_path / "out", add_files, weights, weights.__getitem__, max_file_bytes=100_000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in shards][:1] == [f"model-00001-of-{len(shards):05d}.safetensors"]
    largest = max(weight.nbytes for weight in weights.values())
    assert all(path.stat().st_size < max(100_000, largest) + 10_000 for path in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_parameters": sum(weight.numel() for weight in weights.values()),
        "total_size": sum(weight.nbytes for weight in weights.values()),
    }
    for name, weight in AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters():
        assert torch.equal(weight, weights[name]), name


def test_the_parts_of_another_model_are_refused(tmp_path, files, weights):
    fewer = dict(list(weights.items())[1:])
    with pytest.raises(UserError, match=r"parts: belongs to another model than .*files; export it with the model it"):
        export(tmp_path, files, fewer)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_named_and_leave_no_folder(tmp_path, files, weights):
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(NonFiniteWeights, match=f"export: tensor {name} holds NaN"):
        export(tmp_path, files, {**weights, name: weights[name] * float("nan")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "parts"]


def test_a_part_that_was_cut_is_told_in_one_line(tmp_path, files, weights):
    write_parts(tmp_path / "parts", weights, num_ranks=2)
    part = tmp_path / "parts" / "rank_00001.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"parts: not the files of a checkpoint \(") as caught:
        export_checkpoint(SharedFolder(str(tmp_path / "parts")), files, tmp_path / "out", card="")
    assert len(caught.value.lines) == 1


def test_giving_up_leaves_the_earlier_model(tmp_path, files, weights):
    folder = export(tmp_path, files, weights)
    calls = []

    def give_up():
        calls.append("tensor")
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(SharedFolder(str(tmp_path / "parts")), files, folder, card="another card", keep_going=give_up)
    assert (folder / "README.md").read_text() == "a card"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "out", "parts"]


def test_no_memory_is_taken_for_the_shape_of_a_model(files):
    assert {weight.device.type for weight in empty_weights(files, trust_remote_code=False).values()} == {"meta"}
