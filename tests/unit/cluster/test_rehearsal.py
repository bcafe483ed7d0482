"""What the end of a run needs fails at its beginning, in one line, or is mended without a loss."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.recipe.load import load_recipe
from cluster.recipe.preparation import prepare
from cluster.run.folder import RunFolder
from cluster.run.rehearsal import check_models, rehearse
from cluster.run.room import check_room
from curriculum.errors import UserError
from tests.harness.saved_run import RECIPE

RECIPES = Path(__file__).parents[3] / "recipes"
BASE = RECIPES / "assets" / "local_base"


@pytest.fixture
def base(tmp_path):
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def recipe(*overrides):
    return load_recipe(RECIPES / "local.yaml", [*RECIPE, *overrides])


def rehearsed(base, directory, *overrides):
    config = recipe(f"model.path={base}", *overrides)
    return rehearse(config, prepare(config), directory, run="test")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_everything_of_a_model_but_its_weights_is_kept_for_the_export(base, tmp_path):
    assert rehearsed(base, tmp_path / "files", "learner.dtype=bf16") == []
    names = {path.name for path in base.iterdir()} - {"model.safetensors"}
    assert {path.name for path in (tmp_path / "files").iterdir()} == names
    assert json.loads((tmp_path / "files" / "config.json").read_text())["dtype"] == "bfloat16"


def test_generation_settings_that_nobody_can_read_are_refused(base, tmp_path):
    change(base / "generation_config.json", pad_token_id="none")
    with pytest.raises(UserError, match=r"generation_config.json cannot be used: .*; correct or remove it"):
        rehearsed(base, tmp_path)


def test_generation_settings_that_transformers_refuses_to_save_are_copied_and_told(base, tmp_path):
    from transformers import AutoModelForCausalLM

    change(base / "generation_config.json", do_sample=False, temperature=0.6)
    with pytest.raises(ValueError, match="temperature"):
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "by transformers")
    (note,) = rehearsed(base, tmp_path / "files")
    assert note.startswith(f"model.path='{base}': generation_config.json is copied into models as it is; transformers ")
    ours, theirs = (folder / "generation_config.json" for folder in (tmp_path / "files", base))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_tokenizer_with_a_file_that_no_pattern_knows_is_refused(base, tmp_path):
    """As of a tokenizer whose class reads files under names of its own."""
    (base / "words.bin").write_bytes((base / "tokenizer.json").read_bytes())
    (base / "tokenizer.json").unlink()
    change(base / "tokenizer_config.json", tokenizer_file="words.bin", tokenizer_class="PreTrainedTokenizerFast")
    config = recipe(f"model.path={BASE}")
    prepared = prepare(config)
    changed = replace(prepared, model_path=str(base))
    with pytest.raises(
        UserError, match=r"its tokenizer does not load from a copy of its files .*save_pretrained"
    ) as caught:
        rehearse(config, changed, tmp_path / "files", run="test")
    assert len(caught.value.lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["base"], "nothing is left"


def test_a_tokenizer_whose_copy_has_other_tokens_is_refused(base, tmp_path):
    config = recipe(f"model.path={BASE}")
    prepared = prepare(config)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 889, "content": "<extra>"})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = replace(prepared, model_path=str(base))
    with pytest.raises(UserError, match="a copy of its tokenizer's files loads as another tokenizer"):
        rehearse(config, changed, tmp_path / "files", run="test")


def test_a_folder_beside_the_files_of_a_tokenizer_does_not_matter(base, tmp_path):
    (base / "tokenizer").mkdir()
    assert rehearsed(base, tmp_path / "files") == []


def test_a_model_that_cannot_be_built_is_refused(base, tmp_path):
    config = recipe(f"model.path={base}")
    prepared = prepare(config)
    change(base / "config.json", hidden_act="no such function")
    with pytest.raises(UserError, match=r"could not be exported: .*: no model can be built from its config.json \("):
        rehearse(config, prepared, tmp_path / "files", run="test")


def test_a_place_that_cannot_be_written_is_told(base, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"run/files: cannot be written \(Not a directory\)"):
        rehearsed(base, tmp_path / "run" / "files")


def test_a_file_in_the_way_of_the_models_is_told_at_the_beginning(base, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.models.touch()
    with pytest.raises(UserError, match=r"run/models/trial: cannot be written"):
        check_room(folder, recipe(f"model.path={base}"), str(base))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("curriculum.phases.0.name=best",), "curriculum.phases.0.name='best': cannot be the name of a folder of"),
        (("curriculum.phases.0.name=sft",), "curriculum.phases.0.name='sft': cannot be"),
        (("curriculum.phases.0.name=a/b",), "curriculum.phases.0.name='a/b': cannot be"),
        (("curriculum.phases.0.name=..",), "curriculum.phases.0.name='..': cannot be"),
        (("checkpoint.keep.best=heldout/acuracy",), "checkpoint.keep.best='heldout/acuracy': no metric of held-out "
         "questions; did you mean heldout/accuracy?"),
        (("checkpoint.keep.best=reward/mean",), "checkpoint.keep.best='reward/mean': no metric of held-out "),
        (("checkpoint.keep.best=heldout/accuracy",), "checkpoint.keep.best='heldout/accuracy': the recipe holds no "
         "questions out; give data.evaluation, or set checkpoint.keep.best=null"),
    ],
)  # fmt: skip
def test_what_no_model_can_be_named_or_chosen_by_is_refused(overrides, message):
    with pytest.raises(UserError) as caught:
        check_models(recipe(*overrides))
    assert str(caught.value).startswith(message)


def test_a_recipe_with_held_out_questions_may_keep_the_best_step():
    check_models(recipe("data.evaluation=heldout.jsonl", "checkpoint.keep.best=heldout/accuracy"))
