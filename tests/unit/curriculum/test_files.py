import errno
import os
import pickle

import pytest

from curriculum.errors import UserError
from curriculum.files import (
    DiskError,
    DiskFull,
    begin_folder,
    clear_leftovers,
    expanded,
    file_errors,
    finish_folder,
    lock_file,
    private_files,
    remove_folder,
    whole_file,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_made_in_private_is_readable_by_its_user_alone(tmp_path):
    before = os.umask(0o022)
    try:
        with private_files():
            (tmp_path / "mine").mkdir()
            write_text(tmp_path / "mine" / "a", "data")
        write_text(tmp_path / "b", "data")
    finally:
        assert os.umask(before) == 0o022, "the mask comes back"
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("mine", "mine/a", "b")]
    assert modes == [0o700, 0o600, 0o644]


def test_a_text_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "report.md"
    write_text(path, "old")
    write_text(path, "new \ud800")
    assert path.read_bytes() == b"new \\ud800"
    assert names(tmp_path) == ["report.md"]


def test_a_file_whose_writer_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_text(path, "old")

    def write_half():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["rows.jsonl"]


def test_a_folder_gets_its_name_when_it_is_finished(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        partial = begin_folder(path)
        (partial / "weights").write_text(content)
        assert names(tmp_path) == sorted([".model.partial", *(["model"] if content == "new" else [])])
        finish_folder(path)
    assert (path / "weights").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_not_in_the_next_folder(tmp_path):
    (begin_folder(tmp_path / "model") / "left over").touch()
    assert names(begin_folder(tmp_path / "model")) == []


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "its disk is full; free some space"),
        (errno.EACCES, "change its permissions or choose another path"),
        (errno.EROFS, "its disk is read-only; choose another path"),
        (errno.EISDIR, "name a file in it"),
        (errno.EIO, "check its disk"),
    ],
)
def test_a_refusal_of_the_file_system_is_one_line_with_path_reason_and_way_out(number, way_out, tmp_path):
    with pytest.raises(UserError) as caught, file_errors(tmp_path / "a", "written"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written ({os.strerror(number)}); {way_out}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, DiskError), (errno.EIO, DiskError)],
)
def test_a_disk_that_does_not_take_it_is_an_error_of_its_own_kind_also_from_another_process(number, kind, tmp_path):
    with pytest.raises(kind) as caught, file_errors(tmp_path / "a", "written"):
        raise OSError(number, os.strerror(number))
    assert type(pickle.loads(pickle.dumps(caught.value))) is kind
    with pytest.raises(UserError) as caught, file_errors(tmp_path / "a", "read"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is UserError


def test_a_library_that_raises_no_oserror_is_understood_by_the_number_in_its_text(tmp_path):
    from safetensors import SafetensorError

    line = r"cannot be written \(No space left on device\); its disk is full; free some space"
    with pytest.raises(DiskFull, match=line), file_errors(tmp_path / "a", "written"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), file_errors(tmp_path / "a", "written"):
        raise SafetensorError("Error while deserializing header: HeaderTooLarge")


def test_a_link_to_another_disk_is_followed_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("model", "report"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    for content in ("old", "new"):
        (begin_folder(tmp_path / "model") / "weights").write_text(content)
        finish_folder(tmp_path / "model")
        write_text(tmp_path / "report", content)
    assert (tmp_path / "disk" / "model" / "weights").read_text() == "new"
    assert (tmp_path / "disk" / "report").read_text() == "new"
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path) == ["disk", "model", "report"]
    assert names(tmp_path / "disk") == ["model", "report"]


def test_a_folder_that_is_removed_never_has_its_name_half(tmp_path, monkeypatch):
    (tmp_path / "step").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda path, **options: None)
    remove_folder(tmp_path / "step")
    assert names(tmp_path) == [".step.removed"]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        pytest.param({".a.partial": "new"}, {}, id="killed while it was written"),
        pytest.param({"a": "old", ".a.partial": "new"}, {"a": "old"}, id="killed before the old one went"),
        pytest.param({".a.replaced": "old", ".a.partial": "new"}, {"a": "new"}, id="killed between the two names"),
        pytest.param({"a": "new", ".a.replaced": "old"}, {"a": "new"}, id="killed before the old one was deleted"),
        pytest.param({".a.replaced": "old"}, {"a": "old"}, id="only the old one is left"),
        pytest.param({".a.removed": "old", ".hidden": "user's"}, {".hidden": "user's"}, id="killed while removing"),
    ],
)
def test_what_killed_writers_left_is_cleared_and_the_newer_whole_one_stays(tmp_path, left, kept):
    for name, content in left.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(content)
    clear_leftovers(tmp_path)
    assert {path.name: (path / "weights").read_text() for path in tmp_path.iterdir()} == kept


def test_a_file_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a: cannot be written \(Not a directory\); a part of the path is a file"):
        write_text(tmp_path / "file" / "a", "text")


def test_an_option_is_told_by_its_name(tmp_path):
    with pytest.raises(
        UserError, match=r"^--out x: cannot be written \(No such file or directory\); make its folder first$"
    ):
        write_text(tmp_path / "gone" / "x", "text", name="--out x")


def test_a_home_that_is_not_there_is_told():
    with pytest.raises(UserError, match="--judge: there is no user nobody-of-that-name here"):
        expanded("~nobody-of-that-name/model", name="--judge")


def test_a_lock_keeps_others_out_until_its_file_is_closed(tmp_path):
    with lock_file(tmp_path / ".lock", busy="wait here"), pytest.raises(UserError, match="wait here"):
        lock_file(tmp_path / ".lock", busy="wait here")
    lock_file(tmp_path / ".lock", busy="wait here").close()
