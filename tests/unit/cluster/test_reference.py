"""The reference policy: sealed only when the driver has read what rank 0 wrote, and named here if it lies elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from cluster.processes.learner import RayLearner
from cluster.run.reference import Reference
from curriculum.errors import UserError
from curriculum.files import DiskError
from curriculum.seal import check_seal


class Rank:
    """Rank 0, as `RayLearner` calls it; `spoil` is what happens to a file between rank and driver."""

    def __init__(self, spoil=lambda place: None):
        self.calls = []
        self._spoil = spoil

    def __getattr__(self, name):
        return Method(getattr(type(self), f"_{name}"), self)

    async def _export(self, place):
        self.calls.append("export")
        if place.path is not None and not place.path.exists():
            place.path.mkdir()
        written = {"weights": place.write("weights", [b"abc"])}
        self._spoil(place)
        return written

    async def _start_stage(self, stage, reference):
        self.calls.append((stage, None if reference is None else reference.read("weights")))

    async def _discard_model(self, place):
        self.calls.append("discard")
        place.remove()


class Method:
    def __init__(self, function, rank):
        self.remote = lambda *arguments: function(rank, *arguments)


@pytest.fixture(params=["run folder", "storage"])
def reference(request, tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.run.reference.PATIENCE_S", 0.0)
    (tmp_path / "run").mkdir()
    storage = None if request.param == "run folder" else f"file://{tmp_path}/shared"
    return Reference(tmp_path / "run" / "reference", storage=storage)


def start(reference, rank):
    asyncio.run(RayLearner([rank], reference=reference).start_stage("rl"))


def left(tmp_path):
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())


def test_it_is_written_once_read_back_and_sealed(reference):
    rank = Rank()
    for _ in range(2):
        start(reference, rank)
    assert rank.calls == ["export", ("rl", b"abc"), ("rl", b"abc")]
    check_seal(reference.path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: place.remove("weights"), "is missing"),
        (lambda place: place.write("weights", [b"ab"]), "has 2 bytes instead of 3"),
        (lambda place: place.write("weights", [b"abd"]), "its content has changed"),
    ],
)
def test_one_that_is_not_as_rank_0_wrote_it_is_no_reference_and_is_left_nowhere(reference, tmp_path, spoil, words):
    rank = Rank(spoil)
    with pytest.raises(DiskError, match=f"weights: {words}.*, although rank 0 has written it; give a folder that"):
        start(reference, rank)
    assert rank.calls == ["export", "discard"]
    assert not reference.is_whole
    assert left(tmp_path) == []


def test_one_that_finds_no_room_is_left_nowhere(reference, tmp_path):
    def refuse(place):
        raise UserError("reference: cannot be written; free some space")

    with pytest.raises(UserError, match="free some space"):
        start(reference, Rank(refuse))
    assert left(tmp_path) == []


def test_a_damaged_one_is_noticed_wherever_it_lies(reference):
    start(reference, Rank())
    reference.place.write("weights", [b"abd"])
    with pytest.raises(UserError, match="weights: its content has changed"):
        check_seal(reference.path)
