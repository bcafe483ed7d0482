"""What a rank may hold of a GPU that it shares while the engine samples."""

import pytest

from curriculum.errors import RunFailed
from learner.gpu_share import GIB, GpuShare

SHARE = GpuShare(at_work=0.85, at_rest=0.1)


def test_a_rank_that_rests_within_its_share_is_accepted():
    SHARE.check_rest(8 * GIB, 80 * GIB)


def test_a_rank_that_holds_more_than_the_engine_leaves_is_one_line_with_the_way_out():
    with pytest.raises(RunFailed) as error:
        SHARE.check_rest(24 * GIB, 80 * GIB)
    assert str(error.value) == (
        "the learner holds 24.0 GiB of its GPU between two steps, but rollout.engine.gpu_memory_utilization leaves it "
        "8.0 GiB; lower it by 0.21, or set learner.offload=[optimizer, parameters]"
    )
