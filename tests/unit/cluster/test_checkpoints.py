"""Checkpoints: written whole, proved before they are read, the newest whole one is used."""

from __future__ import annotations

import json

import pytest

from cluster.recipe.config import RunConfig
from cluster.run.checkpoints import Checkpoints
from cluster.run.progress import Progress
from curriculum.coordinator import STATE_FORMAT
from curriculum.errors import UserError
from curriculum.files import DiskError
from curriculum.seal import COMPLETE, part_of, seal
from curriculum.shared_folder import SharedFolder


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def save(checkpoints, step, *, keep_last=9, content="weights", storage=None):
    partial = checkpoints.begin(step, storage=storage)
    written = {"shard": part_of(partial, "learner").write("shard", [content.encode()])}
    state = {"progress": Progress(step=step).state_dict(), "curriculum": None, "inputs": {"data.train": "abc"}}
    return checkpoints.finish(partial, step, state, written, keep_last=keep_last)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.path.iterdir())


def damage(path):
    (path / "learner" / "shard").write_text("weightz")


def quiet(text):
    raise AssertionError(text)


def test_without_a_checkpoint_there_is_none(checkpoints):
    assert checkpoints.choose(quiet) is None
    assert checkpoints.newest() is None


def test_the_newest_is_the_one_of_the_highest_step(checkpoints):
    for step in (9, 1_000_000, 20):
        save(checkpoints, step)
    chosen = checkpoints.choose(quiet)
    assert (chosen.path.name, chosen.progress.step) == ("step-1000000", 1_000_000)
    assert (chosen.curriculum, chosen.inputs) == (None, {"data.train": "abc"})
    assert chosen.learner.read("shard") == b"weights"


def test_one_that_is_still_being_written_is_never_chosen(checkpoints):
    save(checkpoints, 1)
    (checkpoints.begin(2) / "state.json").write_text("half")
    assert checkpoints.choose(quiet).progress.step == 1


def test_what_a_dead_driver_left_half_written_is_started_anew(checkpoints):
    (checkpoints.begin(2) / "stale.pt").touch()
    assert [path.name for path in checkpoints.begin(2).rglob("*")] == ["learner"]


def test_the_oldest_beyond_the_limit_are_removed(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step, keep_last=2)
    assert names(checkpoints) == ["step-000002", "step-000003"]


def test_one_of_the_same_step_replaces_the_older_one(checkpoints):
    save(checkpoints, 5, keep_last=1, content="in the middle of the stage")
    path = save(checkpoints, 5, keep_last=1, content="stage closed")
    assert names(checkpoints) == ["step-000005"]
    assert (path / "learner" / "shard").read_text() == "stage closed"


def test_a_damaged_newest_one_is_named_and_the_newest_whole_one_is_used(checkpoints):
    save(checkpoints, 5)
    save(checkpoints, 10)
    damage(save(checkpoints, 15))
    (save(checkpoints, 20) / COMPLETE).unlink()
    said = []
    assert checkpoints.choose(said.append).progress.step == 10
    assert said == [
        "checkpoint step-000020 is damaged: COMPLETE: is missing",
        "checkpoint step-000015 is damaged: learner/shard: its content has changed (the digest differs)",
        "using step-000010, the newest checkpoint that is whole",
    ]


def test_if_none_is_whole_one_line_names_all_and_the_way_out(checkpoints):
    for step in (5, 10):
        damage(save(checkpoints, step))
    with pytest.raises(UserError) as caught:
        checkpoints.choose(lambda text: None)
    assert len(str(caught.value).splitlines()) == 1
    for part in ("step-000010 is damaged: learner/shard:", "step-000005 is", "put one back from a copy", "--resume"):
        assert part in str(caught.value)


def test_a_step_can_be_chosen(checkpoints):
    for step in (5, 10):
        save(checkpoints, step)
    assert checkpoints.choose(quiet, step=5).progress.step == 5


def test_a_step_that_is_not_there_or_damaged_is_refused_with_the_others(checkpoints):
    save(checkpoints, 5)
    damage(save(checkpoints, 10))
    with pytest.raises(UserError, match=r"^--step 7: .* has no checkpoint of that step; choose another: 5, 10$"):
        checkpoints.choose(quiet, step=7)
    with pytest.raises(UserError, match=r"^--step 10: step-000010 is damaged: learner/shard: .*; choose another: 5$"):
        checkpoints.choose(quiet, step=10)


STATE = {"progress": Progress(step=5).state_dict(), "curriculum": None, "inputs": {}}


@pytest.mark.parametrize(
    "state",
    ["", "{", "[]", "null", "{}", json.dumps({**STATE, "progress": 5}), json.dumps({**STATE, "curriculum": 5}),
     json.dumps({**STATE, "inputs": 7}), json.dumps({**STATE, "progress": {**STATE["progress"], "stage": {"x": 1}}}),
     json.dumps({**STATE, "progress": {**STATE["progress"], "finished_stages": 3}})],
)  # fmt: skip
def test_a_state_that_is_none_counts_as_damage(checkpoints, state):
    path = save(checkpoints, 5)
    (path / "state.json").write_text(state)
    seal(path)
    said = []
    with pytest.raises(UserError, match="no checkpoint is whole"):
        checkpoints.choose(said.append)
    assert said[0].startswith("checkpoint step-000005 is damaged: state.json: ")


OLD = {name: value for name, value in STATE["progress"].items() if name != "guards"}


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({**STATE, "progress": OLD}, "the checkpoint has no guards"),
        ({**STATE, "curriculum": {"format": STATE_FORMAT - 1}}, "its curriculum has the format"),
        ({**STATE, "curriculum": {}}, "its curriculum has the format None"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_as_such_in_one_line(checkpoints, state, what):
    path = save(checkpoints, 5)
    (path / "state.json").write_text(json.dumps(state))
    seal(path)
    for step, start in ((None, str(path)), (5, "--step 5")):
        with pytest.raises(UserError) as refused:
            checkpoints.choose(quiet, step=step)
        (line,) = refused.value.lines
        assert line.startswith(f"{start}: {what}")
        assert line.endswith(": another version of the program wrote it; go on with that version, or start a new run")


def test_checkpoints_after_the_one_that_is_continued_are_set_aside_until_the_run_has_passed_them(checkpoints):
    for step in (5, 10, 15):
        save(checkpoints, step)
    aside = checkpoints.set_aside_after(5)
    assert [path.name for path in aside] == ["step-000010.aside", "step-000015.aside"]
    assert checkpoints.choose(quiet).progress.step == 5
    save(checkpoints, 12)
    assert names(checkpoints) == ["step-000005", "step-000012", "step-000015.aside"]
    save(checkpoints, 16)
    checkpoints.set_aside_after(12)
    assert names(checkpoints) == ["step-000005", "step-000012", "step-000016.aside"]


def test_setting_aside_twice_keeps_the_later_one(checkpoints):
    for content in ("first", "second"):
        save(checkpoints, 5)
        save(checkpoints, 10, content=content)
        checkpoints.set_aside_after(5)
    assert (checkpoints.path / "step-000010.aside" / "learner" / "shard").read_text() == "second"


@pytest.fixture
def storage(tmp_path):
    return f"file://{tmp_path}/shared"


def in_storage(tmp_path):
    """Folders of the storage that hold files, without what tells two of a step apart."""
    folders = {path.parent for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    return sorted(path.relative_to(tmp_path / "shared").as_posix().rpartition("-")[0] for path in folders)


def test_with_a_storage_the_part_of_the_ranks_is_there_and_proved_there(checkpoints, storage, tmp_path):
    path = save(checkpoints, 5, storage=storage)
    assert in_storage(tmp_path) == [f"{tmp_path.name}/step-000005"]
    assert sorted(file.name for file in path.iterdir()) == ["COMPLETE", "digests.json", "elsewhere.json", "state.json"]
    assert checkpoints.choose(quiet).learner.read("shard") == b"weights"
    save(checkpoints, 10, storage=storage)
    part_of(checkpoints.path / "step-000010", "learner").write("shard", [b"weightz"])
    said = []
    assert checkpoints.choose(said.append).progress.step == 5
    assert said[0] == "checkpoint step-000010 is damaged: learner/shard: its content has changed (the digest differs)"


def test_what_goes_here_goes_in_the_storage_as_well(checkpoints, storage, tmp_path):
    for step in (1, 2, 3):
        save(checkpoints, step, keep_last=2, storage=storage)
    save(checkpoints, 3, keep_last=2, content="stage closed", storage=storage)
    name = tmp_path.name
    assert in_storage(tmp_path) == [f"{name}/step-000002", f"{name}/step-000003"]
    assert checkpoints.choose(quiet).learner.read("shard") == b"stage closed"
    checkpoints.set_aside_after(2)
    assert in_storage(tmp_path) == [f"{name}/step-000002", f"{name}/step-000003"]
    save(checkpoints, 4, keep_last=1, storage=storage)
    assert in_storage(tmp_path) == [f"{name}/step-000004"]


def test_a_storage_that_cannot_be_reached_is_no_damage(checkpoints, storage, monkeypatch):
    """Otherwise a run would go on from an older checkpoint, or find none whole, since a network was away."""
    save(checkpoints, 5)
    save(checkpoints, 10, storage=storage)
    num_bytes = SharedFolder.num_bytes

    def away(folder, name):
        if "://" in folder.url:
            raise UserError(f"{folder}: cannot be read (timed out); check the network")
        return num_bytes(folder, name)

    monkeypatch.setattr(SharedFolder, "num_bytes", away)
    with pytest.raises(UserError, match=r"cannot be read \(timed out\); check the network"):
        checkpoints.choose(quiet)


@pytest.mark.parametrize("url", [None, "storage"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: place.remove("shard"), "learner/shard: is missing"),
        (lambda place: place.write("shard", [b"weigh"]), "learner/shard: has 5 bytes instead of 7"),
        (lambda place: place.write("shard", [b"weightz"]), "learner/shard: its content has changed"),
    ],
)
def test_a_part_that_is_not_as_its_rank_wrote_it_is_no_checkpoint(
    checkpoints, storage, tmp_path, monkeypatch, url, spoil, words
):
    monkeypatch.setattr("cluster.run.checkpoints.PATIENCE_S", 0.0)
    url = url and storage
    save(checkpoints, 1, storage=url)
    before = in_storage(tmp_path)
    partial = checkpoints.begin(2, storage=url)
    place = part_of(partial, "learner")
    written = {"shard": place.write("shard", [b"weights"])}
    spoil(place)
    with pytest.raises(DiskError) as refused:
        checkpoints.finish(partial, 2, {}, written, keep_last=1)
    (line,) = refused.value.lines
    assert line.startswith(f"{checkpoints.path}/step-000002: {words}")
    assert line.endswith("give a folder that every node sees with --run-dir, or set checkpoint.storage")
    assert not (partial / COMPLETE).exists()
    checkpoints.discard(2)
    assert names(checkpoints) == ["step-000001"]
    assert in_storage(tmp_path) == before
    assert checkpoints.choose(quiet).learner.read("shard") == b"weights"


def test_what_a_killed_driver_was_writing_to_a_storage_or_removing_there_goes_at_the_next_start(
    checkpoints, storage, tmp_path
):
    save(checkpoints, 1, storage=storage)
    save(checkpoints, 2, storage=storage).rename(checkpoints.path / ".step-000002.removed")
    part_of(checkpoints.begin(3, storage=storage), "learner").write("shard", [b"half"])
    checkpoints.mend()
    assert names(checkpoints) == ["step-000001"]
    assert in_storage(tmp_path) == [f"{tmp_path.name}/step-000001"]


def test_a_checkpoint_that_was_killed_between_two_names_keeps_its_part_in_the_storage(checkpoints, storage, tmp_path):
    path = save(checkpoints, 5, content="old", storage=storage)
    newer = save(checkpoints, 6, content="new", storage=storage)
    path.rename(checkpoints.path / ".step-000005.replaced")
    newer.rename(checkpoints.path / ".step-000005.partial")
    checkpoints.mend()
    assert names(checkpoints) == ["step-000005"]
    assert part_of(checkpoints.path / "step-000005", "learner").read("shard") == b"new"
    assert in_storage(tmp_path) == [f"{tmp_path.name}/step-000006"]


def config():
    return RunConfig.model_validate(
        {
            "name": "test",
            "device": "cpu",
            "model": {"path": "none/none"},
            "data": {"train": "answers.jsonl"},
            "sft": {"epochs": 0},
            "curriculum": {"phases": [{"name": "p", "max_prompt_tokens": 9, "end": {"type": "steps", "steps": 1}}]},
        }
    )


def test_data_that_changed_since_the_checkpoint_is_refused_by_key_and_file(checkpoints):
    save(checkpoints, 5)
    checkpoint = checkpoints.choose(quiet)
    assert checkpoint.changed_inputs(config(), {"data.train": "abc"}, allowed=()) == []
    with pytest.raises(UserError) as caught:
        checkpoint.changed_inputs(config(), {"data.train": "xyz", "data.sft": "new"}, allowed=("data.tr", "data.sft"))
    assert str(caught.value) == (
        "data.train=answers.jsonl: its content has changed since step-000005 of this run; bring the old one back, or "
        "accept the new one with --allow-change data.train"
    )


@pytest.mark.parametrize("allowed", ["data.train", "data"])
def test_an_allowed_change_is_returned_to_be_recorded(checkpoints, allowed):
    save(checkpoints, 5)
    found = checkpoints.choose(quiet).changed_inputs(config(), {"data.train": "xyz"}, allowed=(allowed,))
    assert found == ["data.train"]
