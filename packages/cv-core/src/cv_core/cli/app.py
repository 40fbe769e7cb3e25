"""The commands of ``cvlab``: what they take, and which function does the work."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from cv_core.cli.errors import BadUse

COMMANDS = "cvlab.commands"
STOPPED = 130  # the exit code of what Ctrl-C ended


class Added(TyperCommand):
    """A command of an installed package: what ``--help`` lists before the package is loaded.

    Args:
        point: Its entry point, which names a ``typer.Typer`` with one command or several.
    """

    def __init__(self, point: EntryPoint) -> None:
        package = point.dist.name if point.dist is not None else point.module.partition(".")[0]
        super().__init__(point.name, help=f"A command of {package}; see its own --help.")
        self._point = point

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Load the package and hand over to its command."""
        return typer.main.get_command(self._point.load()).make_context(*args, **options)


class Commands(TyperGroup):
    """The built-in commands, and those that installed packages add."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for point in sorted(_added(), key=lambda point: point.name):
            self.commands.setdefault(point.name, Added(point))


def _added() -> list[EntryPoint]:
    return list(entry_points(group=COMMANDS))


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Does a paper's method help, on which data, and at what cost?\n\n"
        "Find a method with `cvlab list`, read what it claims with `cvlab info SLUG`, and judge it "
        "with `cvlab run SLUG`: every arm is trained over paired seeds, and the report says with "
        "intervals what holds. An interrupted run goes on with the same command."
    ),
)
data_app = typer.Typer(no_args_is_help=True, help="The data sets: what there is, and where.")
app.add_typer(data_app, name="data")


@app.command("list")
def list_command(
    package: Annotated[str | None, typer.Option(help="Only this one, such as cv-graph.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """List the installed packages' methods with their verdicts."""
    from cv_core.cli.show import list_methods

    list_methods(package, as_json=json)


@app.command("info")
def info_command(slug: Annotated[str, typer.Argument(help="As in `cvlab list`.")]) -> None:
    """Show a method: paper, import lines, arms, claims, settings."""
    from cv_core.cli.show import show_method

    show_method(slug)


@app.command("run")
def run_command(
    slugs: Annotated[list[str], typer.Argument(help="Methods, as in `cvlab list`.")],
    data: Annotated[
        str | None,
        typer.Option(help="A data set (`cvlab data list`), or folder:, npz:, coco:, voc: + path."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired seeds.")] = None,
    budget: Annotated[
        str, typer.Option(help="smoke (seconds), default (minutes) or full (a GPU).")
    ] = "default",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(help="Trials at once; one for each core by default.")
    ] = None,
    backend: Annotated[str, typer.Option(help="loky, dask or ray.")] = "loky",
    devices: Annotated[int, typer.Option(help="Devices (processes) for each trial.")] = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp or fsdp; with --devices.")] = "auto",
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; repeatable.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE over the settings; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run's own folder.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore finished trials.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Train every arm over paired seeds and judge the paper's claims.

    For example `cvlab run icce`, or `cvlab run icce --data mnist --seeds 10`. Finished trials are
    kept as they come: after an interruption the same command goes on.
    """
    from cv_core.cli.run import run_slugs
    from cv_core.experiment.plan import Wishes

    wishes = Wishes(
        budget=budget,
        data=data,
        seeds=seeds,
        device=device,
        jobs=jobs,
        backend=backend,
        devices=devices,
        strategy=strategy,
        out=out,
        arms=tuple(arm or ()),
        overrides=tuple(setting or ()),
        fresh=fresh,
    )
    raise typer.Exit(run_slugs(slugs, wishes))


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
) -> None:
    """Draw a run's pages again from its results.json."""
    from cv_core.cli.run import report_folder

    report_folder(folder)


@app.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(help="A run's folder or results.json.")],
    run_b: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Compare two runs of one experiment: what changed, and by how much."""
    from cv_core.cli.run import compare_folders

    compare_folders(run_a, run_b)


@data_app.command("list")
def data_list_command(
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """List the data sets: kind, size, licence, and whether they are on this machine."""
    from cv_core.cli.show import list_data

    list_data(as_json=json)


@data_app.command("get")
def data_get_command(name: Annotated[str, typer.Argument(help="As in `cvlab data list`.")]) -> None:
    """Download a data set from its origin and check it."""
    from cv_core.cli.show import get_data

    get_data(name)


@data_app.command("path")
def data_path_command() -> None:
    """Print the folder in which data sets are looked for."""
    from cv_core.data.root import data_root

    typer.echo(str(data_root()))


def run_app(arguments: list[str]) -> int:
    """Run the command line; bad use ends in one line on the error stream and exit code 2.

    Args:
        arguments: As typed, without the program's name.

    Returns:
        The exit code.
    """
    try:
        code = app(args=arguments, prog_name="cvlab", standalone_mode=False)
    except TyperException as error:
        message = getattr(error, "format_message", lambda: str(error))()
        return _complain(str(message) or "see cvlab --help", code=2)
    except BadUse as error:
        return _complain(str(error), code=2)
    except OSError as error:
        return _complain(_describe(error), code=1)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    if code == STOPPED:  # what typer itself makes of Ctrl-C, depending on its version
        return _complain("stopped; the same command goes on from here", code=STOPPED)
    return int(code or 0)


def _describe(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"cvlab: {' '.join(message.split())}\n")
    return code
