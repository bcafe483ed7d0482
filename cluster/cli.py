"""The command line `qwenlong`: arguments, help and exit statuses; what does the work is imported when it is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from cluster.run.exits import EXIT_BAD_ROWS, one_line_errors, say
from cluster.run.options import (
    AllowChange,
    AsJson,
    MaybeRecipe,
    Overrides,
    Recipe,
    RecipeOrOverrides,
    Resume,
    RunDir,
    Step,
    TrustRemoteCode,
)
from curriculum.errors import UserError
from curriculum.printable import printable_lines
from evaluation.options import (
    Behaviours,
    Benchmarks,
    Concurrency,
    Controls,
    Device,
    Exclude,
    LongestInput,
    LongestOutput,
    MaxInput,
    MaxItems,
    MaxOutput,
    ModelName,
    ModelOrUrl,
    Out,
    Quiet,
    Replicas,
    Request,
    RunOrModel,
    Samples,
    Seed,
    Temperature,
    Template,
    TensorParallel,
    Tokenizer,
    TopP,
    Yarn,
)
from reward.options import JudgeModel, JudgeOption, RewardKeys, RewardRecipe, Rules, Thinking

app = typer.Typer(
    name="qwenlong",
    help="Teach a language model to reason over long documents: warm-up SFT, curriculum-guided phased RL with growing "
    "context, and replay of hard samples (QwenLong-L1), on Ray, vLLM and DeepSpeed.",
    epilog="Exit status 0: done. 1: a process, machine or endpoint failed. 2: an option, recipe, file or folder cannot "
    "be used. 70: a fault of the program. 130: stopped by a signal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def check(recipe: Recipe, overrides: Overrides = None, trust_remote_code: TrustRemoteCode = False) -> None:
    """Check a recipe: resolve it, read its model and data, and print what a run would do. Starts no process.

    Exit status 0: the recipe can be run. 2: it cannot; one line for each fault: key, value, what to do.
    """
    with one_line_errors():
        from cluster.recipe.cards import check_this_machine
        from cluster.recipe.forecast import forecast_lines
        from cluster.recipe.load import dump_recipe, load_recipe
        from cluster.recipe.preparation import prepare
        from cluster.recipe.trust import check_trust, key_destination
        from cluster.run.guards import check_guards
        from cluster.run.rehearsal import check_models, rehearse
        from curriculum.rejects import RejectReason

        config = load_recipe(recipe, overrides or ())
        check_trust(config, remote_code=trust_remote_code)
        check_guards(config)
        check_models(config)
        prepared = prepare(config)
        check_this_machine(config)
        with TemporaryDirectory() as scratch:
            notes = rehearse(config, prepared, Path(scratch) / "model", run=config.name)
        sys.stdout.write(printable_lines(dump_recipe(config)))
        if destination := key_destination(config):
            say(f"judge: {destination}")
        batches = 0 if prepared.demonstrations is None else len(prepared.demonstrations)
        say(f"ok: warm-up of {batches} steps, {len(prepared.tasks)} tasks in {len(config.curriculum.phases)} phases")
        for line in (*forecast_lines(config, prepared.num_tasks), *prepared.notes, *notes):
            say(line)
        for key, rejects in prepared.rejects.items():
            if rejects := [reject for reject in rejects if reject.reason is not RejectReason.LEAK]:
                say(f"{key}: {len(rejects)} rows refused; see them with: qwenlong data inspect FILE --recipe {recipe}")


@app.command()
def train(
    arguments: RecipeOrOverrides = None,
    run_dir: RunDir = None,
    resume: Resume = None,
    step: Step = None,
    allow_change: AllowChange = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the summary.")] = False,
) -> None:
    """Train from a recipe.

    Joins the Ray that RAY_ADDRESS names (as inside `ray job submit`) or that runs on this machine, and starts one
    otherwise. Ctrl-C saves a checkpoint and stops; `--resume` continues from it, with overrides of keys that do not
    change the numbers, and of others with --allow-change. The run folder holds recipe.yaml, metrics.jsonl,
    events.jsonl, trajectories/, checkpoints/, models/, model/, summary.json and logs/.

    Exit status 0: finished. 1: failed; remove the cause, then use --resume. 2: recipe, data or folder cannot be used.
    130: stopped by a signal after saving a checkpoint.
    """
    with one_line_errors() as log_into:
        from cluster.recipe.changes import allowed_keys
        from cluster.recipe.trust import check_trust
        from cluster.run.console import Console
        from cluster.run.opening import open_run
        from cluster.train import train as run

        if resume is None and (step is not None or allow_change):
            raise UserError("--step and --allow-change: only with --resume")
        config, folder = open_run(arguments or [], run_dir=run_dir, resume=resume)
        check_trust(config, remote_code=trust_remote_code)
        log_into(folder)
        run(
            config,
            run_dir=folder,
            resume=resume is not None,
            console=Console(quiet=quiet),
            step=step,
            allowed=allowed_keys(allow_change or ()),
        )


@app.command()
def doctor(recipe: MaybeRecipe = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at every node: versions, driver, GPUs, network, disks, and what is wrong with each. Loads no model.

    Asks the nodes of the Ray that RAY_ADDRESS names or that runs on this machine; without one, this machine alone. With
    a recipe it also says whether the recipe's GPUs are there and large enough.

    Exit status 0: nothing is wrong. 1: the Ray of RAY_ADDRESS does not answer. 2: one line for each fault.
    """
    with one_line_errors():
        from cluster.processes.doctor import run_doctor

        run_doctor(recipe, overrides or (), as_json=as_json, say=say)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="RUN/checkpoints/step-N, or RUN for its newest whole one.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub as well.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a new repository is private.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder with a model card. Starts no process, needs no GPU.

    --push takes the token in HF_TOKEN, and the hub that HF_ENDPOINT names, if it does.

    Exit status 0: done. 1: the hub cannot be reached. 2: checkpoint or folder cannot be used, or the hub refuses.
    """
    with one_line_errors():
        from cluster.run.export_command import run_export

        if private and push is None:
            raise UserError("--private: only with --push")
        run_export(checkpoint, out, push=push, private=private, trust_remote_code=trust_remote_code, say=say)


@data_app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="FILE", help="File, glob, folder or hub id (owner/name[:split]).")],
    recipe: Annotated[Path, typer.Option(help="Recipe with the tokenizer and the phases to measure the data by.")],
    rejects: Annotated[
        Path | None, typer.Option(help="Write the refused rows with their reasons to this JSONL file.")
    ] = None,
    overrides: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Count the rows of a data set, measure them with the model's tokenizer; show lengths by phase and refused rows."""
    with one_line_errors():
        from cluster.recipe.inspection import inspect_data

        inspect_data(source, recipe, overrides or (), rejects, trust_remote_code=trust_remote_code)


@app.command()
def score(
    source: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="Rows {id, data_source, question?, response, ground_truth}.")
    ],
    recipe: RewardRecipe = None,
    keys: RewardKeys = None,
    rules: Rules = None,
    judge: JudgeOption = None,
    judge_model: JudgeModel = None,
    thinking: Thinking = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: standard output.", show_default=False)
    ] = None,
) -> None:
    """Score responses: one line {id, answer, rule, judge, score, reason} for each row; score is null if unknown.

    Exit status 0: every row is scored. 1: the judge decided nothing. 2: some rows could not be read (each is reported
    with its line number, the others are scored), or the command could not run.
    """
    with one_line_errors():
        from cluster.recipe.rewards import rewards
        from reward.score_command import score_file

        config = rewards(recipe, keys, rules=rules, judge=judge, judge_model=judge_model, thinking=thinking)
        num_bad = score_file(source, config, out=out)
    if num_bad:
        raise typer.Exit(EXIT_BAD_ROWS)


@app.command()
def judge_report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS.jsonl|RUN", help="Rows {question?, prediction, ground_truth, label}, or a run folder."
        ),
    ],
    recipe: RewardRecipe = None,
    keys: RewardKeys = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="none|URL|MODEL", help="Judge to measure; none: the verdicts of a run.", show_default=False
        ),
    ] = None,
    judge_model: JudgeModel = None,
    out: Annotated[Path | None, typer.Option(help="JSON file. Default: standard output.", show_default=False)] = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of disagreements to list.")] = 20,
) -> None:
    """Measure a judge: false yes, false no, unknown, and disagreements with the rule. Prints JSON and a table.

    Of a run it also says which recorded answers today's rules decide otherwise; kinds and thinking are then those of
    the run, unless --recipe names others.

    Exit status 0: done. 1: the judge decided nothing. 2: some rows could not be read (their line numbers are printed),
    or the command could not run.
    """
    with one_line_errors():
        from cluster.recipe.rewards import rewards_of_run
        from reward.judge_report_command import report_judge

        config = rewards_of_run(source, recipe, keys, judge=judge, judge_model=judge_model)
        num_bad = report_judge(source, config, out=out, max_examples=examples)
    if num_bad:
        raise typer.Exit(EXIT_BAD_ROWS)


@app.command("eval")
def evaluate(
    model: RunOrModel,
    benchmarks: Benchmarks = None,
    out: Out = None,
    model_name: ModelName = None,
    tokenizer: Tokenizer = None,
    replicas: Replicas = 0,
    tensor_parallel: TensorParallel = 1,
    device: Device = "auto",
    num_samples: Samples = 1,
    max_input: LongestInput = None,
    max_output: LongestOutput = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    max_items: MaxItems = None,
    concurrency: Concurrency = 64,
    recipe: RewardRecipe = None,
    keys: RewardKeys = None,
    rules: Rules = None,
    judge: JudgeOption = None,
    judge_model: JudgeModel = None,
    thinking: Thinking = None,
    template: Template = None,
    request: Request = None,
    exclude: Exclude = None,
    control: Controls = None,
    behaviours: Behaviours = "patterns",
    yarn: Yarn = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model on long-document benchmarks, as the paper does: one report beside the paper's rows.

    Of a run folder every model is evaluated, from the base model to the last stage, and one table shows them all.
    Questions that leak from training data are left out (--exclude), and the report says which.

    The folder holds answers.jsonl, scores.jsonl, results.jsonl, report.json and report.md. To continue an evaluation
    that was stopped, repeat its command with --out: answers in the folder are kept. Judge, rules, number of samples and
    number of items may be changed then; options that decide an answer may not.

    Exit status 0: done. 1: the model gives no answer. 2: model, data, option or folder cannot be used.
    """
    options = locals()
    with one_line_errors():
        from cluster.run.evaluated import evaluate_command

        evaluate_command(options)


@app.command()
def distill(
    model: ModelOrUrl,
    questions: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Training questions: files or hub ids (owner/name[:split]).")
    ],
    out: Out = None,
    model_name: ModelName = None,
    tokenizer: Tokenizer = None,
    replicas: Replicas = 0,
    tensor_parallel: TensorParallel = 1,
    device: Device = "auto",
    num_samples: Samples = 4,
    max_input: MaxInput = 18_000,
    max_output: MaxOutput = 10_000,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    max_items: MaxItems = None,
    concurrency: Concurrency = 64,
    recipe: RewardRecipe = None,
    keys: RewardKeys = None,
    rules: Rules = None,
    judge: JudgeOption = None,
    judge_model: JudgeModel = None,
    thinking: Thinking = None,
    template: Template = None,
    request: Request = None,
    max_kept: Annotated[int, typer.Option(min=1, help="Largest number of demonstrations of one question.")] = 1,
    max_total: Annotated[int, typer.Option(min=1, help="Largest number of tokens of a demonstration.")] = 20_000,
    yarn: Yarn = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Make demonstrations for the warm-up: a teacher answers, the hybrid reward checks, filters select.

    The folder holds sft.parquet, for data.sft of a recipe, and data_card.md. To continue a command that was stopped,
    repeat it with --out.

    Exit status 0: done. 1: the teacher gives no answer. 2: model, data, option or folder cannot be used.
    """
    options = locals()
    with one_line_errors():
        from evaluation.command import Options, run_distillation

        given = Options.of(options, _rewards_of(options))
        run_distillation(given, sources=questions, out=out, max_kept=max_kept, max_total=max_total, quiet=quiet)


def main() -> None:
    """Run the command `qwenlong`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


def _rewards_of(options: dict[str, Any]) -> Any:
    from cluster.recipe.rewards import rewards

    names = ("rules", "judge", "judge_model", "thinking")
    return rewards(options["recipe"], options["keys"], **{name: options[name] for name in names})


if __name__ == "__main__":
    main()
