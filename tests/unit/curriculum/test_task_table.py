import pickle

import numpy as np
import pytest

from curriculum.task import Task, TaskEntry
from curriculum.task_table import TaskColumns, TaskTable, TextColumn


def task(task_id, *answers, question="who?", prompt=(1, 2, 3), phase=0, data_source="musique"):
    return Task(
        task_id=task_id,
        data_source=data_source,
        question=question,
        answers=answers or ("alice",),
        prompt_ids=np.array(prompt, np.int32),
        phase=phase,
    )


TASKS = (
    task("a", "7", "seven", prompt=(4, 5)),
    task("später", "", "日本", question="wo?\n", prompt=(6,), phase=1),
    task("c", prompt=(7, 8, 9), data_source="docmath"),
)


def fields(task):
    return (task.task_id, task.data_source, task.question, task.answers, task.prompt_ids.tolist(), task.phase)


def test_a_task_comes_back_as_it_went_in():
    table = TaskTable(TaskColumns.of(TASKS))
    assert len(table) == 3
    assert [fields(table[task.task_id]) for task in TASKS] == [fields(task) for task in TASKS]


def test_a_prompt_is_a_view_of_the_one_column_of_prompts():
    columns = TaskColumns.of(TASKS)
    prompt = TaskTable(columns)["c"].prompt_ids
    assert columns.prompt_ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert np.shares_memory(prompt, columns.prompt_ids)
    assert prompt.dtype == np.int32


def test_columns_travel_as_buffers_and_next_to_nothing_else():
    tasks = [task(f"t{index}", prompt=range(1000)) for index in range(100)]
    buffers = []
    head = pickle.dumps(TaskColumns.of(tasks), protocol=5, buffer_callback=buffers.append)
    assert len(head) < 2000
    assert len(buffers) == 12
    table = TaskTable(pickle.loads(head, buffers=buffers))
    assert table["t99"].prompt_ids.tolist() == list(range(1000))


def test_a_task_that_is_not_there_is_named():
    with pytest.raises(KeyError, match=r"task z: not among the 3 tasks .*same tasks"):
        TaskTable(TaskColumns.of(TASKS))["z"]


def test_ids_must_be_unique():
    with pytest.raises(ValueError, match="2 tasks have 1 different ids"):
        TaskTable(TaskColumns.of([TASKS[0], TASKS[0]]))


def test_an_empty_column_and_empty_texts_are_texts_like_any_other():
    assert len(TextColumn([])) == 0
    column = TextColumn(["", "x", ""])
    assert [column[row] for row in range(3)] == ["", "x", ""]


def test_an_entry_says_what_the_coordinator_needs_of_a_task():
    assert TaskEntry.of(TASKS[1]) == TaskEntry(
        task_id="später", phase=1, prompt_tokens=1, data_source=TASKS[1].data_source
    )
