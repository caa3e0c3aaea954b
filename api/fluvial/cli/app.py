"""The `fluvial` app: its commands and what stands before them."""

from __future__ import annotations

from typing import Annotated

import typer

from fluvial import __version__
from fluvial.cli.bench import memory, recall
from fluvial.cli.chat import chat
from fluvial.cli.command import command
from fluvial.cli.doctor import doctor
from fluvial.cli.lora import ls as ls_plugins
from fluvial.cli.lora import verify
from fluvial.cli.models import ls, show
from fluvial.cli.packing import pack, plan
from fluvial.cli.run import run
from fluvial.cli.states import diff
from fluvial.cli.states import show as show_state
from fluvial.cli.watch import watch

app = typer.Typer(name="fluvial", add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
models = typer.Typer(help="The models on this machine.", no_args_is_help=True)
states = typer.Typer(help="Saved conversations.", no_args_is_help=True)
bench = typer.Typer(help="Measure what long streams cost, and what is remembered of them.", no_args_is_help=True)
lora = typer.Typer(help="Plugins: LoRA folders and learned states.", no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fluvial {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fluvial(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Chat with images, video and very long streams, in constant memory."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


command(app, "run")(run)
command(app, "chat")(chat)
command(app, "watch")(watch)
command(app, "doctor")(doctor)
command(models, "ls")(ls)
command(models, "show")(show)
command(models, "pack")(pack)
command(models, "plan")(plan)
app.add_typer(models, name="models")
command(states, "show")(show_state)
command(states, "diff")(diff)
app.add_typer(states, name="state")
command(lora, "ls")(ls_plugins)
command(lora, "verify")(verify)
app.add_typer(lora, name="lora")
command(bench, "recall")(recall)
command(bench, "memory")(memory)
app.add_typer(bench, name="bench")
