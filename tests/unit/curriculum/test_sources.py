import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curriculum.config import GeneratedData
from curriculum.errors import UserError
from curriculum.rejects import Reject, RejectReason
from curriculum.rows import Row
from curriculum.sources import open_table

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


@pytest.mark.parametrize("name", ["a.txt", "a", "a.parquet.gz", "a.gz"])
def test_an_unknown_extension_names_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"unknown extension .*; give \.parquet, \.jsonl, \.json or \.csv"):
        open_table(str(tmp_path / name), key=KEY)


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UserError, match="is a folder without data files"):
        open_table(str(tmp_path), key=KEY)


def test_a_hub_id_is_loaded_with_its_split(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"id": "a", "context": "c", "extra": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = open_table("Owner-1/Data_2.5K:test", key=KEY)
    assert table.columns == ("id", "context", "extra")
    assert list(table.rows) == [Row(number=1, values={"id": "a", "context": "c"})]
    for source in ("owner/name", "o/n:all:", "o/n:all:test", "o/n:train[:10%]", "o/n:all:train[:10%]+test[5:]"):
        open_table(source, key=KEY)
    assert asked == [
        ("Owner-1/Data_2.5K", None, "test"),
        ("owner/name", None, "train"),
        ("o/n", "all", "train"),
        ("o/n", "all", "test"),
        ("o/n", None, "train[:10%]"),
        ("o/n", "all", "train[:10%]+test[5:]"),
    ]


def test_a_hub_id_that_cannot_be_loaded_is_an_error_of_one_line(monkeypatch):
    def load_dataset(name, config, *, split):
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


ROWS = [{"id": "a", "context": 'é, "x"\ny'}, {"id": "b", "context": "c", "answers": ["1", "2"]}]


def packed(content, name):
    if name.endswith(".gz"):
        return gzip.compress(content[:10]) + gzip.compress(content[10:])
    return pa.Codec("zstd").compress(content, asbytes=True) if name.endswith(".zst") else content


def written(folder, name, content):
    (folder / name).write_bytes(packed(content, name))
    return str(folder / name)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (".jsonl", "\n".join(map(json.dumps, ROWS))),
        (".json", "\n".join(map(json.dumps, ROWS))),
        (".json", json.dumps(ROWS)),
        (".json", "\ufeff" + json.dumps({"version": 1, "data": ROWS}, indent=2, ensure_ascii=False)),
        (".csv", '\ufeffid,context,answers\na,"é, ""x""\ny",\n\nb,c,"[""1"", ""2""]"\n'),
        (".CSV", 'id;context;answers\r\na;"é, ""x""\ny";\r\nb;c;"[""1"", ""2""]"\r\n'),
    ],
)
def test_every_form_of_text_gives_the_same_rows(tmp_path, kind, content, packing):
    table = open_table(written(tmp_path, f"x.y{kind}{packing}", content.encode()), key=KEY)
    first, second = table.rows
    assert (first.number, second.number, table.columns) == (1, 2, ("id", "context", "answers"))
    assert {name: value for name, value in first.values.items() if value is not None} == ROWS[0]
    assert second.values["answers"] in (["1", "2"], '["1", "2"]')


def test_one_object_over_several_lines_is_one_row(tmp_path):
    assert read(written(tmp_path, "a.json", json.dumps(ROWS[0], indent=2).encode())) == [Row(number=1, values=ROWS[0])]


def test_entries_of_a_json_list_that_are_no_objects_are_rejects(tmp_path):
    bad, good = read(written(tmp_path, "a.json", b'[3, {"id": 1}]'))
    assert (bad.number, bad.reason, good.number) == (1, RejectReason.BAD_JSON, 2)


@pytest.mark.parametrize("content", [b"[1, 2", b"hello", b"[" * 100_000, b'["\xff"]'])
def test_a_json_file_that_is_none_is_an_error_of_one_line(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.json: cannot be read as \.json \(.*\); write it again$"):
        read(written(tmp_path, "a.json", content))


def test_records_that_do_not_fit_the_header_and_wrong_bytes_are_rejects(tmp_path):
    rows = read(written(tmp_path, "a.csv", b"id, context\na,b,c\nd\ncaf\xe9,x\ng,h\n"))
    assert [getattr(row, "reason", None) for row in rows] == [
        RejectReason.WRONG_TYPE, RejectReason.WRONG_TYPE, RejectReason.NOT_UTF8, None
    ]  # fmt: skip
    assert rows[3] == Row(number=4, values={"id": "g", "context": "h"})


def test_cells_may_be_as_long_as_documents_are(tmp_path):
    assert len(read(written(tmp_path, "a.csv", b"id,context\na," + b"x" * 500_000))[0].values["context"]) == 500_000


@pytest.mark.parametrize("header", [b"id,id\n", b"id,\n"])
def test_a_header_without_different_names_is_an_error(tmp_path, header):
    with pytest.raises(UserError, match="its first line is no header"):
        read(written(tmp_path, "a.csv", header + b"a,b\n"))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_damage_in_the_middle_of_compressed_rows_names_the_last_good_row(tmp_path, packing):
    lines = b"".join(b'{"id": %d, "context": "%d"}\n' % (index, index**9) for index in range(20_000))
    path = written(tmp_path, f"a.jsonl{packing}", lines)
    content = packed(lines, packing)
    (tmp_path / f"a.jsonl{packing}").write_bytes(content[: len(content) * 2 // 3])
    seen = []
    with pytest.raises(UserError, match=r"damaged after row \d+ \(.*\); write it again$") as caught:
        seen.extend(row.number for row in open_table(path, key=KEY).rows)
    assert f"after row {seen[-1]} " in str(caught.value)
    assert seen[-1] > 1000


def test_a_file_that_is_not_compressed_as_its_name_says_is_an_error_of_one_line(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text('{"id": 1}' * 50)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read as \.jsonl \(.*\); write it again$"):
        read(tmp_path / "a.jsonl.gz")


def shards(folder):
    (folder / "shards").mkdir()
    written(folder, "shards/b.jsonl.gz", b'{"id": 2}\n{"id": 3}\n')
    written(folder, "shards/a.jsonl", b'{"id": 1, "context": "c"}\n')
    written(folder, "shards/README.md", b"# shards")
    return str(folder / "shards")


@pytest.mark.parametrize("pattern", ["", "/*.jsonl*", "/[ab].*"])
def test_globs_and_folders_are_read_in_the_order_of_names(tmp_path, pattern):
    table = open_table(shards(tmp_path) + pattern, key=KEY)
    assert table.columns == ("id", "context")
    assert [(row.values["id"], row.number, row.file) for row in table.rows] == [
        (1, 1, "a.jsonl"), (2, 1, "b.jsonl.gz"), (3, 2, "b.jsonl.gz")
    ]  # fmt: skip


def test_several_sources_of_different_kinds_are_one_table(tmp_path):
    pq.write_table(pa.table({"id": ["p"]}), tmp_path / "a.parquet")
    table = open_table((str(tmp_path / "a.parquet"), written(tmp_path, "b.csv", b"id\nq\n")), key=KEY)
    assert [row.place for row in table.rows] == ["row 1 of a.parquet", "row 1 of b.csv"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        written(tmp_path, f"{part}/a.jsonl", b'{"id": 1}')
    files = [row.file for row in open_table(str(tmp_path / "*" / "a.jsonl"), key=KEY).rows]
    assert files == [str(tmp_path / "one/a.jsonl"), str(tmp_path / "two/a.jsonl")]


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    path = written(tmp_path, "a.jsonl", b'{"id": 1}')
    with pytest.raises(UserError, match="is named twice"):
        open_table((path, path), key=KEY)


def test_no_source_at_all_is_refused():
    with pytest.raises(UserError, match="names no source"):
        open_table((), key=KEY)


def test_a_glob_without_matches_names_what_is_near(tmp_path):
    folder = shards(tmp_path)
    with pytest.raises(UserError, match=r"\.zst: no file matches \(near it: .*b\.jsonl\.gz.*\); check the pattern"):
        open_table(f"{folder}/*.jsonl.zst", key=KEY)
    with pytest.raises(UserError, match=r"no file matches \(there is no folder .*gone\)"):
        open_table(f"{tmp_path}/gone/*.jsonl", key=KEY)


def test_a_folder_with_several_kinds_asks_which(tmp_path):
    folder = shards(tmp_path)
    written(tmp_path, "shards/c.csv", b"id\n1")
    with pytest.raises(UserError, match=r"several kinds \(2 \.jsonl, 1 \.csv\); name those .*: .*/\*\.jsonl"):
        open_table(folder, key=KEY)


def test_an_empty_file_among_several_is_an_error(tmp_path):
    folder = shards(tmp_path)
    (tmp_path / "shards/c.jsonl.zst").write_bytes(b"")
    with pytest.raises(UserError, match=r"c\.jsonl\.zst: no row in it can be read; leave it out"):
        open_table(folder, key=KEY)


def test_all_configurations_of_a_hub_set_are_shown(monkeypatch):
    names = [f"configuration_{index:03}" for index in range(100)]

    def load_dataset(name, config, *, split):
        if config is None:
            raise ValueError(f"Config name is missing.\nPlease pick one among the available configs: {names}\nExample")
        raise ValueError(f"BuilderConfig {config!r} not found. Available: {names}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"several configurations; name one of the 100 below, .*_000:test") as missing:
        open_table("owner/name:test", key=KEY)
    with pytest.raises(UserError, match="has no configuration 'al'; name one of the 100 below") as unknown:
        open_table("owner/name:al:test", key=KEY)
    for caught in (missing, unknown):
        assert all(name in str(caught.value) for name in names)
    with pytest.raises(UserError, match=r"such as owner/name:configuration_007:train"):
        open_table("owner/name:configuration_007", key=KEY)
