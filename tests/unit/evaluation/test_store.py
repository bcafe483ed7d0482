import json
import os
import subprocess
import sys

import pytest

from curriculum.errors import UserError
from evaluation.record import Outcome
from evaluation.store import EvaluationFolder

SETTINGS = {"model": "tiny", "sampling": {"temperature": 0.7, "seed": 0}}


def test_answers_survive_the_process(tmp_path, make_answer):
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        folder.answers.append(make_answer("a", 0))
        folder.answers.append(make_answer("a", 1, text="\ud800 \x00 \n 中"))
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        assert len(folder.answers) == 2
        assert folder.answers.get(("musique", "a", 1)) == make_answer("a", 1, text="\ud800 \x00 \n 中")
        assert folder.answers.get(("musique", "a", 2)) is None


def test_every_line_is_on_disk_when_append_returns(tmp_path, make_answer):
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        folder.answers.append(make_answer())
        assert json.loads((tmp_path / "e" / "answers.jsonl").read_bytes())["item_id"] == "a"


@pytest.mark.parametrize("cut", [1, 10])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on_behind_the_last_whole_one(tmp_path, make_answer, cut):
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        folder.answers.append(make_answer("a"))
        folder.answers.append(make_answer("b"))
    path = tmp_path / "e" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        assert len(folder.answers) == 1
        folder.answers.append(make_answer("c"))
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        assert [folder.answers.get(("musique", name, 0)) is not None for name in "abc"] == [True, False, True]


def test_a_damaged_line_in_the_middle_is_told_with_its_number(tmp_path, make_answer):
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        folder.answers.append(make_answer())
    path = tmp_path / "e" / "answers.jsonl"
    path.write_bytes(b"{broken}\n" + path.read_bytes())
    with pytest.raises(UserError, match="line 1: damaged"):
        EvaluationFolder(tmp_path / "e", SETTINGS)


def test_the_last_line_of_a_key_counts(tmp_path, make_answer):
    failed = make_answer(outcome=Outcome.FAILED, text="", error="HTTP 500")
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        folder.answers.append(failed)
        folder.answers.append(make_answer())
    with EvaluationFolder(tmp_path / "e", SETTINGS) as folder:
        answer = folder.answers.get(failed.key)
        assert answer is not None
        assert answer.outcome is Outcome.COMPLETE


def test_other_settings_are_refused_with_the_differing_key_and_nothing_is_written(tmp_path):
    EvaluationFolder(tmp_path / "e", SETTINGS).__exit__(None, None, None)
    before = (tmp_path / "e" / "settings.json").read_text()
    with pytest.raises(UserError, match=r"sampling.temperature=0.7 there, 1.0 now"):
        EvaluationFolder(tmp_path / "e", {**SETTINGS, "sampling": {"temperature": 1.0, "seed": 0}})
    assert (tmp_path / "e" / "settings.json").read_text() == before


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        EvaluationFolder(tmp_path, SETTINGS)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_second_process_in_the_same_folder_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    script = (
        "import sys; from pathlib import Path; from evaluation.store import EvaluationFolder\n"
        f"folder = EvaluationFolder(Path(sys.argv[1]), {SETTINGS!r}); print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "e")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="another process"):
        EvaluationFolder(tmp_path / "e", SETTINGS)
    process.kill()
    process.wait()
    EvaluationFolder(tmp_path / "e", SETTINGS).__exit__(None, None, None)
