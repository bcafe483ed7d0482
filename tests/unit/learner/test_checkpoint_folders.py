import pytest

from learner.zero3.checkpoint import COMPLETE, is_complete, latest_complete, prune


def _write(parent, name, *, complete=True):
    folder = parent / name
    folder.mkdir()
    (folder / "data").write_text("x")
    if complete:
        (folder / COMPLETE).touch()
    return folder


def test_the_latest_checkpoint_is_the_last_complete_one_by_name(tmp_path):
    _write(tmp_path, "step_000002")
    expected = _write(tmp_path, "step_000010")
    _write(tmp_path, "step_000011", complete=False)
    _write(tmp_path, ".step_000012.partial")
    assert latest_complete(tmp_path) == expected


def test_without_a_complete_checkpoint_there_is_no_latest(tmp_path):
    folder = _write(tmp_path, "step_000001", complete=False)
    assert not is_complete(folder)
    assert latest_complete(tmp_path) is None
    assert latest_complete(tmp_path / "missing") is None


def test_pruning_keeps_the_last_complete_ones_and_touches_nothing_else(tmp_path):
    for step in (1, 2, 3):
        _write(tmp_path, f"step_{step:06d}")
    _write(tmp_path, "step_000000", complete=False)
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000", "step_000002", "step_000003"]


def test_pruning_everything_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep at least 1"):
        prune(tmp_path, keep=0)
