"""The command line with input that cannot be used: one clear line, exit status 2, nothing started or overwritten."""

from __future__ import annotations

import json
import shutil
import socket
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.recipe.load import dump_recipe, load_recipe
from cluster.run.checkpoints import Checkpoints
from cluster.run.progress import Progress
from curriculum.coordinator import STATE_FORMAT
from curriculum.synthetic import generate_items
from reward.kind import kind_of

ROOT = Path(__file__).parents[3]
LOCAL = ROOT / "recipes" / "local.yaml"
RECIPES = ROOT / "recipes"
BASE = RECIPES / "assets" / "local_base"
SMALL = (
    "data.train={type: generated, items_per_length: 2, lengths: [[96, 192], [320, 640]]}",
    "data.sft={type: generated, items_per_length: 2, lengths: [[48, 96]]}",
    "data.evaluation=null",
    f"model.path={BASE}",
    "curriculum.phases=[{name: short, max_prompt_tokens: 300, end: {type: steps, steps: 1}}, "
    "{name: long, max_prompt_tokens: 800, end: {type: steps, steps: 1}}]",
    "rollout.max_response_tokens=32",
    "learner.max_tokens_per_microbatch=2000",
    "reward.judge={type: none}",
)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs `qwenlong` with a small recipe in an empty folder; returns (exit status, error lines)."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def _run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return result.exit_code, errors

    _run.folder = home
    return _run


def refused(run, *arguments, status=2):
    """The one error line of a command that must leave nothing behind."""
    before = _tree(run.folder)
    code, errors = run(*arguments)
    assert code == status
    assert len(errors) == 1, errors
    assert _tree(run.folder) == before, "nothing may be written"
    return errors[0]


def _tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(run, *overrides):
    return refused(run, "check", LOCAL, *SMALL, *overrides)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BASE, folder)
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_good_recipe_passes_the_check(run):
    assert run("check", LOCAL, *SMALL) == (0, [])


# ---- recipe


def test_a_mistyped_key(run):
    assert check(run, "rollout.group_sise=4").endswith("unknown key; did you mean rollout.group_size?")


def test_a_missing_recipe(run):
    assert "nowhere.yaml: no such file" in refused(run, "train", "nowhere.yaml")


def test_no_recipe_at_all(run):
    assert "RECIPE is missing; for example: qwenlong train recipes/local.yaml" in refused(run, "train", "seed=3")


def test_lengths_beyond_the_model(run):
    error = check(run, "rollout.max_response_tokens=50000", "learner.max_tokens_per_microbatch=90000")
    assert "800 prompt + 50000 response tokens = 50800 exceed its max_position_embeddings=" in error
    assert "lower curriculum.phases or rollout.max_response_tokens" in error


def test_yarn_on_a_model_that_has_it_otherwise_or_not_at_all(run, tmp_path):
    yarn = "model.yarn={factor: 4, original_max_tokens: 100000}"
    error = check(run, yarn)
    assert "with yarn={factor: 4, original_max_tokens: 100000}: original_max_tokens is more than its max_pos" in error
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    error = check(run, yarn, f"model.path={tmp_path}")
    assert (
        f"model.path='{tmp_path}' with yarn={{factor: 4, original_max_tokens: 100000}}: a model of type gpt2 has no"
        in error
    )
    assert "leave the key out, or take a Qwen2, Qwen3 or Llama model" in error


def test_yarn_with_a_factor_that_scales_nothing(run):
    assert "model.yarn.factor" in check(run, "model.yarn={factor: 1, original_max_tokens: 1024}")


def test_yarn_makes_room_for_longer_lengths(run):
    longer = ("rollout.max_response_tokens=40000", "learner.max_tokens_per_microbatch=90000")
    cache = "rollout.engine.cpu_kv_cache_bytes=4000000000"
    assert "exceed its max_position_embeddings" in check(run, *longer, cache)
    yarn = "model.yarn={factor: 4, original_max_tokens: 20480}"
    assert run("check", LOCAL, *SMALL, *longer, cache, yarn)[0] == 0


def test_lengths_beyond_a_row_of_the_learner(run):
    error = check(run, "learner.max_tokens_per_microbatch=500")
    assert "learner.max_tokens_per_microbatch=500: 800 prompt + 32 response tokens = 832 exceed it" in error


def test_phases_that_do_not_grow(run):
    assert "phases must grow in max_prompt_tokens, got [300, 200]" in check(
        run, "curriculum.phases.1.max_prompt_tokens=200"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("seed=4294967296",),
            "seed=4294967296: engine i is started with seed + i, and the largest seed is 4294967295",
        ),
        (("seed=4294967295", "rollout.num_actors=2"), "the largest seed is 4294967295; lower it"),
        (("rollout.temperature=2.5",), "rollout.temperature=2.5: input should be less than or equal to 2"),
        (("rollout.temperature=0.001",), "rollout.temperature=0.001: input should be greater than or equal to 0.01"),
        (("rollout.group_size=20000",), "rollout.group_size=20000: input should be less than or equal to 16384"),
        (
            ("cluster.startup_timeout_s=1e300",),
            "cluster.startup_timeout_s='1e300': input should be less than or equal to",
        ),
        (("rollout.engine.tensor_parallel_size=2",), "rollout.engine.tensor_parallel_size=2 but device=cpu"),
        (("device=cuda", "rollout.engine.tensor_parallel_size=7"), "does not divide the 2 attention heads"),
        (("learner.num_ranks=3", "learner.sequence_parallel=3"), "learner.sequence_parallel=3 does not divide"),
        (
            ("data.train.items_per_length=10000000",),
            "data.train.items_per_length=10000000: the documents would have up to",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_start_would_refuse_is_refused_by_the_check(run, overrides, message):
    assert message in check(run, *overrides)


def test_a_cache_below_one_prompt_and_its_response(run):
    error = check(run, "rollout.engine.cpu_kv_cache_bytes=100000")
    assert "rollout.engine.cpu_kv_cache_bytes=100000: holds " in error
    assert "fewer than one prompt with its response, 832; raise it to at least " in error
    needed = error.partition("at least ")[2].partition(",")[0]
    assert run("check", LOCAL, *SMALL, f"rollout.engine.cpu_kv_cache_bytes={needed}") == (0, [])


def test_a_cache_of_the_judge_below_one_question(run):
    judge = RECIPES / "assets" / "local_judge"
    error = check(run, f"reward.judge={{type: vllm, model: {judge}, max_model_len: 1024, cpu_kv_cache_bytes: 1000}}")
    assert "reward.judge.cpu_kv_cache_bytes=1000: holds " in error
    assert error.endswith("or lower reward.judge.max_model_len")


# ---- data


def test_a_missing_file(run, tmp_path):
    write_rows(tmp_path / "train.jsonl", [])
    error = check(run, f"data.train={tmp_path}/trian.jsonl")
    assert f"data.train={tmp_path}/trian.jsonl: no such file (did you mean {tmp_path}/train.jsonl?)" in error


def test_an_empty_data_set(run, tmp_path):
    error = check(run, f"data.train={write_rows(tmp_path / 'empty.jsonl', [])}")
    assert error.endswith("empty.jsonl: the data set is empty; give it at least one row")


def test_no_item_in_a_phase(run, tmp_path):
    rows = generate_items(num_items=3, min_words=20, max_words=30, seed=0, prefix="x")
    error = check(run, f"data.train={write_rows(tmp_path / 'short.jsonl', rows)}")
    assert "no item in phase 1 (300 < prompt tokens <= 800; the data has " in error
    assert "change curriculum.phases[1].max_prompt_tokens or add data" in error


def test_wrong_columns(run, tmp_path):
    rows = [{"contxt": "a", "question": "b", "answer": "c", "data_source": "d"}]
    error = check(run, f"data.train={write_rows(tmp_path / 'wrong.jsonl', rows)}")
    assert "no recognised columns; found contxt, question, answer, data_source; need" in error
    assert error.endswith("rename contxt -> context, or map them with data.columns of a recipe")


def test_data_that_is_not_utf_8(run, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"data_source": "d", "context": "café", "question": "q", "answer": "a"}\n'.encode("latin-1"))
    assert "none of 1 rows is usable (not_utf8 1); row 1: byte 0xe9" in check(run, f"data.train={path}")


def test_a_parquet_file_that_is_none(run, tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 or so")
    assert f"data.train={path}: not a parquet file" in check(run, f"data.train={path}")


# ---- model


def test_a_missing_model_folder(run):
    assert "model.path='./gone': no such folder; give a Hugging Face folder or a hub id" in check(
        run, "model.path=./gone"
    )


def test_an_empty_model_folder(run, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert "no model configuration can be read there" in check(run, f"model.path={tmp_path / 'nothing'}")


def test_a_model_configuration_that_is_no_json(run, model):
    (model / "config.json").write_text("{")
    assert "no model configuration can be read there" in check(run, f"model.path={model}")


def test_a_model_without_weights(run, model):
    (model / "model.safetensors").unlink()
    assert f"model.path='{model}': no weights (*.safetensors) in the folder" in check(run, f"model.path={model}")


def test_a_model_whose_weights_are_cut_off(run, model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in check(run, f"model.path={model}")


def test_a_tokenizer_that_cannot_be_read(run, model):
    (model / "tokenizer.json").write_text("not json")
    assert "no tokenizer can be loaded there" in check(run, f"model.path={model}")


def test_a_tokenizer_without_chat_template(run, model):
    (model / "chat_template.jinja").unlink()
    assert "its tokenizer has no chat template; use an instruction-tuned model" in check(run, f"model.path={model}")


def test_a_base_whose_generation_settings_cannot_be_saved_passes_the_check_with_a_note(run, model):
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": False, "temperature": 0.6}))
    result = CliRunner().invoke(app, ["check", str(LOCAL), *SMALL, f"model.path={model}"])
    assert result.exit_code == 0
    assert "generation_config.json is copied into models as it is; transformers would not save it (" in result.stderr


def test_a_best_step_without_held_out_questions(run):
    error = check(run, "checkpoint.keep.best=heldout/accuracy")
    assert error.endswith("the recipe holds no questions out; give data.evaluation, or set checkpoint.keep.best=null")


def test_a_missing_judge_model(run):
    error = check(run, "reward.judge={type: vllm, model: ./judge}")
    assert "reward.judge.model='./judge': no such folder" in error


# ---- run folder and ports


def test_a_run_folder_that_exists_is_left_alone(run):
    kept = run.folder / "old" / "summary.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    error = refused(run, "train", LOCAL, *SMALL, "--run-dir", "old")
    assert "run folder old: exists and is not empty; continue it with --resume old, or choose another" in error


def test_a_dashboard_port_that_is_taken(run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        overrides = (f"cluster.dashboard_port={port}", "cluster.address=local")
        error = refused(run, "train", LOCAL, *SMALL, *overrides, "--run-dir", "new", status=1)
    assert f"cluster.dashboard_port={port}: already in use; choose another or remove the key" in error
    assert not (run.folder / "new").exists()


def test_a_ray_that_is_not_there(run, monkeypatch):
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{attempt.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    error = refused(run, "train", LOCAL, *SMALL, "--run-dir", "new", status=1)
    assert f"RAY_ADDRESS={address}: nothing listens there; start that Ray, or unset RAY_ADDRESS" in error


@pytest.fixture
def earlier_run(run):
    folder = run.folder / "earlier"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe(LOCAL, SMALL)), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    return folder


def test_a_resume_with_another_seed_is_another_run(run, earlier_run):
    error = refused(run, "train", LOCAL, *SMALL, "seed=9", "--resume", earlier_run)
    assert f"--resume {earlier_run}: cannot change within a run: seed: 0 -> 9; leave it as it was, or start" in error


def test_a_resume_with_an_override_that_changes_the_numbers_tells_the_option_for_it(run, earlier_run):
    error = refused(run, "train", "groups_per_batch=2", "--resume", earlier_run)
    assert "differs from that of the run in groups_per_batch: 16 -> 2" in error
    assert "add --allow-change groups_per_batch to go on with the new values" in error


@pytest.mark.parametrize("old", ["progress", "curriculum"])
def test_a_run_of_an_earlier_version_cannot_be_resumed_and_says_so(run, earlier_run, old):
    progress = Progress(step=5).state_dict()
    state = {"progress": progress, "curriculum": {"format": STATE_FORMAT}, "inputs": {}}
    if old == "progress":
        del progress["guards"]
    else:
        state["curriculum"] = {"format": 1, "phase": 0}
    (earlier_run / ".lock").touch()
    checkpoints = Checkpoints(earlier_run / "checkpoints")
    checkpoints.finish(checkpoints.begin(5), 5, state, {}, keep_last=1)
    error = refused(run, "train", "--resume", earlier_run)
    assert "checkpoints/step-000005: " in error
    assert "another version of the program wrote it; go on with that version, or start a new run" in error


def test_the_options_of_a_resume_are_refused_without_one(run):
    for option in (["--step", "3"], ["--allow-change", "seed"]):
        assert "--step and --allow-change: only with --resume" in refused(run, "train", LOCAL, *SMALL, *option)


def test_a_resume_goes_on_in_its_own_folder(run, earlier_run):
    assert "--run-dir other: not with --resume" in refused(run, "train", "--resume", earlier_run, "--run-dir", "other")


def test_a_folder_that_is_no_run_cannot_be_resumed(run):
    assert "--resume gone: no recipe.yaml there; give the folder of an earlier run" in refused(
        run, "train", "--resume", "gone"
    )


@pytest.mark.parametrize("command", ["check", "train", "inspect", "resume"])
def test_no_command_runs_code_of_a_model_unless_it_is_told_to(run, command, tmp_path, earlier_run):
    overrides = (*SMALL, "model.trust_remote_code=true")
    if command == "inspect":
        arguments = ("data", "inspect", write_rows(tmp_path / "a.jsonl", []), "--recipe", LOCAL, *overrides)
    elif command == "resume":
        (earlier_run / "recipe.yaml").write_text(dump_recipe(load_recipe(LOCAL, overrides)), encoding="utf-8")
        arguments = ("train", "--resume", earlier_run)
    else:
        arguments = (command, LOCAL, *overrides)
    error = refused(run, *arguments)
    assert "model.trust_remote_code=True: code that comes with" in error
    assert "add --trust-remote-code" in error
    if command == "check":
        assert run(*arguments, "--trust-remote-code") == (0, [])


@pytest.mark.parametrize("command", ["check", "train"])
def test_no_command_sends_a_variable_that_the_user_has_not_allowed(run, command):
    judge = (
        "reward.judge={type: openai, base_url: 'http://127.0.0.1:9/v1', model: m, api_key_env: AWS_SECRET_ACCESS_KEY}"
    )
    assert "set QWENLONG_ALLOW_ENV=AWS_SECRET_ACCESS_KEY" in refused(run, command, LOCAL, *SMALL, judge)


# ---- inspection


def test_an_inspection_counts_and_writes_the_rejects(run, tmp_path):
    rows = generate_items(num_items=3, min_words=20, max_words=30, seed=0, prefix="x")
    path = write_rows(tmp_path / "rows.jsonl", [*rows, rows[0]])
    result = CliRunner().invoke(app, ["data", "inspect", str(path), "--recipe", str(LOCAL), "--rejects", "bad.jsonl",
                                      f"model.path={BASE}"])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 tasks, 1 rows refused" in result.stdout
    sources = Counter(row["data_source"] for row in rows)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert all([source, str(kind_of(source)), str(count), "0", ""] in cells for source, count in sources.items())
    assert ["duplicate", "1"] in cells
    (reject,) = [json.loads(line) for line in (run.folder / "bad.jsonl").read_text().splitlines()]
    assert (reject["number"], reject["reason"]) == (4, "duplicate")


def test_an_inspection_reads_files_of_a_folder_with_the_columns_of_the_recipe(run, tmp_path):
    rows = generate_items(num_items=4, min_words=20, max_words=30, seed=0, prefix="x")
    foreign = [{**{name: value for name, value in row.items() if name != "question"}, "ask": row["question"]}
               for row in rows]  # fmt: skip
    (tmp_path / "shards").mkdir()
    write_rows(tmp_path / "shards" / "a.jsonl", foreign[:2])
    write_rows(tmp_path / "shards" / "b.jsonl", [*foreign[2:], foreign[0]])
    arguments = ("data", "inspect", tmp_path / "shards", "--recipe", LOCAL, "--rejects", "bad.jsonl")
    result = CliRunner().invoke(app, [*map(str, arguments), f"model.path={BASE}", "data.columns.question=ask"])
    assert result.exit_code == 0, result.output
    assert "4 tasks, 1 rows refused" in result.stdout
    (reject,) = [json.loads(line) for line in (run.folder / "bad.jsonl").read_text().splitlines()]
    assert (reject["file"], reject["number"], reject["detail"]) == (
        "b.jsonl",
        3,
        "the same content as row 1 of a.jsonl",
    )


def test_an_inspection_whose_rejects_cannot_be_written_reads_nothing(run):
    error = refused(
        run, "data", "inspect", "gone.jsonl", "--recipe", LOCAL, "--rejects", run.folder, f"model.path={BASE}"
    )
    assert f"--rejects {run.folder}: is a folder; name a file in it" in error


def test_an_inspection_of_a_missing_file(run):
    assert "gone.jsonl: no such file" in refused(
        run, "data", "inspect", "gone.jsonl", "--recipe", LOCAL, f"model.path={BASE}"
    )
