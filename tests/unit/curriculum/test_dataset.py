import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curriculum.config import DataConfig, GeneratedData
from curriculum.dataset import load_demonstrations, load_tasks
from curriculum.errors import UserError
from curriculum.rejects import RejectReason, write_rejects


def words(count):
    return " ".join(["word"] * count)


def item(item_id, num_tokens, *, start="", **changes):
    """A row whose prompt has `num_tokens` tokens under the test encoder: two of the template, one of the question."""
    context = f"{start or item_id} {words(num_tokens - 4)}"
    return {
        "id": item_id, "data_source": "musique", "context": context, "question": "who?", "answers": ["alice"], **changes
    }  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "a.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return str(path)

    return write


def load(path, encoder, *, limits=(10, 20), over_long="drop", **others):
    return load_tasks(path, encoder=encoder, phase_limits=limits, over_long=over_long, **others)


def refused(task_set):
    return [(reject.number, reject.item_id, reject.reason) for reject in task_set.rejects]


def test_rows_become_tasks_with_the_phase_of_their_length(write, encoder):
    path = write(item("a", 5), item("b", 10), item("c", 11), item("d", 20))
    tasks = load(path, encoder).records
    assert [(task.task_id, task.prompt_ids.size, task.phase) for task in tasks] == [
        ("a", 5, 0), ("b", 10, 0), ("c", 11, 1), ("d", 20, 1)
    ]  # fmt: skip
    assert tasks[0].prompt_ids.dtype == np.int32
    assert (tasks[0].data_source, tasks[0].question, tasks[0].answers) == ("musique", "who?", ("alice",))


def test_bad_rows_are_collected_with_number_id_and_reason_and_the_rest_is_kept(write, encoder):
    path = write(
        item("a", 5),
        b'{"id": "b", "context": "caf\xe9"}',
        b"{",
        item("d", 5, question=""),
        item("e", 5, answers=None),
        item("f", 5, start="a"),
        item("a", 6),
        item("h", 21),
        item("i", 11),
    )
    task_set = load(path, encoder)
    assert [task.task_id for task in task_set.records] == ["a", "i"]
    assert refused(task_set) == [
        (2, None, RejectReason.NOT_UTF8),
        (3, None, RejectReason.BAD_JSON),
        (4, "d", RejectReason.EMPTY),
        (5, "e", RejectReason.MISSING_COLUMN),
        (6, "f", RejectReason.DUPLICATE),
        (7, "a", RejectReason.ID_CONFLICT),
        (8, "h", RejectReason.OVER_LONG),
    ]
    assert task_set.rejects[4].detail == "the same content as row 1"
    assert "'a'" in task_set.rejects[5].detail


def test_the_same_question_on_another_document_is_no_duplicate(write, encoder):
    path = write(item("a", 5), item("b", 5), item("c", 15))
    assert len(load(path, encoder).records) == 3


def test_a_repeated_row_without_id_is_a_duplicate(write, encoder):
    row = item(None, 5)
    task_set = load(write(row, row, item("c", 15)), encoder)
    assert [reject.reason for reject in task_set.rejects] == [RejectReason.DUPLICATE]


def test_over_long_documents_are_cut_in_the_middle_to_fit_the_last_phase(write, encoder):
    path = write(item("a", 5), item("b", 35, start="first"))
    task_set = load(path, encoder, over_long="truncate_middle")
    found = [(task.task_id, task.prompt_ids.size, task.phase) for task in task_set.records]
    assert found == [("a", 5, 0), ("b", 20, 1)]
    assert task_set.rejects == ()


def test_a_question_that_is_too_long_by_itself_is_refused_even_with_truncation(write, encoder):
    path = write(item("a", 5), item("b", 15), item("c", 30, question=words(30)))
    task_set = load(path, encoder, over_long="truncate_middle")
    assert refused(task_set) == [(3, "c", RejectReason.OVER_LONG)]


def test_a_truncation_that_does_not_fit_is_refused(write, encoder):
    encoder.truncate_middle = lambda context, question, max_tokens: context
    task_set = load(write(item("a", 5), item("b", 15), item("c", 30)), encoder, over_long="truncate_middle")
    assert "even after truncation" in task_set.rejects[0].detail


def test_rejects_are_written_as_one_json_object_per_line(write, encoder, tmp_path):
    task_set = load(write(item("a", 5), item("é", 25), item("c", 15)), encoder)
    write_rejects(task_set.rejects, tmp_path / "rejects.jsonl")
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "number": 2,
            "item_id": "é",
            "reason": "over_long",
            "detail": "25 prompt tokens exceed 20; truncate it or raise the limit",
        }
    ]


def test_a_parquet_file_in_the_published_layout_is_read(tmp_path, encoder):
    content = "<text>\na text\n</text>\n\nwho?\n\nFormat your response as follows: ..."
    rows = [
        {
            "data_source": "docmath_v1",
            "prompt": [{"role": "user", "content": content}],
            "ability": "doc-math",
            "reward_model": {"style": "rule", "ground_truth": "The answer is 7"},
            "extra_info": {"index": 0},
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (task,) = load(str(tmp_path / "a.parquet"), encoder, limits=(10,)).records
    assert (task.question, task.answers, task.prompt_ids.size) == ("who?", ("The answer is 7",), 5)


def test_generated_data_becomes_tasks(encoder):
    source = GeneratedData(items_per_length=4, lengths=((40, 60), (100, 120)))
    task_set = load(source, encoder, limits=(75, 200))
    assert [task.phase for task in task_set.records] == [0] * 4 + [1] * 4
    assert task_set.rejects == ()


# ---- sources that cannot be used


def test_an_empty_file_is_an_empty_data_set(write, encoder, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"^data\.train=.*a\.jsonl: the data set is empty; give it at least one row$"):
        load(str(tmp_path / "a.jsonl"), encoder)


def test_a_parquet_file_without_rows_is_an_empty_data_set(encoder, tmp_path):
    columns = {name: pa.array([], pa.string()) for name in ("id", "data_source", "context", "question", "answer")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the data set is empty"):
        load(str(tmp_path / "a.parquet"), encoder)


def test_objects_without_keys_are_no_data_set(write, encoder):
    with pytest.raises(UserError, match="its 2 rows have no columns"):
        load(write({}, {}), encoder)


def test_a_file_without_a_usable_row_counts_the_reasons_and_shows_the_first(write, encoder):
    with pytest.raises(UserError, match="usable") as caught:
        load(write(item("a", 5, answers=[]), item("b", 50), item("c", 60)), encoder)
    message = str(caught.value)
    assert "none of 3 rows is usable (over_long 2, empty 1); row 1: answers has no entry" in message
    assert "\n" not in message


def test_a_binary_file_named_jsonl_is_refused_without_a_crash(encoder, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(UserError, match=r"none of .* rows is usable"):
        load(str(tmp_path / "a.jsonl"), encoder)


def test_wrong_columns_name_key_value_and_way_out(write, encoder):
    with pytest.raises(UserError, match=r"^data\.evaluation=.*no recognised columns.*contexts -> context"):
        load(write({"contexts": "x", "question": "y"}), encoder, key="data.evaluation")


def test_a_phase_without_items_names_the_phase_and_the_lengths_of_the_data(write, encoder):
    path = write(item("a", 5), item("b", 8))
    with pytest.raises(UserError, match="no item in phase 1") as caught:
        load(path, encoder)
    assert "(10 < prompt tokens <= 20; the data has 5 to 8)" in str(caught.value)
    assert "curriculum.phases[1].max_prompt_tokens" in str(caught.value)
    assert len(load(path, encoder, every_phase=False).records) == 2


# ---- demonstrations


def demonstration(item_id, response="alice it is", **changes):
    return {"id": item_id, "context": f"text {item_id}", "question": "who?", "response": response, **changes}


def test_demonstrations_are_encoded_with_their_end_of_turn(write, encoder):
    path = write(demonstration("a"), demonstration("b", "bob"))
    first, second = load_demonstrations(path, encoder=encoder, max_tokens=100).records
    assert (first.demonstration_id, first.prompt_ids.size, first.response_ids.size) == ("a", 5, 4)
    assert second.response_ids.size == 2


def test_conversations_are_encoded_as_messages(write, encoder):
    messages = [{"role": "user", "content": "who is it"}, {"role": "assistant", "content": "alice"}]
    (only,) = load_demonstrations(write({"messages": messages}), encoder=encoder, max_tokens=100).records
    assert (only.prompt_ids.size, only.response_ids.size) == (5, 2)
    assert len(only.demonstration_id) == 16


def test_several_responses_to_one_prompt_are_kept_and_repetitions_refused(write, encoder):
    rows = [
        demonstration("a", "alice", id=None),
        demonstration("a", "bob", id=None),
        demonstration("a", "bob", id=None),
    ]
    loaded = load_demonstrations(write(*rows), encoder=encoder, max_tokens=100)
    assert len(loaded.records) == 2
    assert [reject.reason for reject in loaded.rejects] == [RejectReason.DUPLICATE]


def test_a_demonstration_is_over_long_by_prompt_and_response_together(write, encoder):
    path = write(demonstration("a", words(4)), demonstration("b", words(5)))
    loaded = load_demonstrations(path, encoder=encoder, max_tokens=10)
    assert [entry.demonstration_id for entry in loaded.records] == ["a"]
    assert refused(loaded) == [(2, "b", RejectReason.OVER_LONG)]


def test_a_row_that_the_chat_template_refuses_is_a_reject(write, encoder):
    odd = {"id": "x", "prompt": [{"role": "tool", "content": "7"}], "response": "seven"}
    good = {"id": "y", "prompt": "who?", "response": "alice"}
    loaded = load_demonstrations(write(odd, good), encoder=encoder, max_tokens=100)
    assert refused(loaded) == [(1, "x", RejectReason.NOT_ENCODABLE)]
    assert "unknown role tool" in loaded.rejects[0].detail


def test_generated_demonstrations_are_loaded(encoder):
    source = GeneratedData(items_per_length=5, lengths=((40, 60),))
    assert len(load_demonstrations(source, encoder=encoder, max_tokens=200).records) == 5


def test_demonstrations_without_responses_name_the_missing_column(write, encoder):
    with pytest.raises(UserError, match=r"^data\.sft=.*need \{context, question, response\}"):
        load_demonstrations(write(item("a", 5)), encoder=encoder, max_tokens=100)


def test_the_digest_is_that_of_the_rows_wherever_they_lie_and_whatever_the_phases_are(write, encoder, tmp_path):
    rows = (item("a", 5), item("b", 15))
    digest = load(write(*rows), encoder).digest
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert load(str(moved), encoder, limits=(8, 30)).digest == digest


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param((item("a", 5, answers=["bob"]), item("b", 15)), id="a corrected answer"),
        pytest.param((item("b", 15), item("a", 5)), id="another order"),
        pytest.param((item("a", 5), item("b", 15), item("c", 5)), id="one more"),
        pytest.param((item("a", 5), item("b", 15), b"{"), id="a refused one"),
    ],
)
def test_rows_that_differ_have_another_digest(write, encoder, rows):
    digest = load(write(item("a", 5), item("b", 15)), encoder).digest
    assert load(write(*rows), encoder).digest != digest


# ---- several files, mapped columns, kept prompts


def lines(folder, name, *rows):
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(folder / name)


def test_rejects_of_several_files_name_the_file_and_repetitions_are_found_across_them(tmp_path, encoder):
    first = lines(tmp_path, "a.jsonl", item("a", 5), item("b", 15), item("x", 5, question=""))
    second = lines(tmp_path, "b.jsonl", item("c", 5, start="a"), item("a", 6), item("d", 15))
    found = load((first, second), encoder)
    assert [task.task_id for task in found.records] == ["a", "b", "d"]
    assert [(reject.file, reject.number, reject.reason) for reject in found.rejects] == [
        ("a.jsonl", 3, RejectReason.EMPTY),
        ("b.jsonl", 1, RejectReason.DUPLICATE),
        ("b.jsonl", 2, RejectReason.ID_CONFLICT),
    ]
    assert found.rejects[1].detail == "the same content as row 1 of a.jsonl"
    write_rejects(found.rejects, tmp_path / "rejects.jsonl")
    written = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["file"] for line in written] == ["a.jsonl", "b.jsonl", "b.jsonl"]


def test_the_digest_covers_every_file_and_not_where_it_lies(tmp_path, encoder):
    (tmp_path / "moved").mkdir()
    rows = [item("a", 5), item("b", 15)]
    whole = load(lines(tmp_path, "a.jsonl", *rows), encoder).digest
    assert load(lines(tmp_path / "moved", "z.jsonl", *rows), encoder).digest == whole
    both = [lines(tmp_path, "1.jsonl", rows[0]), lines(tmp_path, "2.jsonl", rows[1])]
    digests = {load(tuple(both), encoder).digest, load(tuple(both[::-1]), encoder).digest}
    lines(tmp_path, "2.jsonl", item("b", 16))
    assert len({whole, load(tuple(both), encoder).digest, *digests}) == 4


def test_files_of_different_layouts_are_each_read_by_their_own(tmp_path, encoder):
    published = {
        "data_source": "d", "reward_model": {"ground_truth": "7"},
        "prompt": "<text>\na b c d e f g h i j\n</text>\n\nwho?\n\nFormat your response as follows: x",
    }  # fmt: skip
    sources = (lines(tmp_path, "a.jsonl", item("a", 5)), lines(tmp_path, "b.jsonl", published))
    assert [task.answers for task in load(sources, encoder).records] == [("alice",), ("7",)]


def test_a_file_that_fits_no_layout_is_named_before_its_rows_are_lost(tmp_path, encoder):
    sources = (lines(tmp_path, "a.jsonl", item("a", 5)), lines(tmp_path, "b.jsonl", {"id": 1, "txt": "x"}))
    with pytest.raises(UserError, match=r": b\.jsonl: no recognised columns; found id, txt; need"):
        load(sources, encoder)


def test_columns_of_other_names_become_ours(tmp_path, encoder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**item("a", 5), "meta": {"truth": "bob"}}, {**item("b", 15), "meta": {"truth": "eve"}}]
    for row in rows:
        row["input"] = row.pop("question")
        del row["answers"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    form = DataConfig(columns={"question": "input", "answers": "meta.truth", "response": "output"})
    found = load(str(tmp_path / "a.parquet"), encoder, form=form)
    assert [(task.question, task.answers) for task in found.records] == [("who?", ("bob",)), ("who?", ("eve",))]
    with pytest.raises(UserError, match=r"data\.columns\.question=imput: there is no column 'imput' \(did you mean"):
        load(str(tmp_path / "a.parquet"), encoder, form=DataConfig(columns={"question": "imput"}))


def test_demonstrations_are_mapped_by_the_names_that_concern_them(write, encoder):
    path = write({"ask": "q", "messages": None, "output": "r"})
    form = DataConfig(columns={"prompt": "ask", "response": "output", "answers": "truth"})
    (found,) = load_demonstrations(path, encoder=encoder, max_tokens=50, form=form).records
    assert found.response_ids.size == 2


def chat(document, **changes):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"<d> {document} </d> who?"}]
    return {"data_source": "musique", "messages": messages, "answer": "alice", **changes}


KEEP = DataConfig.model_validate({"prompt": "keep", "markers": {"context": ["<d>", "</d>"]}})


def test_a_kept_prompt_is_encoded_as_its_messages(write, encoder):
    (task,) = load(write(chat("one two")), encoder, limits=(20,), form=KEEP).records
    assert (task.prompt_ids.size, task.question) == (2 + 2 + 5 + 2, "")


def test_the_document_of_a_kept_prompt_is_cut_in_its_place(write, encoder):
    seen = []
    encode = encoder.encode_messages
    encoder.encode_messages = lambda messages: seen.append(messages) or encode(messages)
    path = write(chat(" ".join(map(str, range(40)))))
    (task,) = load(path, encoder, limits=(15,), over_long="truncate_middle", form=KEEP).records
    assert task.prompt_ids.size == 15
    assert seen[-1] == [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "<d> 0 1 2 37 38 39 </d> who?"}
    ]  # fmt: skip


@pytest.mark.parametrize("extra", [{}, {"context": "another text"}])
def test_a_kept_prompt_whose_document_is_unknown_is_not_cut(write, encoder, extra):
    path = write(chat("short"), chat(words(40), **extra))
    form = DataConfig(prompt="keep")
    found = load(path, encoder, limits=(15,), over_long="truncate_middle", form=form)
    assert refused(found) == [(2, None, RejectReason.OVER_LONG)]
    assert "no document is found in it to cut; give data.markers.context" in found.rejects[0].detail


def test_what_is_generated_needs_no_mapping(encoder):
    source = GeneratedData(items_per_length=2, lengths=((20, 40),))
    load(source, encoder, limits=(10_000,), form=DataConfig(columns={"question": "nowhere"}))
