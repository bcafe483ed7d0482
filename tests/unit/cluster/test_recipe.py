"""Recipes: inheritance, typed overrides, errors that name key and way out, and the way back from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.recipe.load import dump_recipe, load_recipe
from curriculum.errors import UserError

RECIPES = Path(__file__).parents[3] / "recipes"
MINIMAL = "name: tiny\nmodel: {path: owner/name}\ndata: {train: a.parquet, sft: b.parquet}\n"


@pytest.fixture
def write(tmp_path):
    def _write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def fault_of(path, *overrides):
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    return str(error.value)


# ---- inheritance


def test_a_recipe_adds_to_the_one_it_extends(write):
    write(MINIMAL + "seed: 1\nlearner: {num_ranks: 2, warmup_steps: 3}\n", "base.yaml")
    config = load_recipe(write("extends: base.yaml\nseed: 7\nlearner: {warmup_steps: 9}\n"))
    assert (config.name, config.seed) == ("tiny", 7)
    assert (config.learner.num_ranks, config.learner.warmup_steps) == (2, 9)


def test_a_list_replaces_the_list_it_overrides(write):
    phase = "{name: %s, max_prompt_tokens: %d, end: {type: steps, steps: 1}}"
    write(MINIMAL + f"curriculum: {{phases: [{phase % ('a', 10)}, {phase % ('b', 20)}]}}\n", "base.yaml")
    config = load_recipe(write(f"extends: base.yaml\ncurriculum: {{phases: [{phase % ('c', 30)}]}}\n"))
    assert [p.name for p in config.curriculum.phases] == ["c"]


def test_another_type_replaces_the_whole_mapping(write):
    write(MINIMAL + "learner: {algorithm: {type: dapo, clip_high: 0.3}}\n", "base.yaml")
    config = load_recipe(write("extends: base.yaml\nlearner: {algorithm: {type: grpo}}\n"))
    assert config.learner.algorithm.type == "grpo"


def test_a_recipe_that_extends_itself_is_refused(write):
    write("extends: b.yaml\n", "a.yaml")
    b = write("extends: a.yaml\n", "b.yaml")
    assert "extends itself through b.yaml -> a.yaml -> b.yaml" in fault_of(b)


def test_a_missing_parent_is_named(write):
    assert "gone.yaml: no such file" in fault_of(write("extends: gone.yaml\n"))


# ---- overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("learner.learning_rate=1.0e-6", "learner.learning_rate", 1e-6),
        ("learner.learning_rate=1e-6", "learner.learning_rate", 1e-6),
        ("model.trust_remote_code=true", "model.trust_remote_code", True),
        ("learner.betas=[0.8, 0.9]", "learner.betas", (0.8, 0.9)),
        ("data.train=c.jsonl", "data.train", "c.jsonl"),
        ("data.train=[c.jsonl, d/*.csv.gz]", "data.train", ("c.jsonl", "d/*.csv.gz")),
        ("data.columns={question: input}", "data.columns", {"question": "input"}),
        ("rollout.engine.max_num_batched_tokens=null", "rollout.engine.max_num_batched_tokens", None),
        ("curriculum.retrospective=null", "curriculum.retrospective", None),
        ("learner.algorithm={type: grpo, clip: 0.1}", "learner.algorithm.clip", 0.1),
    ],
)
def test_an_override_has_the_type_of_its_key(write, override, key, value):
    node = load_recipe(write(MINIMAL), [override])
    for part in key.split("."):
        node = getattr(node, part)
    assert node == value


def test_an_override_reaches_into_a_list():
    config = load_recipe(RECIPES / "local.yaml", ["curriculum.phases.1.end.steps=7"])
    assert config.curriculum.phases[1].end.steps == 7


def test_the_last_override_wins(write):
    assert load_recipe(write(MINIMAL), ["seed=1", "seed=2"]).seed == 2


# ---- another type


DAPO = MINIMAL + "learner: {algorithm: {type: dapo, clip_low: 0.1, clip_high: 0.3}}\n"


@pytest.mark.parametrize(
    ("overrides", "algorithm"),
    [
        (["learner.algorithm.type=grpo"], {}),
        (["learner.algorithm.type=grpo", "learner.algorithm.clip=0.3"], {"clip": 0.3}),
        (["learner.algorithm.clip=0.3", "learner.algorithm.type=grpo"], {"clip": 0.3}),
        (["learner.algorithm.type=dapo"], {"clip_low": 0.1, "clip_high": 0.3}),
    ],
)
def test_another_type_on_the_command_line_leaves_what_only_the_old_type_has(write, overrides, algorithm):
    config = load_recipe(write(DAPO), overrides)
    assert config.learner.algorithm.model_dump(exclude_defaults=True) == algorithm


def test_every_kind_of_union_can_be_changed_on_the_command_line():
    config = load_recipe(
        RECIPES / "local.yaml",
        [
            "curriculum.phases.0.end.type=plateau",
            "curriculum.phases.0.end.max_steps=9",
            "curriculum.phases.1.end.type=epochs",
            "curriculum.phases.1.end.epochs=2",
            "reward.judge.type=none",
            "data.sft.type=generated_judge_pairs",
            "data.sft.num_items=8",
        ],
    )
    assert [phase.end.type for phase in config.curriculum.phases] == ["plateau", "epochs"]
    assert config.reward.judge.type == "none"
    assert config.data.sft.num_items == 8


def test_keys_that_both_types_have_are_kept():
    before = load_recipe(RECIPES / "local.yaml").reward.judge
    config = load_recipe(RECIPES / "local.yaml", ["reward.judge.type=openai", "reward.judge.base_url=http://x/v1"])
    assert config.reward.judge.model == before.model


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learner.algorithm.type=grpo", "learner.algorithm.clip_low=0.2"],
            "learner.algorithm.clip_low=0.2: clip_low belongs to dapo and gspo; grpo has clip, dual_clip",
        ),
        (
            ["learner.algorithm.clip_low=0.2", "learner.algorithm.type=grpo"],
            "learner.algorithm.clip_low=0.2: clip_low belongs to dapo and gspo; grpo has clip, dual_clip",
        ),
        (
            ["learner.algorithm={clip_low: 0.2, clip: 0.1}", "learner.algorithm.type=grpo"],
            "learner.algorithm.clip_low=0.2: clip_low belongs to dapo and gspo; grpo has clip, dual_clip",
        ),
        (
            ["learner.algorithm={type: grpo, clip_low: 0.2}"],
            "learner.algorithm.clip_low=0.2: clip_low belongs to dapo and gspo; grpo has clip, dual_clip",
        ),
        (
            ["curriculum.phases.0.end.type=epochs"],
            "curriculum.phases.0.end.epochs: missing; add it to the recipe",
        ),
        (
            ["curriculum.phases.0.end.epochs=3"],
            "curriculum.phases.0.end.epochs=3: epochs belongs to epochs; steps has steps",
        ),
        (["reward.judge={type: none, model: x}"], "reward.judge.model='x': model belongs to vllm and openai; none has"),
        (["learner.algorithm.type=grpoo"], "learner.algorithm.type='grpoo': unknown; known: "),
        (["learner.algorithm.type=grpo", "learner.algorithm=3"], "learner.algorithm=3: "),
        (["learner.algorithm.type=grpo", "learner=3"], "learner=3: expected a mapping of keys, found"),
    ],
)
def test_a_key_of_another_type_is_told_from_an_unknown_one(write, overrides, message):
    recipe = RECIPES / "local.yaml" if "learner" not in overrides[0] else write(DAPO)
    fault = fault_of(recipe, *overrides)
    assert fault.startswith(message)
    assert "\n" not in fault


@pytest.mark.parametrize("key", ["clip", "clip_low", "clip_high", "constant_tokens"])
@pytest.mark.parametrize("algorithm", ["{type: grpo", "{type: dapo", "{type: dr_grpo, constant_tokens: 9"])
def test_a_key_is_never_proposed_in_its_own_place(write, algorithm, key):
    own = f"{algorithm}, {key}: -1}}" if key not in algorithm else f"{algorithm}, no_such: 1}}"
    fault = fault_of(write(MINIMAL), f"learner.algorithm={own}")
    assert f"did you mean learner.algorithm.{key}?" not in fault


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("learner.betas=[0.9", "override 'learner.betas=[0.9': line 1, column 5: expected ',' or ']'"),
        ("curriculum.phases.2.name=x", "'2' must be an index from 0 to 1"),
        ("curriculum.phases.first.name=x", "'first' must be an index from 0 to 1"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused(override, message):
    assert message in fault_of(RECIPES / "local.yaml", override)


# ---- faults name the key, the value and the way out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint.keep_last=3", "checkpoint.keep_last=3: is called checkpoint.keep.last now; use that key"),
        ("seeed=3", "seeed=3: unknown key; did you mean seed?"),
        ("learner.learning_rat=1", "learner.learning_rat=1: unknown key; did you mean learner.learning_rate?"),
        (
            "curriculum.phases.0.nme=x",
            "curriculum.phases.0.nme='x': unknown key; did you mean curriculum.phases.0.name?",
        ),
        ("model.xyzzy=1", "model.xyzzy=1: unknown key; known: path, trust_remote_code"),
        ("rollout.group_size=eight", "rollout.group_size='eight': input should be a valid integer"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("learner.learning_rate=.nan", "learner.learning_rate=nan: input should be"),
        ("model=x", "model='x': expected a mapping of keys, found text"),
        ("name=a/b", "name='a/b': string should match pattern"),
    ],
)
def test_a_faulty_value_is_named_with_its_key_and_the_way_out(override, message):
    assert fault_of(RECIPES / "local.yaml", override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.lenghts=3", "data.train.lenghts=3: unknown key; did you mean data.train.lengths?"),
        ("learner.algorithm={type: dapo, clip_lo: 3}",
         "learner.algorithm.clip_lo=3: unknown key; did you mean learner.algorithm.clip_low?"),
        ("curriculum.phases.0.end.steps=0", "curriculum.phases.0.end.steps=0: input should be greater than 0"),
        ("curriculum.phases.0.end={type: plateau, max_steps: 9, patience: 0}",
         "curriculum.phases.0.end.patience=0: input should be greater than 0"),
        ("reward.judge={type: vllm, max_token: 8}",
         "reward.judge.max_token=8: unknown key; did you mean reward.judge.max_tokens?"),
        ("reward.judge={type: vlm}", "reward.judge.type='vlm': unknown; known: 'none', 'vllm', 'openai'"),
        ("reward.judge={model: x}", "reward.judge.type: missing; add it"),
        ("data.train=3", "data.train=3: input should be a valid string"),
        ("data.train=[a.jsonl, 3]", "data.train.1=3: input should be a valid string"),
        ("data.columns.questin=input", "data.columns.questin: unknown name; known: 'id', 'data_source', "),
        ("data.markers.context=[<doc>]", "data.markers.context.1: missing"),
        ("data.prompt=keeps", "data.prompt='keeps': input should be 'paper' or 'keep'"),
        ("data.train.quote_share=0.5", "data.train.quote_share=0.5: unknown key; known: "),
        ("data.sft.word_share=0.5", "data.sft.word_share=0.5: unknown key; known: "),
        ("learner.offload_optimizer=true",
         "learner.offload_optimizer=True: unknown key; did you mean learner.offload?"),
        ("learner.kl_estimator=k1", "learner.kl_estimator='k1': input should be 'k2' or 'k3'"),
    ],
)  # fmt: skip
def test_a_fault_within_alternatives_is_one_line_with_the_key_of_the_recipe(override, message):
    fault = fault_of(RECIPES / "local.yaml", override)
    assert fault.startswith(message)
    assert "\n" not in fault


def test_every_fault_has_its_own_line(write):
    fault = fault_of(write("name: x\nsed: 3\n"))
    assert fault.splitlines() == [
        "model: missing; add it to the recipe",
        "data: missing; add it to the recipe",
        "sed=3: unknown key; did you mean seed?",
    ]


def test_a_missing_recipe_names_the_nearest_one():
    assert fault_of(RECIPES / "locl.yaml").endswith(f"did you mean {RECIPES / 'local.yaml'}?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\n", "not UTF-8 at byte 9; save the file as UTF-8"),
        (b"a: [1\n", "line 2, column 1: expected ',' or ']'"),
        (b"- a\n", "holds a list; expected a mapping of keys"),
        (b"", "holds nothing; expected a mapping of keys"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    fault = fault_of(path)
    assert message in fault
    assert "\n" not in fault


def test_yaml_creates_no_objects(write):
    path = write(MINIMAL + "seed: !!python/object/apply:os.getpid []\n")
    assert "line 4, column 7: the tag !!python/object/apply:os.getpid is not read; remove it" in fault_of(path)


# ---- the way back


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_dumped_recipe_reads_back_as_the_same(path, tmp_path):
    config = load_recipe(path)
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(config), encoding="utf-8")
    assert load_recipe(stored) == config
