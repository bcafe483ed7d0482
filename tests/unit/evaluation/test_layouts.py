import gzip
import json
import zipfile

import pytest

from curriculum.errors import UserError
from curriculum.layout import choose_layout
from curriculum.rejects import RejectReason, RowError
from curriculum.rows import Row
from evaluation.benchmarks import first_items, load_items, merge_items
from evaluation.layouts import BENCHMARK_LAYOUTS

LONGBENCH = {
    "input": " Who wrote it? ",
    "context": "Ada wrote it.",
    "answers": ["Ada", "Ada Lovelace"],
    "length": 3,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "x1",
}
DOCMATH = {
    "question_id": "complong-testmini-0",
    "question": "What is the sum?",
    "paragraphs": ["Revenue was 2.", "| cost | 3 |"],
    "table_evidence": [1],
    "ground_truth": 5.0,
}
FRAMES = {"Prompt": "How old?", "Answer": "12", "context": "She was 12.", "wiki_links": "[]"}


def read(values):
    return choose_layout(BENCHMARK_LAYOUTS, list(values), name="test").parse(Row(number=1, values=values))


def test_a_longbench_row_keeps_all_accepted_answers():
    item = read(LONGBENCH)
    assert (item.item_id, item.data_source, item.question) == ("x1", "hotpotqa", "Who wrote it?")
    assert item.answers == ("Ada", "Ada Lovelace")


def test_a_docmath_row_joins_paragraphs_and_tables():
    item = read(DOCMATH)
    assert item.context == "Revenue was 2.\n| cost | 3 |"
    assert (item.data_source, item.answers, item.item_id) == ("docmath", ("5.0",), "complong-testmini-0")


def test_a_docmath_truth_may_be_boolean():
    assert read({**DOCMATH, "ground_truth": True}).answers == ("True",)


def test_a_frames_row_without_id_gets_one_from_its_content():
    item = read(FRAMES)
    assert (item.question, item.answers, item.data_source) == ("How old?", ("12",), "frames")
    assert item.item_id == read(dict(FRAMES)).item_id != read({**FRAMES, "Prompt": "How tall?"}).item_id


def test_our_own_schema_is_read_as_it_is():
    row = {"id": 7, "data_source": "qasper", "context": "c", "question": "q", "answers": ["a"]}
    item = read(row)
    assert (item.item_id, item.data_source) == ("7", "qasper")


@pytest.mark.parametrize("paragraphs", ["one text", [1, 2], []])
def test_paragraphs_of_another_type_are_refused(paragraphs):
    with pytest.raises(RowError) as error:
        read({**DOCMATH, "paragraphs": paragraphs})
    assert error.value.reason in (RejectReason.WRONG_TYPE, RejectReason.EMPTY)


def test_unknown_columns_name_all_layouts():
    with pytest.raises(UserError, match="paragraphs"):
        read({"foo": 1})


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_of_a_file_belong_to_the_benchmark_that_their_data_source_names(tmp_path):
    rows = [LONGBENCH, {**LONGBENCH, "_id": "x2", "input": "Why?", "dataset": "qasper"}]
    found = load_items(write_jsonl(tmp_path / "all.jsonl", rows))
    assert [item.benchmark for item in found.records] == ["hotpotqa", "qasper"]


def test_a_name_in_front_of_a_file_names_the_benchmark_and_leaves_the_rule_to_the_data_source(tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", [DOCMATH])
    (item,) = load_items(f"our-math={path}").records
    assert (item.benchmark, item.data_source) == ("our-math", "docmath")


def test_bad_rows_are_refused_with_their_line_and_the_rest_is_read(tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", [LONGBENCH, {**LONGBENCH, "_id": "x2", "answers": []}, 7])
    found = load_items(path)
    assert len(found.records) == 1
    assert [(reject.number, reject.reason) for reject in found.rejects] == [
        (2, RejectReason.EMPTY),
        (3, RejectReason.BAD_JSON),
    ]


def test_a_benchmark_may_be_several_compressed_files(tmp_path):
    for number in (1, 2):
        rows = json.dumps([{**LONGBENCH, "_id": f"x{number}", "input": f"Which {number}?"}]).encode()
        (tmp_path / f"{number}.json.gz").write_bytes(gzip.compress(rows))
    found = load_items(f"ours={tmp_path}/*.json.gz")
    assert [(item.benchmark, item.item_id) for item in found.records] == [("ours", "x1"), ("ours", "x2")]


def test_a_benchmark_may_be_a_table_of_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('Prompt,Answer,context\nWho?,Alice,"a text,\nof two lines"\n', encoding="utf-8")
    (item,) = load_items(f"frames={path}").records
    assert (item.question, item.answers, item.context) == ("Who?", ("Alice",), "a text,\nof two lines")


def test_frames_by_name_tells_that_its_documents_are_missing():
    with pytest.raises(UserError, match="frames=FILE"):
        load_items("frames")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        load_items(f"musique={tmp_path}/nothing.jsonl")


def test_a_published_parquet_file_keeps_the_columns_that_its_layout_needs(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([DOCMATH]), tmp_path / "docmath.parquet")
    (item,) = load_items(str(tmp_path / "docmath.parquet")).records
    assert item.context.endswith("| cost | 3 |")


def test_a_member_of_a_zip_archive_can_be_read_the_way_longbench_is(tmp_path):
    import datasets

    write_jsonl(tmp_path / "hotpotqa.jsonl", [LONGBENCH])
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "hotpotqa.jsonl", "data/hotpotqa.jsonl")
    data = datasets.load_dataset(
        "json",
        data_files={"test": f"zip://data/hotpotqa.jsonl::{tmp_path}/data.zip"},
        split="test",
        cache_dir=str(tmp_path / "cache"),
    )
    assert read(data[0]).item_id == "x1"


def test_only_the_first_items_of_each_benchmark_are_kept(tmp_path):
    rows = [
        {**LONGBENCH, "_id": f"{name}{i}", "input": f"{name} {i}?", "dataset": name}
        for i in range(3)
        for name in ("hotpotqa", "qasper")
    ]
    items = first_items(merge_items([load_items(write_jsonl(tmp_path / "a.jsonl", rows))]), 2)
    assert [item.item_id for item in items] == ["hotpotqa0", "qasper0", "hotpotqa1", "qasper1"]


def test_different_items_under_one_id_are_refused_and_equal_ones_counted_once(tmp_path):
    first = load_items(write_jsonl(tmp_path / "a.jsonl", [LONGBENCH]))
    other = load_items(write_jsonl(tmp_path / "b.jsonl", [{**LONGBENCH, "input": "Else?"}]))
    assert len(merge_items([first, first])) == 1
    with pytest.raises(UserError, match="NAME=SOURCE"):
        merge_items([first, other])
