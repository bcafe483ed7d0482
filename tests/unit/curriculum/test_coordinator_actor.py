import inspect

from curriculum.config import CurriculumConfig, FixedSteps, PhaseConfig
from curriculum.coordinator import Coordinator
from curriculum.coordinator_actor import CoordinatorActor
from curriculum.task import TaskEntry, TaskOutcome
from curriculum.transition import StepSummary

CONFIG = CurriculumConfig(phases=(PhaseConfig(name="only", max_prompt_tokens=100, end=FixedSteps(steps=1)),))


def public_methods(cls):
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def test_the_shell_offers_every_method_of_the_coordinator_a_health_check_and_the_tasks():
    assert public_methods(CoordinatorActor) == public_methods(Coordinator) | {"ping", "task_columns"}


def test_the_shell_takes_the_same_arguments():
    for name in public_methods(Coordinator):
        ours, theirs = getattr(CoordinatorActor, name), getattr(Coordinator, name)
        assert inspect.signature(ours) == inspect.signature(theirs)


def test_the_shell_runs_a_step(make_tasks):
    actor = CoordinatorActor(tasks=[TaskEntry.of(task) for task in make_tasks(2)], config=CONFIG, seed=0)
    assert repr(actor) == "Coordinator"
    assert actor.ping()
    actor.open_batch(1)
    lease = actor.lease("rollout-0")
    assert actor.release("rollout-0") == 1
    assert actor.lease("rollout-1") is lease
    done = TaskOutcome(lease_id=0, task_id=lease.task_id, accuracies=(1.0, 0.0))
    assert actor.report([done]) == (0,)
    state = actor.state_dict()
    assert actor.finish_step(StepSummary(step=0, num_trained_groups=1)).fresh.accuracy == 0.5
    assert actor.phase_state().finished
    assert len(actor.transitions()) == 1
    actor.load_state_dict(state)
    assert not actor.phase_state().finished
    assert actor.lease_counts().reported == 1
