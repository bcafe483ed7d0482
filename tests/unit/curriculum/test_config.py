import pytest
from pydantic import ValidationError

from curriculum.config import CurriculumConfig

PHASE = {"name": "I", "max_prompt_tokens": 100, "end": {"type": "steps", "steps": 3}}


def test_phases_must_grow_in_length():
    with pytest.raises(ValidationError, match=r"must grow in max_prompt_tokens, got \[100, 100\]"):
        CurriculumConfig.model_validate({"phases": [PHASE, {**PHASE, "name": "II"}]})


def test_phase_names_must_differ():
    with pytest.raises(ValidationError, match="names must differ"):
        CurriculumConfig.model_validate({"phases": [PHASE, {**PHASE, "max_prompt_tokens": 200}]})


def test_the_end_of_a_phase_is_chosen_by_its_type():
    with pytest.raises(ValidationError, match="epochs"):
        CurriculumConfig.model_validate({"phases": [{**PHASE, "end": {"type": "sometime"}}]})


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="replay"):
        CurriculumConfig.model_validate({"replay": 0.5})
