"""A folder on a disk or in a storage: the same files, digests and refusals wherever it is."""

from __future__ import annotations

import errno
import pickle

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curriculum.digest import FileDigest, digest_blocks
from curriculum.errors import UserError
from curriculum.files import DiskError, DiskFull
from curriculum.shared_folder import SharedFolder, seen

ABC = FileDigest(num_bytes=3, xxh3="06b05ab6733a618578af5f94892f3950")


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path):
    """An empty folder of each kind."""
    url = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": "memory://bucket"}[request.param] + "/run/new"
    folder = SharedFolder(url)
    folder.make()
    yield folder
    MemoryFileSystem.store.clear()


def fail_after(block):
    yield block
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_in_blocks_and_read_by_ranges(folder):
    assert folder.write("file", [b"a", memoryview(b"bc")]) == ABC
    assert folder.read("file") == b"abc"
    assert folder.read("file", 1, 2) == b"b"
    assert folder.read("file", 2, 9) == b"c"
    assert (folder.num_bytes("file"), folder.digest("file")) == (3, ABC)
    assert b"".join(folder.blocks("file")) == b"abc"
    assert folder.names() == ["file"]


def test_a_file_that_finds_no_room_leaves_nothing_and_says_so(folder):
    with pytest.raises(DiskFull, match=r"new/file: cannot be written \(No space left on device\); its disk is full"):
        folder.write("file", fail_after(b"abc"))
    folder.write("other", [b"abc"])
    assert folder.names() == ["other"]


def test_what_is_not_there_is_told_as_that(folder):
    with pytest.raises(FileNotFoundError):
        folder.num_bytes("file")
    with pytest.raises(FileNotFoundError):
        folder.digest("file")
    with pytest.raises(UserError, match=r"run/new/file: cannot be read"):
        folder.read("file")


def test_removing_twice_is_removing_once(folder):
    folder.write("one", [b"1"])
    folder.write("two", [b"2"])
    folder.remove("one")
    folder.remove("one")
    assert folder.names() == ["two"]
    folder.remove()
    folder.remove()


def test_another_process_gets_the_same_folder(folder):
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert (SharedFolder("s3://bucket/runs/") / "step") == SharedFolder("s3://bucket/runs/step")


def test_only_a_disk_has_a_path_and_an_end(tmp_path):
    for url in (str(tmp_path), f"file://{tmp_path}"):
        assert SharedFolder(url).path == tmp_path
        assert (SharedFolder(url) / "not/there").free_bytes() > 0
    bucket = SharedFolder("memory://bucket")
    assert (bucket.path, bucket.free_bytes(), bucket.is_here()) == (None, None, True)


def test_a_folder_that_another_node_has_just_made_is_waited_for(tmp_path, monkeypatch):
    looks = iter([False, False, True])
    assert seen(lambda: next(looks))
    assert not seen(lambda: False, patience_s=0.0)


def test_a_storage_whose_package_is_missing_names_it(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError) as refused:
        SharedFolder("s3://bucket/runs").read("file")
    (line,) = refused.value.lines
    assert line == "s3://bucket/runs: Install s3fs to access S3; pip install s3fs on every node"


def test_a_storage_that_nobody_knows_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^s4://bucket: no such storage \(.*\); correct its address$"):
        SharedFolder("s4://bucket").names()


def test_what_a_library_of_a_storage_raises_is_one_line_and_says_nothing_about_the_file(monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def refuse(*arguments, **options):
        raise NoCredentialsError("Unable to locate credentials")

    for method in ("open", "cat_file", "info"):
        monkeypatch.setattr(MemoryFileSystem, method, refuse)
    bucket = SharedFolder("memory://bucket")
    line = r"^memory://bucket/x: cannot be {} \(Unable to locate credentials\); check its address, your rights and"
    with pytest.raises(DiskError, match=line.format("written")):
        bucket.write("x", [b""])
    for read in (bucket.read, bucket.num_bytes, bucket.digest):
        with pytest.raises(UserError, match=line.format("read")):
            read("x")


def test_an_upload_that_is_given_up_is_not_ended(monkeypatch):
    """Closing the file of a storage uploads what there is; then half of it would be there under its name."""
    done = []

    class Upload:
        closed = False

        def write(self, block):
            raise RuntimeError("connection lost")

        def close(self):
            done.append("closed")

        def discard(self):
            done.append("discarded")

    upload = Upload()
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *arguments, **options: upload)
    with pytest.raises(DiskError, match=r"connection lost"):
        SharedFolder("memory://bucket").write("x", [b"abc"])
    assert (done, upload.closed) == (["discarded"], True)


def test_a_digest_is_that_of_the_whole_content_however_it_is_cut():
    assert digest_blocks([b"abc"]) == digest_blocks([b"", b"ab", b"c"]) == ABC
