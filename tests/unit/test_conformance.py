"""What the product calls of vLLM, DeepSpeed and torch's part for GPUs, against the pinned builds for GPUs."""

from collections import Counter

import pytest

from tests.conformance.check import (
    OPERATORS,
    RECORD_AGAIN,
    bind,
    listed_names,
    listed_versions,
    locked_versions,
    operator_schema,
    problems,
    recorded,
)
from tests.conformance.settings import deepspeed_settings, engine_settings, vllm_variables
from tests.conformance.signatures import Library, schema_parameters
from tests.conformance.uses import OBJECTS, OWN_METHODS, private_names, product_sources, product_uses, uses_in


def test_the_record_belongs_to_the_pinned_versions():
    assert recorded()["versions"] == locked_versions(), RECORD_AGAIN


def test_everything_that_the_product_uses_exists_and_takes_its_arguments():
    uses = product_uses()
    assert len({use.name for use in uses}) > 80, "the search finds next to nothing"
    assert not problems(uses, recorded())


def test_the_record_holds_nothing_that_is_no_longer_used():
    assert recorded()["names"].keys() == {use.name for use in product_uses()}, RECORD_AGAIN


def test_the_operators_have_the_recorded_schemas():
    names = {name: text for name, text in recorded()["names"].items() if name.startswith(OPERATORS)}
    assert names == {name: operator_schema(name) for name in names}


def test_every_setting_of_the_engine_and_of_deepspeed_is_known_to_it():
    record = recorded()
    engine = {entry.rstrip("=") for entry in record["names"]["vllm.engine.arg_utils.AsyncEngineArgs"].split(", ")}
    assert engine_settings() <= engine
    assert {section: set(keys) for section, keys in record["deepspeed_config"].items()} == deepspeed_settings()
    assert vllm_variables() == set(record["vllm_variables"])


# the check itself ------------------------------------------------------------------------------------------------

ENGINE = """
import deepspeed
from typing import Any
import torch

_aten: Any = torch.ops.aten

def build(model):
    engine, *_ = deepspeed.initialize(model=model, {argument}=None)
    return engine
"""


def test_an_argument_that_deepspeed_does_not_have_is_found():
    assert not problems(uses_in("a.py", ENGINE.format(argument="config")), recorded())
    (problem,) = problems(uses_in("a.py", ENGINE.format(argument="zero_stage")), recorded())
    assert problem == "a.py:9: deepspeed.initialize: got an unexpected keyword argument 'zero_stage'"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("AsyncLLM.pause_generation(mode='keep', clear_cache=True)", None),
        ("AsyncLLM.pause_generation('keep')", "too many positional arguments"),
        ("AsyncLLM.pause_generation(drop_cache=True)", "unexpected keyword argument 'drop_cache'"),
        ("AsyncLLM.collective_rpc()", "missing a required argument: 'method'"),
        ("AsyncLLM.freeze()", "is not in the record"),
    ],
)
def test_a_call_of_vllm_is_checked_with_all_its_arguments(call, words):
    found = problems(uses_in("a.py", f"from vllm.v1.engine.async_llm import AsyncLLM\n{call}\n"), recorded())
    assert [words in problem for problem in found] == ([] if words is None else [True])


def test_an_operator_is_followed_through_another_name_and_a_star_over_a_tuple():
    text = """
import torch
_aten = torch.ops.aten
_aten._flash_attention_forward(*map(str, (q, k, v)), a, b, 1, 2, 0.0, True, False, {option}=1.0)
"""
    assert not problems(uses_in("a.py", text.format(option="scale")), recorded())
    assert "'softmax_scale'" in problems(uses_in("a.py", text.format(option="softmax_scale")), recorded())[0]
    assert (
        "missing" in problems(uses_in("a.py", text.replace("True, False, ", "").format(option="scale")), recorded())[0]
    )


def test_an_override_must_take_what_the_library_passes():
    base = "from vllm.v1.metrics.loggers import PrometheusStatLogger as Base\nclass A(Base):\n"
    assert not problems(uses_in("a.py", base + "    def record(self, a, b, *more, **rest): ...\n"), recorded())
    (problem,) = problems(uses_in("a.py", base + "    def record(self, a): ...\n"), recorded())
    assert problem.startswith("a.py:3: vllm.v1.metrics.loggers.PrometheusStatLogger.record is called with")


def test_a_schema_of_torch_becomes_parameters():
    schema = "aten::mm.dtype(Tensor self, Tensor mat2, *, ScalarType? dtype=None) -> Tensor"
    parameters = schema_parameters(schema)
    assert parameters == ["self", "mat2", "*", "dtype="]
    bind(parameters, 2, ("dtype",))
    with pytest.raises(TypeError):
        bind(parameters, 3, ())


def test_signatures_are_read_through_re_exports_bases_and_fields(tmp_path):
    (tmp_path / "inner.py").write_text(
        "class Base:\n    def __init__(self, a, *, b=1): self.seen = a\n    def go(self, x, /, *y): ...\n"
        "class Child(Base): ...\n"
        "@dataclass\nclass Fields:\n    one: int\n    two: int = 2\n    kind: ClassVar[str] = ''\n"
    )
    (tmp_path / "__init__.py").write_text("from .inner import Child as Renamed\nfrom .inner import *\n")
    library = Library({"lib": tmp_path})
    assert library.parameters("lib.Renamed") == ["a", "*", "b="]
    assert library.parameters("lib.Renamed.go") == ["x", "/", "*y"]
    assert library.parameters("lib.Renamed.seen") is None
    assert library.parameters("lib.Fields") == ["one", "two="]


def test_no_description_of_an_object_or_method_is_idle():
    texts = dict(product_sources())
    idle = [(file, expression) for file, expression in OBJECTS if f"{expression}." not in texts.get(file, "")]
    assert not idle
    methods = {f"{name.partition('.')[2]}" for name in OWN_METHODS}
    assert all(any(f"def {method}(" in text for text in texts.values()) for method in methods)


# private names ---------------------------------------------------------------------------------------------------


def test_every_private_name_of_a_library_is_listed_and_none_is_listed_in_vain():
    found, listed = private_names(), {name.name for name in listed_names()}
    assert found.keys() - listed == set(), "list them in tests/conformance/private_names.toml"
    assert listed - found.keys() == set(), "no longer used: remove them from tests/conformance/private_names.toml"
    assert max(Counter(name.name for name in listed_names()).values()) == 1


def test_private_names_were_read_in_the_pinned_versions():
    locked = locked_versions()
    assert listed_versions() == {package: locked[package] for package in listed_versions()}
