import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curriculum.config import GeneratedData
from curriculum.errors import UserError
from curriculum.rejects import Reject, RejectReason
from curriculum.rows import Row, open_table

KEY = "data.train"


def read(path):
    return list(open_table(str(path), key=KEY).rows)


def test_jsonl_lines_become_rows_with_their_line_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n\n  \n{"id": 2, "context": "c"}\n', encoding="utf-8")
    assert read(path) == [Row(number=1, values={"id": 1}), Row(number=4, values={"id": 2, "context": "c"})]
    assert open_table(str(path), key=KEY).columns == ("id", "context")


def test_a_byte_order_mark_and_missing_final_newline_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "\xc3\xa9"}')
    assert read(path) == [Row(number=1, values={"id": "é"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "caf\xe9"}', RejectReason.NOT_UTF8),
        (b'{"id": 1', RejectReason.BAD_JSON),
        (b"[1, 2]", RejectReason.BAD_JSON),
        (b"null", RejectReason.BAD_JSON),
        (b"[" * 100_000, RejectReason.BAD_JSON),
        (b'{"id": ' + b"9" * 5000 + b"}", RejectReason.BAD_JSON),
    ],
    ids=["latin-1", "cut", "list", "null", "deep", "huge"],
)
def test_a_bad_line_is_a_reject_between_good_ones(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": 1}\n' + line + b'\n{"id": 3}\n')
    first, bad, last = read(path)
    assert (first.number, last.number) == (1, 3)
    assert isinstance(bad, Reject)
    assert (bad.number, bad.reason) == (2, reason)


def test_a_utf16_file_is_all_rejects_and_no_crash(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"id": 1}\n{"id": 2}\n'.encode("utf-16"))
    rows = read(path)
    assert rows
    assert all(isinstance(row, Reject) for row in rows)


def test_parquet_rows_keep_the_columns_that_a_layout_reads(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "answers": [["x"], ["y", "z"]], "licence": ["MIT", "MIT"]}), path)
    table = open_table(str(path), key=KEY)
    assert table.columns == ("id", "answers", "licence")
    assert list(table.rows) == [
        Row(number=1, values={"id": "a", "answers": ["x"]}),
        Row(number=2, values={"id": "b", "answers": ["y", "z"]}),
    ]


def test_a_parquet_text_that_is_not_utf8_is_a_reject(tmp_path):
    path = tmp_path / "a.parquet"
    column = pa.array([b"good", b"\xff\xfe", b"fine"], type=pa.binary()).view(pa.string())
    pq.write_table(pa.table({"context": column}), path)
    rows = read(path)
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[1].reason == RejectReason.NOT_UTF8


def test_a_file_that_only_looks_like_parquet_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("PAR1 not really")
    with pytest.raises(UserError, match=r"^data\.train=.*a\.parquet: not a parquet file .*write it again$"):
        read(path)


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"trian\.jsonl: no such file \(did you mean .*train\.jsonl\?\)"):
        open_table(str(tmp_path / "trian.jsonl"), key=KEY)


def test_a_missing_folder_is_named():
    with pytest.raises(UserError, match="the folder nowhere does not exist"):
        open_table("nowhere/train.jsonl", key=KEY)


@pytest.mark.parametrize("name", ["a.csv", "a"])
def test_an_unknown_extension_names_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"unknown extension .*; give a \.parquet or \.jsonl file"):
        open_table(str(tmp_path / name), key=KEY)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        open_table(str(tmp_path), key=KEY)


def test_a_hub_id_is_loaded_with_its_split(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"id": "a", "context": "c", "extra": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = open_table("Owner-1/Data_2.5K:test", key=KEY)
    assert table.columns == ("id", "context", "extra")
    assert list(table.rows) == [Row(number=1, values={"id": "a", "context": "c"})]
    open_table("owner/name", key=KEY)
    assert asked == [("Owner-1/Data_2.5K", "test"), ("owner/name", "train")]


def test_a_hub_id_that_cannot_be_loaded_is_an_error_of_one_line(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^data\.train=owner/name: neither a file .*\(no route\); check") as caught:
        open_table("owner/name", key=KEY)
    assert "\n" not in str(caught.value)


def test_generated_rows_cover_every_length_and_are_held_out_by_role():
    source = GeneratedData(items_per_length=3, lengths=((40, 60), (80, 100)))
    train = [row.values for row in open_table(source, key="data.train").rows]
    held_out = [row.values for row in open_table(source, key="data.evaluation").rows]
    assert len(train) == 6
    assert len({row["id"] for row in [*train, *held_out]}) == 12
    assert not {row["context"] for row in train} & {row["context"] for row in held_out}


def test_generated_demonstrations_have_responses():
    source = GeneratedData(items_per_length=2, lengths=((40, 60),))
    table = open_table(source, key="data.sft", demonstrations=True)
    assert "response" in table.columns
    assert all("the answer is" in row.values["response"] for row in table.rows)


def test_jsonl_columns_are_those_of_the_first_objects_together(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" + json.dumps({"a": 1}) + "\n" + json.dumps({"b": 1, "a": 2}), encoding="utf-8")
    assert open_table(str(path), key=KEY).columns == ("a", "b")
