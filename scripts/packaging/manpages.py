"""Manual pages in mdoc(7), made from the click commands and from the fields of the configuration.

`pages` returns pyvtep(8), one page for each command below it, and pyvtep.toml(5). Their texts are
those of `--help`; what `--help` does not say (signals, files, exit codes) is in the constants here.
"""

import datetime
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import click

from vtep import Config, __version__
from vtep.cli.main import cli
from vtep.config import Settings
from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import Neighbor

_TOP = r"""
.Sh SIGNALS
.Bl -tag -width Ds
.It Dv SIGHUP
Read the file of
.Fl \-config
again, and apply all of its changes or none.
.It Dv SIGUSR1
Print the counters and the learned MAC addresses.
.It Dv SIGINT , SIGTERM
End, and remove the TAP devices that are not kept by
.Fl \-persist .
.El
.Sh ENVIRONMENT
.Bl -tag -width Ds
.It Ev PYVTEP_CACHE_DIR
Directory for the compiled code of the fast path.
.It Ev DOCKER_HOST
Address of the Docker engine for
.Xr pyvtep-docker 8 .
.El
.Sh FILES
.Bl -tag -width Ds
.It Pa /etc/pyvtep/
Configuration of the service: see
.Xr pyvtep-service 8
and
.Xr pyvtep.toml 5 .
.It Pa /run/pyvtep/
Control sockets of the running processes.
.It Pa /dev/net/tun
Device through which TAP devices are made.
.El
.Sh EXIT STATUS
.Bl -tag -width Ds
.It 0
Success.
.It 1
The operation failed on this machine.
.It 2
The command line or the configuration is invalid.
.It 130
Interrupted by Ctrl-C before the VTEP was up.
.El
.Sh EXAMPLES
Join two hosts, 192.0.2.1 and 192.0.2.2, to one Ethernet segment:
.Bd -literal -offset indent
host1# pyvtep \-\-vni 1 \-\-remote 192.0.2.2 \-\-tap vx0 \-\-address 10.0.0.1/24
host2# pyvtep \-\-vni 1 \-\-remote 192.0.2.1 \-\-tap vx0 \-\-address 10.0.0.2/24
host2# ping 10.0.0.1
.Ed
.Pp
Add a bridge to the segment:
.Bd -literal -offset indent
# pyvtep \-\-vni 1 \-\-remote 192.0.2.2 \-\-bridge br0
.Ed
"""

_STANDARDS = r"""
.Sh STANDARDS
.Rs
.%R RFC 7348
.%T Virtual eXtensible Local Area Network (VXLAN)
.Re
"""

_TOML = r"""
.Sh NAME
.Nm pyvtep.toml
.Nd configuration file of pyvtep
.Sh DESCRIPTION
The file has the options of several VNIs in the TOML format.
.Xr pyvtep 8
reads it if its name, or that of its directory, is given with
.Fl \-config ,
and again on
.Dv SIGHUP .
.Ql pyvtep check\-config
reports all of its mistakes, with their lines.
.Pp
The keys are the options of
.Xr pyvtep 8
without the leading dashes.
Keys before the first
.Li [[vni]]
are options of the process, or values for all VNIs.
Each
.Li [[vni]]
is a table with the options of one VNI.
They take precedence over the values for all VNIs.
"""

_TOML_EXAMPLE = r"""
.Sh EXAMPLES
.Bd -literal -offset indent
# for all VNIs
remote = ["192.0.2.2", "192.0.2.3"]
dstport = 4789

[[vni]]
id = 100
bridge = "br\-blue"

[[vni]]
id = 200
bridge = "br\-red"
remote = "192.0.2.2"    # for this one only
.Ed
.Sh SEE ALSO
.Xr pyvtep 8 ,
.Xr pyvtep-check-config 8
"""


def pages(date: datetime.date) -> dict[str, str]:
    """Return the text of each page by its file name, such as "pyvtep-fdb.8"."""
    root = click.Context(cli, info_name="pyvtep", **cli.context_settings)
    commands = {name: command for name, command in cli.commands.items() if not command.hidden}
    names = [f"pyvtep-{name}" for name in sorted(commands)]
    made = {
        "pyvtep.8": _page(root, date, names),
        "pyvtep.toml.5": _toml_page(date),
    }
    for name, command in commands.items():
        context = click.Context(command, parent=root, info_name=name)
        made[f"pyvtep-{name}.8"] = _page(context, date, names)
    return made


def _page(context: click.Context, date: datetime.date, names: list[str]) -> str:
    """Return the page of a command: that of pyvtep itself, or of a command below it."""
    command, name = context.command, context.command_path.replace(" ", "-")
    top = context.parent is None
    summary, *description = _paragraphs(command.help or "")
    verbs = [] if top else list(_verbs(context))
    lines = [
        *_head(name, "8", date),
        ".Sh NAME",
        f".Nm {_escape(name)}",
        f".Nd {_escape(_name_line(summary))}",
        ".Sh SYNOPSIS",
        *[line for verb in verbs or [context] for line in _synopsis(verb)],
        ".Sh DESCRIPTION",
        *_text([summary, *description]),
    ]
    if verbs:
        lines.append(".Sh COMMANDS")
        for verb in verbs:
            lines += [f".Ss {_escape(verb.command_path)}", *_text(_paragraphs(verb.command.help))]
            lines += _options(verb)
    else:
        lines += [".Sh OPTIONS", *_options(context)]
    if top:
        lines += [".Sh COMMANDS", *_command_list(context), *_TOP.strip().splitlines()]
    # The order of mdoc(7): by section, then by name.
    others = ["bridge", "ip-link", *(names if top else ["pyvtep"])]
    lines += [".Sh SEE ALSO", ".Xr pyvtep.toml 5 ,", *(f".Xr {other} 8 ," for other in others)]
    lines[-1] = lines[-1].removesuffix(" ,")
    if top:
        lines += _STANDARDS.strip().splitlines()
    return "\n".join(lines) + "\n"


def _toml_page(date: datetime.date) -> str:
    others = ("segments", "evpn")
    process = [field for field in attrs.fields(Settings) if field.name not in others]
    lines = [
        *_head("pyvtep.toml", "5", date),
        *_TOML.strip().splitlines(),
        ".Sh KEYS OF THE PROCESS",
        *_keys(process),
        ".Sh KEYS OF A VNI",
        "All of these but",
        ".Li id , tap , mac , address , evpn , rd",
        "and those that begin with",
        ".Li route-target",
        "may also stand before the first",
        ".Li [[vni]] .",
        *_keys(attrs.fields(Config)),
        ".Sh KEYS OF EVPN",
        "These are in a table",
        ".Li [evpn] :",
        "the BGP sessions, for each VNI that has",
        ".Li evpn No = Li true .",
        *_keys(attrs.fields(EvpnSettings)),
        ".Pp",
        "A neighbor may be a table instead, such as",
        ".Li [[evpn.neighbor]] ,",
        "with these keys:",
        *_keys(attrs.fields(Neighbor)),
        *_TOML_EXAMPLE.strip().splitlines(),
    ]
    return "\n".join(lines) + "\n"


def _head(name: str, section: str, date: datetime.date) -> list[str]:
    return [
        '.\\" Generated by scripts/packaging/manpages.py.',
        f".Dd {date:%B} {date.day}, {date.year}",  # English, since no locale is set here.
        f".Dt {_escape(name.upper())} {section}",
        f".Os pyvtep {__version__}",
    ]


def _verbs(context: click.Context) -> Iterator[click.Context]:
    """Yield the contexts of the commands below a command."""
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                yield click.Context(command, parent=context, info_name=name)


def _command_list(context: click.Context) -> list[str]:
    lines = [".Bl -tag -width Ds"]
    for verb in _verbs(context):
        summary = _paragraphs(verb.command.help)[0]
        lines += [f".It Xr {verb.command_path.replace(' ', '-')} 8", *_text([summary])]
    return [*lines, ".El"]


def _synopsis(context: click.Context) -> Iterator[str]:
    path = context.command_path
    yield f".Nm {_escape(path)}"
    pieces = context.command.collect_usage_pieces(context)
    usage = " ".join(_usage(piece) for piece in pieces).replace("[OPTIONS]", r"[\fIoptions\fR]")
    yield from _wrapped(usage)


def _usage(piece: str) -> str:
    """Return a piece of a usage line: words to be replaced in italics, literal ones in bold."""
    if piece == "[OPTIONS]":
        return piece

    def font(match: re.Match[str]) -> str:
        word = match[0]
        return rf"\fI{word}\fR" if word.isupper() else rf"\fB{word}\fR"

    return _escape(re.sub(r"\w[\w/-]*", font, piece), keep=True)


def _options(context: click.Context) -> list[str]:
    """Return the list of the options of a command, as `--help` has them.

    Only pages say that there is --help, not each of their sections.
    """
    below = context.parent is not None and context.parent.parent is not None
    lines = [".Bl -tag -width Ds"]
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if not isinstance(parameter, click.Option) or record is None:
            continue
        if below and "--help" in parameter.opts:
            continue
        flags = (*parameter.opts, *parameter.secondary_opts)
        heads = [f"Fl {_escape(flag.removeprefix('-'))}" for flag in flags]
        metavar = "" if parameter.is_flag else f" Ar {_escape(parameter.metavar or '')}"
        lines.append(f".It {' , '.join(heads)}{metavar}")
        lines += _text([record[1]])
    return [*lines, ".El"] if lines[1:] else []


def _keys(fields: "Iterable[attrs.Attribute[Any]]") -> list[str]:
    lines = [".Bl -tag -width Ds"]
    for field in fields:
        key = "id" if field.name == "vni" else field.name.replace("_", "-")
        if field.type is bool:
            value = r"\fBtrue\fR|\fBfalse\fR"
            default = f"[default: {'true' if field.default else 'false'}]"
            if not isinstance(field.default, bool):  # The help says what it depends on.
                default = ""
        else:
            value = _escape(_quoted(field), keep=True)
            shown = (
                isinstance(field.default, int | float | str)
                and "[default" not in field.metadata["help"]
            )
            number = isinstance(field.default, float)
            default = f"[default: {field.default:{'g' if number else ''}}]" if shown else ""
        # The keys that a text refers to have no dashes in the file.
        help_text = re.sub(r"(?<![\w-])--(?=[a-z])", "", field.metadata["help"])
        help_text = help_text.replace("; may be repeated", "")  # Here it is a list.
        lines += [
            rf".It Li {_escape(key)} No = {value}",
            *_text([f"{help_text} {default}".strip()]),
        ]
    return [*lines, ".El"]


def _quoted(field: "attrs.Attribute[Any]") -> str:
    """Return the placeholder for the value of a key, as TOML spells it."""
    metavar = str(field.metadata["metavar"])
    if field.name == "srcport":
        return r"[\fIMIN\fR, \fIMAX\fR]"
    numeric = field.type in (int, float, int | None) and metavar.isupper()
    if numeric or metavar in ("ID", "OCTETS"):
        value = rf"\fI{metavar}\fR"
    else:
        value = rf"\(dq\fI{metavar}\fR\(dq"
    return f"[{value}, ...]" if field.metadata.get("repeatable") else value


def _paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a help text. Those that are examples keep their line breaks."""
    cleaned = re.sub(r"^\s*\x08\n", "", (text or "").strip("\n"), flags=re.MULTILINE)
    lines = cleaned.splitlines()
    # The first line of a docstring has no indentation, whatever the others have.
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    body = "\n".join([lines[0].strip(), *(line[margin:] for line in lines[1:])])
    return [part.strip("\n") for part in re.split(r"\n\s*\n", body) if part.strip()]


def _text(paragraphs: Iterable[str]) -> list[str]:
    """Return paragraphs as mdoc, with each sentence on a line of its own, as mdoc wants it."""
    lines: list[str] = []
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith("    "):
            lines += [".Bd -literal -offset indent"]
            lines += [_line(row[4:]) for row in paragraph.splitlines()]
            lines += [".Ed"]
            continue
        if number:
            lines.append(".Pp")
        words = " ".join(paragraph.split())
        for sentence in re.split(r"(?<=[.?!]) (?=[A-Z`-])", words):
            lines += _wrapped(_line(sentence, markup=True))
    return lines


def _wrapped(line: str) -> list[str]:
    """Return a line in parts of at most 80 octets, none of which is taken for a macro."""
    parts = textwrap.wrap(line, 78, break_long_words=False, break_on_hyphens=False)
    return [part if not part.startswith((".", "'")) else rf"\&{part}" for part in parts]


def _line(text: str, *, markup: bool = False) -> str:
    """Return a line of text, in which nothing is taken for a macro."""
    escaped = _escape(text)
    if markup:
        escaped = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escaped)
        escaped = re.sub(r"(?<![\w\\-])(\\-\\-[a-z0-9\\-]*[a-z0-9])", r"\\fB\1\\fR", escaped)
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escape(text: str, *, keep: bool = False) -> str:
    r"""Return text with the characters escaped that roff would change.

    A "-" is a hyphen in roff, which nobody can paste into a shell: "\-" is the ASCII one. `keep`
    leaves escapes that the text has.
    """
    if not keep:
        text = text.replace("\\", r"\e")
    return text.replace("-", r"\-")


def _name_line(summary: str) -> str:
    """Return a summary as the NAME section wants it: no capital, no full stop, no markup."""
    return summary[0].lower() + summary[1:].removesuffix(".").replace("`", "")
