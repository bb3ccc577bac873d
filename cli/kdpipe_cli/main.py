"""`kdpipe`: commands are imported only when they are called, so `--help` is instant."""

from __future__ import annotations

import importlib
import sys

import click

from kdpipe.errors import KdpipeError

__all__ = ["cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("kdpipe_cli.prepare", "Make features, CMVN and tokenizer from manifests."),
    "train-teacher": ("kdpipe_cli.train_teacher", "Train the autoregressive teacher."),
    "import-teacher": ("kdpipe_cli.import_teacher", "Make a teacher of another toolkit's model."),
    "teacher-dump": ("kdpipe_cli.teacher_dump", "Run the teacher once; write its targets."),
    "train-student": ("kdpipe_cli.train_student", "Train the Mask-CTC student."),
    "decode": ("kdpipe_cli.decode", "Recognise speech and score it."),
    "store": ("kdpipe_cli.store", "Inspect, check and convert teacher stores."),
    "demo": ("kdpipe_cli.demo", "The whole pipeline on speech synthesised here."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kdpipe", prog_name="kdpipe")
def cli() -> None:
    """Cache a teacher recogniser's outputs once; distil them into fast students.

    \b
    Example:
      kdpipe prepare --train train.jsonl --dev dev.jsonl --out exp/data
    """


def main() -> None:
    """Run the command line: known errors are one or two lines, exit code 1."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted: run the same command again to resume.", err=True)
        sys.exit(130)
    except KdpipeError as error:
        click.echo(f"Error: {error.message}.\n{error.remedy}.", err=True)
        sys.exit(1)
    # Without standalone mode click returns the code of ctx.exit() instead of exiting with it.
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
