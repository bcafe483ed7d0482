"""The ZeRO-3 engine against plain PyTorch, against itself on two ranks, and against itself after a restart."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import learner_scenarios as scenarios

from curriculum.metric import declared_metrics
from curriculum.shared_folder import SharedFolder
from learner.engine import SFT_WEIGHT_DECAY
from learner.export import export_checkpoint
from learner.reports import KNOWN_BEFORE_UPDATE, StepReport
from learner.zero3.model_files import DTYPE_NAMES, copy_model_files

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=scenarios.VOCAB,
        hidden_size=64,  # embedding and MLP are just large enough for ZeRO-3 to partition them, the rest stays whole
        intermediate_size=1700,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
        max_position_embeddings=512,
    )
    model = Qwen2ForCausalLM(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # zero biases would be all rounding noise after a step of Adam
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(scenarios.VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("findings")


@pytest.fixture(scope="module")
def run(model_path, out):
    """Runs all ranks of a scenario to the end and returns what rank 0 found."""
    log = out / "ranks.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, scenarios.__file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(scenario: str, *, num_ranks: int) -> dict:
        order = [scenario, str(model_path), str(out), num_ranks, str(_free_port())]
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "done", log.read_text()[-4000:]
        return torch.load(out / f"{scenario}.{num_ranks}.pt", weights_only=False)

    yield run
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def one_rank(run):
    return run("parity", num_ranks=1)


@pytest.fixture(scope="module")
def two_ranks(run):
    return run("parity", num_ranks=2)


@pytest.fixture(scope="module")
def resumed(one_rank, two_ranks, run):
    return run("resume", num_ranks=2)


@pytest.fixture(scope="module")
def guards(run):
    return run("guards", num_ranks=1)


@pytest.mark.parametrize("algorithm", ["grpo", "dapo"])
def test_the_engine_equals_adamw_on_every_sequence_by_itself(one_rank, model_path, algorithm):
    plain = _Plain(model_path)
    losses = [plain.sft_step() for _ in range(2)]
    assert [report.loss for report in one_rank[algorithm]["sft"]] == pytest.approx([loss for loss, _ in losses])
    assert [report.grad_norm for report in one_rank[algorithm]["sft"]] == pytest.approx([norm for _, norm in losses])
    _assert_same_weights(one_rank[algorithm]["after_sft"], plain.weights())
    loss, norm = plain.rl_step(algorithm, cuts=[(0, 7)] if algorithm == "grpo" else [(0, 2), (2, 4), (4, 7)])
    assert one_rank[algorithm]["rl"].loss == pytest.approx(loss, abs=1e-6)
    assert one_rank[algorithm]["rl"].grad_norm == pytest.approx(norm)
    _assert_same_weights(one_rank[algorithm]["after_rl"], plain.weights())


@pytest.fixture(scope="module")
def algorithms(run):
    return run("algorithms", num_ranks=2)


@pytest.mark.parametrize(
    "name",
    [
        "gspo", "gspo tight", "gspo shared", "gspo checkpointing", "cispo", "dual_clip", "batch_mean",
        "batch_mean tight", "batch_mean shared", "batch_mean short", "batch_mean short offloaded",
    ],
)  # fmt: skip
def test_every_algorithm_on_two_ranks_equals_its_formula_on_every_sequence_by_itself(algorithms, model_path, name):
    report, weights = algorithms[name]
    plain = _Plain(model_path)
    loss, norm = plain.rl_step(name.split()[0], cuts=[(0, 4), (4, 5)] if "short" in name else [(0, 3), (3, 7)])
    assert report.loss == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
    assert report.num_updates == 2
    assert report.clip_fraction > 0
    _assert_same_weights(weights, plain.weights())


def test_small_micro_batches_and_checkpointing_do_not_change_the_weights(one_rank):
    for name in ("tight", "checkpointing", "tight_checkpointing"):
        _assert_same_weights(one_rank[name]["after_rl"], one_rank["dapo"]["after_rl"])


@pytest.mark.parametrize(("name", "whole"), [("grpo_sliced", "grpo"), ("sliced", "dapo"), ("sliced_offloaded", "dapo")])
def test_a_batch_in_slices_makes_the_same_updates_as_a_whole_one(one_rank, two_ranks, name, whole):
    for found in (one_rank, two_ranks):
        _assert_same_weights(found[name]["after_rl"], one_rank[whole]["after_rl"])
        ours, theirs = found[name]["rl"], one_rank[whole]["rl"]
        assert (ours.num_response_tokens, ours.num_updates) == (theirs.num_response_tokens, theirs.num_updates)
        for field in ("loss", "grad_norm", "entropy", "mean_ratio", "rollout_logprob_gap_mean"):
            assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-5, abs=1e-6), field


@pytest.mark.parametrize("name", ["short", "short_offloaded"])
def test_a_batch_that_ends_short_is_normalised_by_the_groups_that_came(guards, name):
    (short, short_weights), (five, five_weights) = guards[name], guards["five"]
    assert short.num_response_tokens == five.num_response_tokens
    for field in ("loss", "grad_norm", "entropy"):
        assert getattr(short, field) == pytest.approx(getattr(five, field), rel=1e-5, abs=1e-6), field
    _assert_same_weights(short_weights, five_weights)


def test_an_update_without_groups_is_refused(guards):
    assert guards["nothing"] == "RuntimeError: no groups to train on; skip the step"


def test_answers_that_the_sampler_found_much_more_likely_are_left_out_whole(guards):
    assert guards["answers_left_out"].masked_fraction == 1.0
    assert guards["answers_left_out"].loss == 0.0


@pytest.mark.parametrize("name", ["sequence", "tight_sequence"])
def test_two_ranks_that_share_every_row_equal_one(one_rank, two_ranks, name):
    _assert_same_weights(two_ranks[name]["after_rl"], one_rank["dapo"]["after_rl"])
    ours, theirs = two_ranks[name]["rl"], one_rank["dapo"]["rl"]
    for field in ("loss", "grad_norm", "entropy", "mean_ratio", "rollout_logprob_gap_mean", "rollout_logprob_gap_max"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-5, abs=1e-6), field
    assert ours.num_response_tokens == theirs.num_response_tokens
    assert ours.prompt_sharing


@pytest.fixture(scope="module")
def copies(run):
    return run("copies", num_ranks=4)


@pytest.mark.parametrize("name", ["plain", "shared"])
def test_a_copy_of_the_weights_in_every_pair_of_ranks_changes_no_number(one_rank, copies, name):
    _assert_same_weights(copies[name]["after_rl"], one_rank["dapo"]["after_rl"])
    for field in ("loss", "grad_norm", "entropy", "mean_ratio"):
        ours, theirs = getattr(copies[name]["rl"], field), getattr(one_rank["dapo"]["rl"], field)
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), field


def test_half_of_every_large_weight_is_copied_to_each_of_two_ranks(copies):
    assert copies["copied"]
    assert set(copies["copied"]) == {1.0}


def test_a_restored_checkpoint_is_not_mixed_with_copies_of_other_weights(copies):
    restored, saved = copies["restored"], copies["shared"]["after_rl"]
    assert all(torch.equal(restored[name], saved[name]) for name in saved)


def test_the_dense_fall_back_equals_the_shared_prompt(guards):
    (dense, dense_weights), (shared, shared_weights) = guards["dense"], guards["shared"]
    assert (dense.prompt_sharing, shared.prompt_sharing) == (False, True)
    assert dense.loss == pytest.approx(shared.loss, abs=1e-6)
    _assert_same_weights(dense_weights, shared_weights)


def test_a_resumed_learner_remembers_that_prompt_sharing_failed_its_check(guards):
    assert not guards["resumed_unshared"].prompt_sharing
    assert "state.json has no sharing_failed: another version of the program wrote it" in guards["earlier_version"]


def test_the_kl_can_be_measured_now_and_then(guards):
    first, second, third = guards["kl_every"]
    assert first == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(second)
    assert third > 1e-5


@pytest.mark.parametrize("name", ["grpo", "dapo", "tight", "checkpointing"])
def test_two_ranks_equal_one(one_rank, two_ranks, name):
    _assert_same_weights(two_ranks[name]["after_rl"], one_rank[name]["after_rl"])
    ours, theirs = two_ranks[name]["rl"], one_rank[name]["rl"]
    for field in ("num_response_tokens", "num_updates"):
        assert getattr(ours, field) == getattr(theirs, field)
    for field in ("loss", "grad_norm", "entropy", "mean_ratio", "rollout_logprob_gap_mean", "rollout_logprob_gap_max"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-5, abs=1e-6), field


def test_one_mini_batch_has_ratio_one_and_more_move_away_from_it(one_rank):
    assert one_rank["grpo"]["rl"].mean_ratio == 1.0
    assert one_rank["grpo"]["rl"].num_updates == 1
    assert one_rank["dapo"]["rl"].mean_ratio != 1.0
    assert one_rank["dapo"]["rl"].num_updates == 3


def test_a_restarted_learner_goes_on_bit_for_bit(two_ranks, resumed):
    assert torch.equal(resumed["random"], two_ranks["random"])
    assert resumed["continued"].keys() == two_ranks["continued"].keys()
    for name, weight in two_ranks["continued"].items():
        assert torch.equal(resumed["continued"][name], weight), name


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(two_ranks, run, num_ranks):
    found = run("reshard", num_ranks=num_ranks)
    for name, weight in two_ranks["dapo"]["after_rl"].items():
        assert torch.equal(found["loaded"][name], weight), name
    _assert_same_weights(found["continued"], two_ranks["continued"])


def test_a_rank_that_cannot_write_fails_on_all_ranks_and_they_may_try_again(two_ranks):
    assert "checkpoint_2/rank_00001.safetensors: cannot be written (File too large); check" in two_ranks["refused"]


def test_an_export_that_cannot_be_written_fails_on_all_ranks_and_they_may_try_again(two_ranks):
    assert "saved_2: cannot be written (File too large); check its disk" in two_ranks["not_exported"]


def test_a_checkpoint_of_another_stage_or_an_incomplete_one_is_not_loaded(resumed):
    assert "stage='rl' in the checkpoint but 'sft' now" in resumed["wrong_stage"]
    assert "nothing_here/manifest.json: cannot be read (No such file or directory)" in resumed["incomplete"]


@pytest.mark.parametrize("name", ["1", "2", "bf16"])
def test_a_model_from_the_files_of_a_checkpoint_equals_what_the_learner_writes_byte_for_byte(
    one_rank, two_ranks, guards, model_path, out, tmp_path, name
):
    dtype = DTYPE_NAMES["bf16" if name == "bf16" else "fp32"]
    (tmp_path / "files").mkdir()
    copy_model_files(str(model_path), tmp_path / "files", dtype=dtype, with_code=False)
    export_checkpoint(SharedFolder(str(out / f"checkpoint_{name}")), tmp_path / "files", tmp_path / "model", card="")
    theirs = {path.name: path.read_bytes() for path in (out / f"saved_{name}").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == {**theirs, "README.md": b""}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_exported_folder_loads_in_transformers_with_the_same_weights(
    one_rank, two_ranks, model_path, out, num_ranks
):
    folder = out / f"export_{num_ranks}"
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = {1: one_rank, 2: two_ranks}[num_ranks]["continued"]
    assert "lm_head.weight" not in found  # tied: sent once
    assert [name for name, _ in model.named_parameters()] == list(found)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, found[name]), name
    expected = AutoModelForCausalLM.from_pretrained(model_path)
    expected.load_state_dict(found, strict=False)
    expected.tie_weights()
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (model_path / name).read_bytes()
    assert sorted(path.suffix for path in folder.iterdir() if path.name.startswith("model")) == [".safetensors"]


def test_a_non_finite_update_is_skipped_and_a_fourth_one_in_a_row_stops_the_run(guards):
    assert guards["skipped"].num_skipped_updates == 1
    assert guards["skipped"].num_updates == 0
    assert guards["unchanged"]
    *second_and_third, fourth = guards["bad_updates"]
    assert second_and_third == ["no error"] * 2
    assert fourth.startswith("RunFailed: 4 updates in a row had a non-finite gradient, more than 3")
    assert guards["recovered"].num_updates == 1


@pytest.fixture(scope="module", params=[1, 2])
def watched(request, run):
    return run("watched", num_ranks=request.param)


@pytest.mark.parametrize("name", ["one", "three", "short", "offloaded"])
def test_a_dropped_batch_leaves_no_trace_in_weights_optimizer_and_report(watched, name):
    report, undisturbed, dropped = watched["dropped"][name]
    assert all(torch.equal(undisturbed[tensor], dropped[tensor]) for tensor in undisturbed)
    assert report.num_skipped_updates == 0


def test_a_preview_is_what_the_report_of_one_update_says(watched):
    preview, report = watched["preview"]
    for name, metric in declared_metrics(StepReport).items():
        if metric.key in KNOWN_BEFORE_UPDATE:
            assert getattr(preview, name) == pytest.approx(getattr(report, name), nan_ok=True), name
    assert all(math.isfinite(preview.entropy) for preview in watched["previews"].values())


def test_a_learner_goes_back_to_its_own_checkpoint_and_on_from_there_bit_for_bit(watched):
    once, again = watched["back"]["once"], watched["back"]["again"]
    assert all(torch.equal(once[tensor], again[tensor]) for tensor in once)


def test_weights_that_are_not_finite_accuse_the_learner_by_the_name_of_a_tensor(watched, out):
    assert re.match(
        r"NonFiniteWeights: learner: weight update 9: tensor \S+ and \d+ others hold ", watched["published"]
    )
    assert re.match(r"NonFiniteWeights: learner: export: tensor \S+ holds NaN", watched["nan_export"])
    assert not (out / "nan").exists()
    *first, fourth = watched["nan_updates"]
    assert first == ["no error"] * 3
    assert re.match(r"NonFiniteWeights: learner: 4 updates in a row had a non-finite gradient: tensor \S+ ", fourth)


def test_the_reference_is_the_start_of_the_stage(guards):
    first, second = guards["kl"]
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-5


def test_bf16_with_an_offloaded_optimizer_trains(guards):
    assert guards["bf16"].num_updates == 1
    assert guards["bf16_dtype"] == {torch.bfloat16}


@pytest.fixture(scope="module", params=[1, 2])
def half(request, run):
    return run("half", num_ranks=request.param)


@pytest.mark.parametrize("where", ["device", "offloaded"])
def test_the_gradient_of_a_bf16_model_is_summed_up_over_rows_and_ranks_in_fp32(half, where):
    assert half["num_rows"] >= 16
    assert _relative_error(_flat(half[where]), _flat(half["exact"])) < 1e-6  # 5e-3 where sums are rounded to bf16


def test_a_row_in_parts_beside_a_whole_one_gathers_and_reduces_no_weight_more_often(run):
    found = run("collectives", num_ranks=2)
    assert found["whole"]["rows"] == [[0], [0]]
    assert sorted(batches > 1 for own in found["parts"]["rows"] for batches in own) == [False, True]
    assert found["parts"]["calls"] == found["whole"]["calls"]
    assert found["whole"]["calls"]["c10d::_allgather_base_"] >= 4, "two layers, twice each"


def test_a_step_outside_its_stage_is_refused(guards):
    assert "start_stage" in guards["no_stage"]


class _Plain:
    """The two stages in a few lines of PyTorch: one forward per sequence, no packing, no DeepSpeed."""

    def __init__(self, model_path):
        self.model = AutoModelForCausalLM.from_pretrained(model_path).train()

    def weights(self):
        return dict(self.model.named_parameters())

    def sft_step(self):
        if not hasattr(self, "sft_optimizer"):
            self.sft_optimizer = self._adamw(weight_decay=SFT_WEIGHT_DECAY)
        batch = scenarios.demonstrations()
        loss = sum(-self._logprobs(item.prompt_ids, item.response_ids, 1.0).mean() for item in batch) / len(batch)
        return self._update(loss, self.sft_optimizer)

    def rl_step(self, algorithm, *, cuts):
        batch, optimizer = scenarios.groups(), self._adamw(weight_decay=scenarios.config().weight_decay)
        with torch.no_grad():
            old = [self._group_logprobs(group) for group in batch]
        updates = []
        for start, end in cuts:
            tokens = [self._group_tokens(batch[i], old[i], algorithm) for i in range(start, end)]
            if algorithm == "batch_mean":
                loss = torch.cat([answer for group in tokens for answer in group]).mean()
            elif algorithm in ("dapo", "cispo"):
                loss = torch.stack([torch.cat(group).mean() for group in tokens]).mean()
            else:
                loss = torch.stack([torch.stack([answer.mean() for answer in group]).mean() for group in tokens]).mean()
            updates.append(self._update(loss, optimizer))
        losses, norms = zip(*updates, strict=True)
        return sum(losses) / len(cuts), sum(norms) / len(cuts)

    def _group_tokens(self, group, old, algorithm):
        answers = zip(self._group_logprobs(group), old, group.advantages, strict=True)
        return [_surrogate(algorithm, *answer) for answer in answers]

    def _group_logprobs(self, group):
        return [self._logprobs(group.prompt_ids, ids, group.temperature) for ids in group.response_ids]

    def _logprobs(self, prompt_ids, response_ids, temperature):
        prompt, response = torch.from_numpy(prompt_ids).long(), torch.from_numpy(response_ids).long()
        logits = self.model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1] / temperature
        return logits.log_softmax(-1).gather(1, response[:, None]).squeeze(1)

    def _adamw(self, *, weight_decay):
        return torch.optim.AdamW(
            self.model.parameters(),
            lr=scenarios.LEARNING_RATE,
            betas=scenarios.config().betas,
            weight_decay=weight_decay,
        )

    def _update(self, loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in self.model.parameters()]
        norm = torch.stack([gradient.double().norm() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient.mul_(min(0.5 / (norm.item() + 1e-6), 1.0))
        optimizer.step()
        return loss.item(), norm.item()


def _surrogate(algorithm, new, old, advantage):
    """The loss of every token of an answer, by the formula, with the clips of the scenarios."""
    ratio = (new - old).exp()
    if algorithm == "cispo":
        return -ratio.detach().clamp(max=1.1) * advantage * new
    if algorithm == "gspo":
        whole = (new - old).mean().exp()  # differentiated as it stands
        return -torch.minimum(whole * advantage, whole.clamp(0.95, 1.05) * advantage).expand(len(new))
    clipped = ratio.clamp(0.8, 1.2 if algorithm in ("grpo", "dual_clip") else 1.28)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    return loss.clamp(max=-1.1 * advantage) if algorithm == "dual_clip" and advantage < 0 else loss


def _assert_same_weights(ours, theirs):
    """Equal within 1e-6 of their norm. The bias of a key hardly changes any score: its gradient is close to rounding
    noise, which Adam blows up to a full step, so a single tensor gets more room."""
    assert ours.keys() == theirs.keys()
    assert _relative_error(_flat(ours), _flat(theirs)) < 1e-6
    for name, weight in theirs.items():
        assert _relative_error(ours[name], weight) < 1e-4, name


def _relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def _flat(weights):
    return torch.cat([weight.flatten() for weight in weights.values()])


def _free_port():
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return attempt.getsockname()[1]
