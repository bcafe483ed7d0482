from curriculum.config import CurriculumConfig, FixedSteps, PhaseConfig
from curriculum.coordinator_actor import CoordinatorActor
from curriculum.task import TaskEntry

CONFIG = CurriculumConfig(phases=(PhaseConfig(name="only", max_prompt_tokens=100, end=FixedSteps(steps=1)),))


def test_the_actor_is_a_coordinator_that_passes_the_reference_of_the_tasks_on(make_tasks):
    tasks = [TaskEntry.of(task) for task in make_tasks(2)]
    actor = CoordinatorActor(tasks=tasks, config=CONFIG, seed=0, columns=["reference"])
    assert repr(actor) == "Coordinator"
    assert actor.task_columns() == ("reference",)
    actor.open_batch(1)
    assert actor.lease_up_to("rollout-0", 2)[0].task_id in {task.task_id for task in tasks}
