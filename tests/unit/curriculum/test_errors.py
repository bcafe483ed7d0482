"""An error keeps its one line and its exit status on the way out of an actor, which pickles it twice."""

import pickle

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError

from actors.faults import DeadlineMissed, FaultKind, FaultyGroup
from cluster.batches.lag_buffer import LagBoundError
from cluster.processes.supervision import ActorLost
from cluster.roles import GroupLost, TaskFailed
from cluster.run.guards import GuardStop
from cluster.run.stopping import Interrupted, JudgeLost, PhaseFruitless
from cluster.weights.sync import WeightSyncError
from curriculum.errors import MAX_LINE_CHARS, RunFailed, UserError, first_line, library_words, one_line, root_cause
from curriculum.rejects import RejectReason, RowError
from evaluation.generator import GeneratorDown
from learner.weights.finite import NonFiniteWeights

LINE = "seed=-1: not a seed; give a number from 0 on"
ERRORS = [
    (UserError(LINE), 2, LINE),
    *[
        (kind(LINE), 1, LINE)
        for kind in (
            RunFailed,
            ActorLost,
            GeneratorDown,
            GuardStop,
            NonFiniteWeights,
            JudgeLost,
            LagBoundError,
            PhaseFruitless,
            WeightSyncError,
        )
    ],
    (GroupLost(7, "t-1", "its node died"), 1, str(GroupLost(7, "t-1", "its node died"))),
    (TaskFailed(7, "t-1", "it kills", "judge-0"), 1, str(TaskFailed(7, "t-1", "it kills", "judge-0"))),
    (Interrupted(), 130, "stopped; go on with --resume and the run folder"),
]
NAMES = [type(error).__name__ for error, _, _ in ERRORS]


def raised_in_an_actor(error):
    """What the driver catches: Ray pickles the error with its traceback and wraps it again on the other side."""
    wrapper = RayTaskError("method", f"Traceback (most recent call last):\n  ...\n{type(error)}: {error}", error)
    return pickle.loads(pickle.dumps(wrapper)).as_instanceof_cause()


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize(("error", "status", "line"), ERRORS, ids=NAMES)
def test_an_error_survives_pickling(error, status, line, pickler):
    copy = pickle.loads(pickler.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.exit_status, one_line(copy)) == (line, status, line)


@pytest.mark.parametrize(("error", "status", "line"), ERRORS, ids=NAMES)
def test_an_error_of_an_actor_is_caught_by_its_class_and_keeps_line_and_status(error, status, line):
    caught = raised_in_an_actor(error)
    assert isinstance(caught, type(error))
    assert isinstance(caught, UserError)
    assert "\n" in str(caught), "its own text is the traceback of the actor"
    assert caught.exit_status == status
    assert type(root_cause(caught)) is type(error)
    assert one_line(caught) == line


@pytest.mark.parametrize(
    "error",
    [
        FaultyGroup(FaultKind.EMPTY_ANSWER, "gave nothing", 3, "t-1", "rollout-0", 1),
        DeadlineMissed(3, "t-1", "rollout-0"),
        RowError(RejectReason.EMPTY, "question is empty"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_with_fields_keeps_them(error):
    copy = root_cause(raised_in_an_actor(error))
    assert vars(copy) == vars(error)


def test_any_other_error_is_told_with_its_class():
    assert one_line(raised_in_an_actor(ZeroDivisionError("division by zero"))) == "ZeroDivisionError: division by zero"
    assert one_line(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert one_line(RuntimeError()) == "RuntimeError"


def test_the_faults_of_a_recipe_become_one_line_where_one_is_needed():
    assert one_line(UserError("a=1: no", "b=2: no")) == "a=1: no; b=2: no"


@pytest.mark.parametrize(
    ("last_line", "told"),
    [
        (f"curriculum.errors.UserError: {LINE}", LINE),
        (f"curriculum.errors.RunFailed: {LINE}", LINE),
        ("RuntimeError: CUDA is not there", "RuntimeError: CUDA is not there"),
        ("torch.OutOfMemoryError: 2 GiB", "OutOfMemoryError: 2 GiB"),
    ],
)
def test_of_an_actor_that_failed_while_it_was_made_the_last_line_of_its_traceback_is_told(last_line, told):
    text = f"Traceback (most recent call last):\n  File ...\nKeyError: 'a'\n\nTraceback ...\n  File ...\n{last_line}"
    assert one_line(ActorDiedError(RayTaskError("__init__", text, RuntimeError()))) == told


def test_an_actor_that_was_killed_is_told_with_what_ray_knows():
    assert one_line(ActorDiedError()) == "The actor died unexpectedly before finishing this task."


def test_the_first_line_of_an_error_without_a_message_is_its_class():
    assert first_line(ValueError("  a\nb")) == "a"
    assert first_line(ValueError("\n")) == "ValueError"
    assert first_line(KeyError()) == "KeyError"


def test_a_line_of_an_error_keeps_its_ends_and_loses_its_middle():
    error = UserError("data.train=" + "x" * 5000 + ": no such file; check the path", "seed=-1: no; give 0")
    long, short = str(error).splitlines()
    assert len(long) == MAX_LINE_CHARS
    assert long.startswith("data.train=xxx")
    assert " … " in long
    assert long.endswith("x: no such file; check the path")
    assert short == "seed=-1: no; give 0"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("no space"), "no space"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (TypeError("'NoneType' object is not iterable"), "it holds something else than expected"),
        (ValueError("a class has no attribute x"), "it holds something else than expected"),
        (UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte"), "not UTF-8 at byte 2"),
    ],
)
def test_what_python_says_about_its_own_types_is_left_out(error, words):
    assert library_words(error) == words
