"""Options of `eval` and `distill`: the model that answers, its sampling, and how much is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ModelOrUrl = Annotated[
    str, typer.Argument(metavar="MODEL|URL", help="Model folder, hub id, or root of an OpenAI-compatible API.")
]
RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|URL|RUN",
        help="Model folder, hub id, root of an OpenAI-compatible API, or a run folder: all models of its stages.",
    ),
]
Benchmarks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BENCHMARK]...",
        help="docmath, 2wikimqa, hotpotqa, musique, narrativeqa, qasper, frames=FILE, [NAME=]FILE or "
        "[NAME=]OWNER/DATA[:SPLIT]. Default for a run folder: its held-out questions.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATASET|none",
        help="Training set whose questions and documents are left out; none: also not those that are left out by "
        "default (docmath: the published training set; a model of a run: its data).",
        show_default=False,
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="no_document|other_document",
        help="Also ask without the documents, or with those of other questions.",
        show_default=False,
    ),
]
Behaviours = Annotated[Literal["patterns", "judge"], typer.Option(help="How reasoning behaviours are counted.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder; answers in it are kept. Default: evaluations/…", show_default=False),
]
ModelName = Annotated[str | None, typer.Option(metavar="NAME", help="Model at the URL.", show_default=False)]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Counts prompt tokens for a URL. Default: its model.", show_default=False),
]
Replicas = Annotated[int, typer.Option(min=0, help="Engines in Ray actors; 0: one engine in this process.")]
TensorParallel = Annotated[int, typer.Option(min=1, help="GPUs of one engine.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where engines run. auto: on GPUs if this machine has one; cuda: on GPUs."),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Answers sampled for each question.")]
LongestInput = Annotated[
    int | None,
    typer.Option(
        "--max-input", min=1, show_default=False,
        help="Largest number of prompt tokens. Default: 120000; of a run folder at most what its models hold.",
    ),
]  # fmt: skip
LongestOutput = Annotated[
    int | None,
    typer.Option(
        "--max-output", min=1, show_default=False,
        help="Largest number of response tokens. Default: 10000; of a run folder that of its recipe.",
    ),
]  # fmt: skip
MaxInput = Annotated[int, typer.Option(min=1, help="Largest number of prompt tokens.")]
MaxOutput = Annotated[int, typer.Option(min=1, help="Largest number of response tokens.")]
Temperature = Annotated[float, typer.Option(min=0)]
TopP = Annotated[float, typer.Option(min=0, max=1)]
Seed = Annotated[int, typer.Option(min=0)]
MaxItems = Annotated[
    int | None, typer.Option(min=1, help="Only the first items of each benchmark.", show_default=False)
]
Concurrency = Annotated[int, typer.Option(min=1, help="Answers sampled at the same time.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the result.")]
Yarn = Annotated[
    str | None,
    typer.Option(
        metavar="FACTOR:TOKENS",
        help="YaRN on the model's rope, for example 4:32768. Default: as its folder has it; of a run, its recipe's.",
        show_default=False,
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Argument of the chat template, for example enable_thinking=false.",
        show_default=False,
    ),
]
Request = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Further field of every request to a URL, for example reasoning_effort=low.",
        show_default=False,
    ),
]
