"""What a checkpoint says of the learner besides its weights: read back as it was, or refused in one line."""

import json

import pytest
from pydantic import ValidationError

from curriculum.errors import UserError
from curriculum.shared_folder import SharedFolder
from learner.zero3.checkpoint import LearnerState, read_state

STATE = {"num_steps": 3, "sharing_failed": True, "optimizer_step": 12}


def _write(folder, values):
    (folder / "state.json").write_text(json.dumps(values))
    return SharedFolder(str(folder))


def test_the_state_of_the_learner_is_read_back(tmp_path):
    assert read_state(_write(tmp_path, STATE)) == (LearnerState(num_steps=3, sharing_failed=True), 12)


def test_a_state_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError) as refused:
        read_state(_write(tmp_path, {"num_steps": 3, "optimizer_step": 12}))
    (line,) = refused.value.lines
    assert line.startswith(f"{tmp_path}: state.json has no sharing_failed: another version of the program wrote it")
    assert line.endswith("go on with that version, or start a new run")


@pytest.mark.parametrize("damaged", [{"num_steps": -1}, {"num_steps": "x"}, {"sharing_failed": None}, {"more": 1}])
def test_a_damaged_state_is_no_state(tmp_path, damaged):
    with pytest.raises(ValidationError):
        read_state(_write(tmp_path, STATE | damaged))
