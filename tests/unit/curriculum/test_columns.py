import json

import pytest

from curriculum.columns import loaded_columns, mapped
from curriculum.errors import UserError
from curriculum.rejects import Reject, RejectReason
from curriculum.rows import Row, Table

KNOWN = {"id", "context", "question", "answers"}


def table(*rows, **others):
    rows = [Row(number=number, values=values) for number, values in enumerate(rows, start=1)]
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Table(name="t", columns=columns, rows=iter(rows), **others)


def values(source, columns):
    return [row.values for row in mapped(source, columns, KNOWN, name="data.train=t").rows]


def test_their_columns_stand_under_our_names_too():
    assert values(table({"input": "q"}), {"question": "input"}) == [{"input": "q", "question": "q"}]
    assert mapped(table({"input": "q"}), {"question": "input"}, KNOWN, name="t").columns == ("input", "question")


def test_names_can_be_exchanged():
    swap = {"context": "question", "question": "context"}
    assert values(table({"context": "q", "question": "c"}), swap) == [{"context": "c", "question": "q"}]


@pytest.mark.parametrize("inside", [{"truth": {"v": 7}}, json.dumps({"truth": {"v": 7}})])
def test_dots_lead_into_nested_columns_and_json_texts(inside):
    (row,) = values(table({"meta": inside}), {"answers": "meta.truth.v"})
    assert row["answers"] == 7


def test_a_name_with_dots_is_a_column_first():
    assert values(table({"a.b": "x", "a": {"b": "y"}}), {"question": "a.b"})[0]["question"] == "x"


def test_a_row_without_their_column_keeps_its_own():
    rows = values(table({"input": "q"}, {"question": "own"}, {"input": None}), {"question": "input"})
    assert [row.get("question") for row in rows] == ["q", "own", None]


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            "inptu",
            r"^data\.train=t: data\.columns\.question=inptu: there is no column 'inptu' \(did you mean 'input'",
        ),
        ("meta.trth", r"there is no column 'trth' \(did you mean 'truth'\?\); it has truth$"),
        ("input.x", r"input holds no named values in the first 1 rows; name a column$"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest(theirs, message):
    with pytest.raises(UserError, match=message):
        mapped(table({"input": "q", "meta": {"truth": 1}}), {"question": theirs}, KNOWN, name="data.train=t")


def test_a_source_that_has_our_column_needs_no_mapping_and_other_names_are_of_no_concern():
    columns = {"question": "input", "response": "output"}
    assert values(table({"question": "own"}), columns) == [{"question": "own"}]


def test_rejects_and_rows_beyond_the_first_pass_through():
    reject = Reject(number=1, item_id=None, reason=RejectReason.BAD_JSON, detail="x")
    rows = [reject, *(Row(number=n, values={"q": n}) for n in range(2, 200))]
    found = list(mapped(Table(name="t", columns=("q",), rows=iter(rows)), {"id": "q"}, KNOWN, name="t").rows)
    assert found[0] is reject
    assert [row.values["id"] for row in found[1:]] == list(range(2, 200))


def test_each_of_several_files_has_its_own_columns():
    source = table({"q": 1}, {"question": 2}, columns_of={"a": ("q",), "b": ("question",)})
    found = mapped(source, {"question": "q"}, KNOWN, name="t")
    assert found.columns_of == {"a": ("q", "question"), "b": ("question",)}


def test_what_is_loaded_are_the_columns_and_the_first_parts_of_nested_ones():
    assert loaded_columns({"question": "input", "answers": "meta.truth"}) == {"input", "meta.truth", "meta"}
