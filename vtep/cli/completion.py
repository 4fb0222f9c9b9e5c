"""`pyvtep completion`: the script that makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from vtep.cli import commands

_SHELLS = ("bash", "zsh", "fish")


@click.command(cls=commands.CliCommand)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete pyvtep's commands.

    For bash: eval "$(pyvtep completion bash)", also in ~/.bashrc.
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"{shell}: this version of click has no completion for it")
    root = context.find_root()
    click.echo(found(root.command, {}, "pyvtep", "_PYVTEP_COMPLETE").source())
