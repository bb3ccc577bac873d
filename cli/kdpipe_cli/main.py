"""`kdpipe`: commands are imported only when they are called, so `--help` is instant."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from kdpipe.errors import did_you_mean
from kdpipe_cli.failures import explain
from kdpipe_cli.output import complain

__all__ = ["COMMANDS", "cli", "main", "run"]

COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("kdpipe_cli.prepare", "Make features, CMVN and tokenizer from manifests."),
    "train-teacher": ("kdpipe_cli.train_teacher", "Train the autoregressive teacher."),
    "import-teacher": ("kdpipe_cli.import_teacher", "Make a teacher of another toolkit's model."),
    "teacher-dump": ("kdpipe_cli.teacher_dump", "Run the teacher once; write its targets."),
    "train-student": ("kdpipe_cli.train_student", "Train the Mask-CTC student."),
    "decode": ("kdpipe_cli.decode", "Recognise speech and score it."),
    "store": ("kdpipe_cli.store", "Inspect, check and convert teacher stores."),
    "report": ("kdpipe_cli.report", "One page about runs: errors, curves, store, posteriors."),
    "demo": ("kdpipe_cli.demo", "The whole pipeline on speech synthesised here."),
}
INTERRUPTED = 130
"""Exit code of a shell's command that Ctrl-C ended: 128 + SIGINT."""


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kdpipe", prog_name="kdpipe")
def cli() -> None:
    """Cache a teacher recogniser's outputs once; distil them into fast students.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 an error that
    is explained, 2 wrong usage, 130 interrupted. A command that was interrupted resumes when it
    is run again.

    \b
    Example:
      kdpipe prepare --train train.jsonl --dev dev.jsonl --out exp/data

    \b
    Completion, in ~/.bashrc (or zsh_source in ~/.zshrc, fish_source for fish):
      eval "$(_KDPIPE_COMPLETE=bash_source kdpipe)"
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. A bug is the only exception that escapes."""
    try:
        code = cli.main(list(arguments), prog_name="kdpipe", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        complain(error.format_message(), f"See `{_help_command(error, arguments)}`")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes a file's end for Ctrl-D.
            raise error.__cause__ from None
        click.echo("Interrupted: run the same command again to go on.", err=True)
        return INTERRUPTED
    except (Exception, MemoryError) as error:
        explained = explain(error)
        if explained is None:
            raise
        complain(*explained)
        _drop_refused_output()
        return 1
    # Without standalone mode click returns the code of ctx.exit() instead of exiting with it.
    return code if isinstance(code, int) else 0


def _help_command(error: click.ClickException, arguments: Sequence[str]) -> str:
    """The help of the command that was called; click does not always tell which it was."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{error.ctx.command_path} --help"
    return " ".join(["kdpipe", *(name for name in arguments[:1] if name in COMMANDS), "--help"])


def _drop_refused_output() -> None:
    """What stdout could not take (a full disk) must not fail once more when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The command `kdpipe`."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
