"""`pyvtep doctor`: diagnose the host and the paths to remotes, and print the findings."""

import sys

import click

from vtep.cli import commands
from vtep.config import address_parsers, option_parsers


@click.command(cls=commands.CliCommand)
@click.option(
    "--remote",
    "remotes",
    metavar="IP|NAME",
    cls=commands.RepeatableOption,
    multiple=True,
    help="Examine the path to this VTEP, even if no pyvtep runs here; may be repeated.",
)
@commands.option("--vni", metavar="N", help="VNI of the segment, if there are several.")
@commands.option("--dstport", metavar="PORT", help="UDP port of the remotes. [default: 4789]")
@commands.option(
    "--socket", metavar="PATH", help="Control socket of the pyvtep to ask. [default: all]"
)
@commands.json_option
def doctor(
    remotes: tuple[str, ...],
    vni: str | None,
    dstport: str | None,
    socket: str | None,
    *,
    as_json: bool,
) -> None:
    """Diagnose the paths between this host and other VTEPs, and say how to fix problems.

    Without --remote, examine all remotes of the pyvteps that run here. The exit code is 0 if no
    problem is found, and 1 otherwise.
    """
    # Other commands do without these, and so does the help.
    from vtep.cli import doctor_report  # noqa: PLC0415
    from vtep.doctor.examine import examine  # noqa: PLC0415
    from vtep.doctor.finding import has_faults  # noqa: PLC0415
    from vtep.doctor.findings import findings  # noqa: PLC0415

    facts = examine(
        address_parsers.remotes(remotes),
        option_parsers.vni(vni) if vni is not None else None,
        option_parsers.dstport(dstport) if dstport is not None else None,
        socket,
    )
    found = findings(facts)
    if as_json:
        click.echo(doctor_report.format_json(facts, found))
    else:
        doctor_report.show(facts, found)
    if has_faults(found):
        sys.exit(1)
