"""A sealed folder knows when a bit of it is not the one that was written."""

import _thread
import json
import os
import random
import threading

import pytest
import xxhash

from curriculum.digest import FileDigest
from curriculum.seal import (
    COMPLETE,
    DIGESTS,
    ELSEWHERE,
    Damaged,
    OtherVersion,
    check_seal,
    part_of,
    remove_elsewhere,
    seal,
    send_elsewhere,
)
from curriculum.shared_folder import SharedFolder


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "learner").mkdir(parents=True)
    (folder / "state.json").write_text('{"step": 5}')
    (folder / "empty").touch()
    (folder / "learner" / "rank_00000.safetensors").write_bytes(random.Random(0).randbytes(10_000))
    seal(folder)
    return folder


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_folder_as_it_was_sealed_passes(sealed):
    check_seal(sealed)


def test_a_digest_is_that_of_xxh3_over_the_whole_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert SharedFolder(str(tmp_path)).digest("file") == FileDigest(
        num_bytes=3, xxh3="06b05ab6733a618578af5f94892f3950"
    )


def test_every_single_flipped_bit_of_every_file_is_noticed_by_name(sealed):
    rng = random.Random(7)
    for path in files(sealed):
        content = path.read_bytes()
        for bit in rng.sample(range(8 * len(content)), min(40, 8 * len(content))):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            name = DIGESTS if path.name == COMPLETE else path.relative_to(sealed).as_posix()
            with pytest.raises(Damaged, match=f"^{name}: its content has changed"):
                check_seal(sealed)
        path.write_bytes(content)
    check_seal(sealed)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        pytest.param(lambda path: path.unlink(), "is missing", id="missing"),
        pytest.param(lambda path: os.truncate(path, 7500), "has 7500 bytes instead of 10000", id="cut"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:7500] + bytes(2500)),
            r"its content has changed \(the digest differs\)",
            id="last quarter zeros",
        ),
    ],
)
def test_damage_is_told_by_its_kind(sealed, damage, line):
    damage(sealed / "learner" / "rank_00000.safetensors")
    with pytest.raises(Damaged, match=rf"^learner/rank_00000.safetensors: {line}$"):
        check_seal(sealed)


def test_a_file_that_turned_into_a_folder_is_told(sealed):
    (sealed / "empty").unlink()
    (sealed / "empty").mkdir()
    with pytest.raises(Damaged, match=r"^empty: "):
        check_seal(sealed)


@pytest.mark.parametrize(
    ("name", "line"),
    [(COMPLETE, f"^{COMPLETE}: is missing"), (DIGESTS, f"^{DIGESTS}: is missing")],
)
def test_without_its_seal_a_folder_is_damaged(sealed, name, line):
    (sealed / name).unlink()
    with pytest.raises(Damaged, match=line):
        check_seal(sealed)


def test_a_folder_of_another_version_is_told_as_such(tmp_path):
    (tmp_path / COMPLETE).touch()
    with pytest.raises(OtherVersion, match=f"^{COMPLETE} is empty: another version of the program wrote it"):
        check_seal(tmp_path)


@pytest.mark.parametrize("text", ["[5]", "null", '{"a": 5}', '{"a": {"size": 5}}', "{"])
def test_a_seal_of_something_else_is_damaged(tmp_path, text):
    (tmp_path / "a").touch()
    seal(tmp_path)
    (tmp_path / DIGESTS).unlink()
    (tmp_path / DIGESTS).write_text(text)
    (tmp_path / COMPLETE).write_text(xxhash.xxh3_128_hexdigest(text.encode()) + "\n")
    with pytest.raises(Damaged, match=f"^{DIGESTS}: "):
        check_seal(tmp_path)


def test_files_whose_digests_are_known_are_not_read_again(tmp_path):
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "shard").write_bytes(b"weights")
    (tmp_path / "state.json").write_text("{}")
    seal(tmp_path, {"learner/shard": FileDigest(num_bytes=7, xxh3="told by its rank")})
    digests = json.loads((tmp_path / DIGESTS).read_text())
    assert digests["learner/shard"] == {"num_bytes": 7, "xxh3": "told by its rank"}
    assert set(digests) == {"learner/shard", "state.json"}


def test_a_note_that_is_not_ours_removes_nothing(tmp_path):
    """A run folder may come from a stranger, and be cleared of what it says a killed run has left."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").touch()
    for url in (f"file://{home}", str(home), f"file://{home}/../home", f"{home}-0123456789ab"):
        (tmp_path / ELSEWHERE).write_text(json.dumps({"learner": url}))
        remove_elsewhere(tmp_path)
    assert (home / "file").exists()
    send_elsewhere(tmp_path, "learner", f"file://{home}", "step-000001")
    place = part_of(tmp_path, "learner")
    place.make()
    place.write("shard", [b"weights"])
    remove_elsewhere(tmp_path)
    assert [path.name for path in home.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["{", "[]", "5", "\udcff"])
def test_a_note_that_nobody_can_read_is_damage(sealed, text):
    (sealed / ELSEWHERE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Damaged, match=f"^{ELSEWHERE}: does not say where the parts are"):
        check_seal(sealed)
    remove_elsewhere(sealed)


def test_a_long_check_says_how_far_it_is(sealed, monkeypatch):
    monkeypatch.setattr("curriculum.seal._SAY_EVERY_S", 0.0)
    said = []
    check_seal(sealed, said.append)
    assert said[-1] == "checking sealed: 0.0 of 0.0 GB in 3 files"


def test_an_interrupt_ends_a_long_check_at_once(tmp_path):
    with (tmp_path / "shard").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / DIGESTS).write_text(json.dumps({"shard": {"num_bytes": 1 << 40, "xxh3": ""}}))
    (tmp_path / COMPLETE).write_text(xxhash.xxh3_128_hexdigest((tmp_path / DIGESTS).read_bytes()) + "\n")
    threading.Timer(0.3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        check_seal(tmp_path)
