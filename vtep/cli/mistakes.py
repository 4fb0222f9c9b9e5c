"""Explanations of mistakes on the command line: one line each, with what to type instead.

`explain` turns the errors of click into such lines. Suggestions come from tables of synonyms, from
the grammar of `ip link` and `bridge`, and from the nearest known name.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import click

from vtep.config.option_parsers import OFFLOADS
from vtep.errors import shortened, shown

_ARGUMENTS = "pyvtep.arguments"
"""Key of a context's metadata for the arguments of its command."""

_OPTION_SYNONYMS = {
    "id": "vni",
    "vnid": "vni",
    "vxlan-id": "vni",
    "peer": "remote",
    "dst": "remote",
    "to": "remote",
    "source": "local",
    "src": "local",
    "device": "dev",
    "interface": "dev",
    "iface": "dev",
    "port": "dstport",
    "dst-port": "dstport",
    "src-port": "srcport",
    "name": "tap",
    "master": "bridge",
    "ip": "address",
    "addr": "address",
    "aging": "ageing",
    "maxaddress": "max-addresses",
    "arp-proxy": "proxy",
    "verbose": "debug",
    "d": "debug",
    "j": "json",
    "v": "version",
    "ts": "timestamp",
    "tshort": "timestamp",
    "file": "config",
    "socket-path": "socket",
}
"""Option names of other programs, and near misses, with the name of the option here."""

_VERB_SYNONYMS = {
    "delete": "del",
    "remove": "del",
    "rm": "del",
    "create": "add",
    "new": "add",
    "insert": "add",
    "change": "replace",
    "update": "replace",
    "dump": "show",
    "clear": "flush",
    "neighbor": "neigh",
    "neighbour": "neigh",
    "arp": "neigh",
    "peer": "remote",
    "peers": "remote",
    "remotes": "remote",
    "vnis": "vni",
    "status": "stats",
    "counters": "stats",
    "statistics": "stats",
    "watch": "monitor",
    "check": "check-config",
    "checkconfig": "check-config",
    "diagnose": "doctor",
    "attach": "docker attach",
    "detach": "docker detach",
    "bgp": "evpn",
}

_START_VERBS = ("start", "run", "up", "create", "link", "ip", "add")
_STOP_VERBS = ("stop", "down", "quit", "exit", "kill")

_YES = ("yes", "true", "on", "1", "enable", "enabled")
_NO = ("no", "false", "off", "0", "disable", "disabled")

_EXAMPLE = "pyvtep --vni 1 --remote 192.0.2.2 --tap vx0"


@contextmanager
def keep_arguments(context: click.Context, words: Sequence[str]) -> Iterator[None]:
    """Keep the arguments of a command in its context, and the context in its errors."""
    context.meta[_ARGUMENTS] = tuple(words)
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or context
        raise


def check_value(option: click.Option, value: str | tuple[str, ...], context: click.Context) -> None:
    """Raise UsageError if the value of an option is the next option: its own is missing."""
    # click takes whatever follows an option for its value: `--vni --remote IP` would complain about
    # a VNI of "--remote", and then about a command called IP.
    names = {name for each in _options(context) for name in (*each.opts, *each.secondary_opts)}
    for item in (value,) if isinstance(value, str) else value:
        if item.startswith("--") and item.partition("=")[0] in names:
            raise click.UsageError(
                f"{option.opts[0]} has no value before {item}, as in: "
                f"{option.opts[0]} {option.metavar}",
                context,
            )


def describe_repeated(option: click.Option, values: Sequence[Any]) -> str:
    """Return the message for an option that is given twice but has one value."""
    name = option.opts[0]
    if option.is_flag:
        if len(set(map(bool, values))) == 1:
            return f"{name} is given twice; leave one out"
        both = f"{name} and {option.secondary_opts[0]}"
        return f"{both} contradict each other; leave one out"
    given = [shown(value) if isinstance(value, str | tuple) else "nothing" for value in values]
    hint = "leave one out"
    if name == "--vni":
        hint = (
            "a command has one VNI; put several into a file (--config) or add them: pyvtep vni add"
        )
    return f"{name} is given twice ({' and '.join(given)}); {hint}"


def check_word(word: str, known: Sequence[str], context: click.Context) -> None:
    """Raise UsageError for a word that is an option without dashes, or the value of a flag."""
    names = _names(_options(context))
    if word in known or word in ("vni", "json", "socket"):
        return
    arguments = context.meta.get(_ARGUMENTS, ())
    before = arguments[arguments.index(word) - 1] if word in arguments[1:] else ""
    if word.lower() in (*_YES, *_NO, "auto") and (flag := _flag(context, before)) is not None:
        raise click.UsageError(f"{before} takes no value: write {_spell_flag(flag, word)}", context)
    plain = word.replace("_", "-")
    for name in (plain, f"no-{plain[2:]}" if plain.startswith("no") else plain):
        if name in names:
            raise click.UsageError(
                f"{word}: is not expected here; options begin with two dashes: --{name}", context
            )


# --- commands ---------------------------------------------------------------------------------


def describe_unknown_command(
    group: click.Group, context: click.Context, words: Sequence[str]
) -> str:
    """Return the message for a word that is not a command, with what was probably meant.

    `words` are this word and the arguments that follow it.
    """
    hint = _group_hint(group, context, words) if context.parent else _root_hint(context, words)
    return (
        f"No such command {shortened(words[0])!r}{hint or _nearest_command(group, context, words)}"
    )


def _nearest_command(group: click.Group, context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for a misspelled command, or a list of all commands."""
    word = words[0].lower()
    known = group.list_commands(context)
    close = [_VERB_SYNONYMS[word]] if word in _VERB_SYNONYMS else _nearest(word, known)
    close = [each for each in close if group.get_command(context, each.split()[0])]
    if close:
        return f"; did you mean: {' '.join((context.command_path, close[0], *words[1:]))}"
    return f"; commands of {context.command_path}: {', '.join(known)}"


def _root_hint(context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for a word in place of a command of `pyvtep`; "" if there is none.

    click takes the first argument that is not an option, nor the value of one, for a command.
    """
    word = words[0]
    before = _before(context, words)
    if (flag := _flag(context, before)) is not None and word.lower() in (*_YES, *_NO):
        return f"; {flag.opts[0]} takes no value: write {_spell_flag(flag, word)}"
    if (
        word.startswith("255.")
        and _parses(ip_network, f"0.0.0.0/{word}")
        and _parses(ip_address, before)
    ):
        prefix = ip_network(f"0.0.0.0/{word}").prefixlen
        return f"; write the mask as a prefix length: --address {before}/{prefix}"
    if _parses(ip_address, word):
        return f"; each remote has its own option: --remote {word}"
    if word in OFFLOADS and before.split(",")[0] in OFFLOADS:
        return f"; write a list without blanks: --offload {before},{word}"
    if "/" in word and _parses(ip_interface, word):
        return f"; each address has its own option: --address {word}"
    if re.fullmatch(r"[0-9]+", word):
        if before.endswith("port"):
            return f"; write {before} {word} as one option with its value"
        return f"; to name a VNI: --vni {word}"
    if (line := _translate_ip_link(context, words)) is not None:
        return f"; options begin with two dashes: {line}"
    if word in _START_VERBS:
        return f"; a VTEP is started with options, such as: {_EXAMPLE}"
    if word in _STOP_VERBS:
        return "; end a pyvtep with Ctrl-C or kill, and one of its VNIs with: pyvtep vni del N"
    if word in ("show", "list", "ls", "add", "del", "delete", "flush", "replace", "get", "append"):
        verb = {"list": "show", "ls": "show", "delete": "del"}.get(word, word)
        names = [
            name for name, group in _command_groups(context) if group.get_command(context, verb)
        ]
        lines = [" ".join(("pyvtep", name, verb, *words[1:])) for name in names]
        return f"; add the table: {' or '.join(lines)}"
    return ""


def _command_groups(context: click.Context) -> Iterator[tuple[str, click.Group]]:
    """Yield the names and commands of `pyvtep` that have subcommands."""
    root = context.find_root().command
    if isinstance(root, click.Group):
        for name, command in root.commands.items():
            if isinstance(command, click.Group):
                yield name, command


def _group_hint(group: click.Group, context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for a word in place of a verb of `pyvtep vni`, `fdb`, `remote` or `neigh`."""
    word, rest = words[0], " ".join(words[1:])
    path = context.command_path
    if group.name == "vni" and re.fullmatch(r"[0-9]+", word):
        options = _translate_ip_link(context, words[1:]) if rest else ""
        options = (options or rest).removeprefix("pyvtep ")
        start = f"pyvtep --vni {word} {options}".strip()
        add = f"pyvtep vni add {word} {options}".strip()
        return f"; to start a VTEP: {start}; to add a VNI to one that runs: {add}"
    if group.name == "remote" and _parses(ip_address, word):
        return f"; did you mean: {path} add {' '.join(words)}"
    if group.name == "fdb" and re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", word):
        verb = "add" if rest else "get"
        return f"; did you mean: {path} {verb} {' '.join(words)}"
    if group.name == "neigh" and _parses(ip_address, word):
        verb = "add" if rest else "show"
        return f"; did you mean: {path} {verb}{' ' + ' '.join(words) if rest else ''}"
    show = group.get_command(context, "show")
    if show is not None and word in _completions(show, context):
        return f"; did you mean: {path} show {' '.join(words)}"
    return ""


def _completions(command: click.Command, context: click.Context) -> list[str]:
    """Return the words of a command's grammar."""
    return [
        str(item.value if hasattr(item, "value") else item)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
        for item in parameter.shell_complete(context, "")
    ]


def _before(context: click.Context, words: Sequence[str]) -> str:
    """Return the argument before the last `words`; "" if there is none."""
    arguments = context.meta.get(_ARGUMENTS, ())
    at = len(arguments) - len(words) - 1
    return arguments[at] if 0 <= at < len(arguments) else ""


def _flag(context: click.Context, name: str) -> click.Option | None:
    """Return the flag of this name, with its dashes, of the context's command."""
    for option in _options(context):
        if option.is_flag and name in (*option.opts, *option.secondary_opts):
            return option
    return None


def _spell_flag(flag: click.Option, word: str) -> str:
    """Return the spelling of a flag that means "on" or "off", as `word` does."""
    on = word.lower() in _YES
    if word.lower() == "auto" and flag.secondary_opts:
        return f"{flag.opts[0]} or {flag.secondary_opts[0]}"
    if on or not flag.secondary_opts:
        return flag.opts[0] if on else f"nothing instead of {flag.opts[0]}"
    return flag.secondary_opts[0]


def options_of(context: click.Context, name: str) -> list[click.Option]:
    """Return the options of a command or, if it is a group, of its default verb `show`."""
    command = getattr(context.command, "commands", {}).get(name)
    command = getattr(command, "commands", {}).get("show", command)
    return [each for each in getattr(command, "params", ()) if isinstance(each, click.Option)]


def _options(context: click.Context) -> list[click.Option]:
    return [each for each in context.command.params if isinstance(each, click.Option)]


def _translate_ip_link(context: click.Context, words: Sequence[str]) -> str | None:
    """Return the pyvtep command for words of `ip link add type vxlan`; None for other words."""
    root = context.find_root()
    options = {name: each for each in _options(root) for name in (*each.opts, *each.secondary_opts)}
    line = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("type", "link", "ip", "add", "vxlan"):
            if word in ("link", "ip", "add", "vxlan") and len(rest) == 0:
                return None
            continue
        # Options that are spelled right, and words that can't be names, are kept as they are.
        if word.startswith("--") or not re.fullmatch(r"[a-z0-9_-]+", word):
            line.append(word)
            if word.startswith("--") and rest and not rest[0].startswith("--"):
                line.append(rest.pop(0))
            continue
        plain = word.replace("_", "-")
        name = f"--{_OPTION_SYNONYMS.get(plain, plain)}"
        # iproute2 has "nolearning" where an option here is --no-learning.
        if plain.startswith("no") and f"--no-{plain[2:]}" in options:
            line.append(f"--no-{plain[2:]}")
        elif (option := options.get(name)) is None:
            return None  # No line is better than one that means something else.
        else:
            line.append(name)
            count = 0 if option.is_flag else option.nargs
            line += [rest.pop(0) for _ in range(min(count, len(rest)))]
    if not any(item.startswith("--") for item in line):
        return None
    return " ".join(("pyvtep", *line))


# --- options ----------------------------------------------------------------------------------


def explain(error: click.ClickException) -> str:
    """Return the message of an error of click in one line, with what to type instead."""
    message = " ".join(error.format_message().split()).removesuffix(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    words = context.meta.get(_ARGUMENTS, ())
    if isinstance(error, click.NoSuchOption):
        return _describe_unknown_option(error.option_name, context, words)
    if isinstance(error, click.BadOptionUsage):
        return message + _option_usage(error.option_name, context, words)
    if isinstance(error, click.MissingParameter):
        return message if "Choose from" in message else f"{message}; {_usage(context)}"
    if isinstance(error, click.BadParameter) and isinstance(error.param, click.Argument):
        # The argument's name in the message of click is the list of its choices.
        return f"{error.message.removesuffix('.')}; {_usage(context)}"
    if message.startswith("Got unexpected extra argument"):
        return message + _extra_words_hint(context, words)
    return message


def _usage(context: click.Context) -> str:
    return (
        f"usage: {context.command_path} {' '.join(context.command.collect_usage_pieces(context))}"
    )


def _describe_unknown_option(name: str, context: click.Context, words: Sequence[str]) -> str:
    """Return the message for an unknown option, with what was probably meant."""
    typed = name if name.startswith("--") else _single_dash(name, words)
    message = f"No such option {shortened(typed)!r}"
    plain = typed.lstrip("-").partition("=")[0].replace("_", "-").lower()
    known = _names(_options(context))
    if plain.startswith("no-") and f"{plain}" not in known and plain[3:] in known:
        return f"{message}; to reset it: --{plain[3:]} none"
    wanted = _nearest_option(plain, known)
    if wanted is not None and not typed.startswith("--") and wanted == plain:
        return f"{message}; it has two dashes: --{wanted}"
    if wanted is not None:
        return f"{message}; did you mean --{wanted}?"
    return message + _other_command_hint(plain, context)


def _single_dash(name: str, words: Sequence[str]) -> str:
    """Return the argument that contains the letter that click took for a short option."""
    letter = name.lstrip("-")[:1]
    for word in words:
        if word.startswith("-") and not word.startswith("--") and letter in word:
            return word
    return name


def _nearest_option(plain: str, known: Sequence[str]) -> str | None:
    """Return the known option that was probably meant, without dashes; None if there is none."""
    candidates = [plain, _OPTION_SYNONYMS.get(plain, plain)]
    if plain.startswith("no"):
        candidates += [f"no-{plain[2:].lstrip('-')}"]
    for candidate in candidates:
        if candidate in known:
            return candidate
    close = _nearest(plain, known) if len(plain) > 1 else []
    return close[0] if close else None


def _names(options: Iterable[click.Option]) -> list[str]:
    return [
        name.lstrip("-")
        for option in options
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    ]


def _other_command_hint(plain: str, context: click.Context) -> str:
    """Return the hint for an option that this command does not have, but another one may."""
    path = context.command_path
    root = context.find_root()
    if any(plain in word.replace("[", " ").split() for word in _usage_pieces(context)):
        return f"; it is a word here, without dashes; {_usage(context)}"
    plain = _OPTION_SYNONYMS.get(plain, plain)
    if context.command is root.command:
        commands = _commands_with(root, plain)
        words = context.meta.get(_ARGUMENTS, ())
        named = [name for name in commands if name.split()[0] in words]
        if commands:
            return f"; write it behind the command: pyvtep {(named or commands)[0]} --{plain}"
        return "; see: pyvtep --help"
    if path.endswith("docker attach") and plain in ("bridge", "anycast-gateway"):
        return f"; the network says which {plain} it is"
    if path.endswith("check-config"):
        return "; the file needs no option: pyvtep check-config FILE"
    if plain in ("vni", "id") and path.endswith("vni add"):
        return "; the VNI needs no option: pyvtep vni add N"
    if plain in ("tap", "dev") and "dev" in " ".join(_usage_pieces(context)):
        return "; a segment is named by --vni N, or dev and the TAP's name"
    wanted = _nearest_option(plain, _names(_options(root)))
    if wanted in ("debug", "config"):
        return f"; write it before the command: pyvtep --{wanted}"
    if wanted not in (None, "vni") and isinstance(root.command, click.Group):
        if "set" not in _commands_with(root, wanted):
            return f"; --{wanted} applies to the whole process; give it when pyvtep starts"
        return f"; to change it in a running VTEP: pyvtep set --{wanted}"
    return f"; {_usage(context)}"


def _usage_pieces(context: click.Context) -> list[str]:
    return context.command.collect_usage_pieces(context)


def _commands_with(root: click.Context, plain: str) -> list[str]:
    """Return the commands that have an option of this name."""
    found = []
    for name, command in getattr(root.command, "commands", {}).items():
        verbs = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        for verb, each in verbs:
            if plain in _names(one for one in each.params if isinstance(one, click.Option)):
                found.append(f"{name} {verb}".strip())
    return found


def _option_usage(name: str, context: click.Context, words: Sequence[str]) -> str:
    """Return the end of a message that shows how an option is used."""
    for option in _options(context):
        if name in (*option.opts, *option.secondary_opts):
            if option.is_flag:
                value = next(
                    (word.partition("=")[2] for word in words if word.startswith(f"{name}=")), ""
                )
                if value.lower() in (*_YES, *_NO):
                    return f": write {_spell_flag(option, value)}"
                return f": write {' or '.join((*option.opts, *option.secondary_opts))}"
            return f", as in: {name} {option.metavar}"
    return ""


def _extra_words_hint(context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for arguments that a command does not take."""
    last = words[-1].lower() if words else ""
    before = words[-2] if len(words) > 1 else ""
    if (flag := _flag(context, before)) is not None and last in (*_YES, *_NO):
        return f"; {flag.opts[0]} takes no value: write {_spell_flag(flag, last)}"
    names = _names(_options(context))
    for word in words:
        wanted = _OPTION_SYNONYMS.get(word, word)
        if wanted in names:
            return f"; options begin with two dashes: --{wanted}"
    if "remote" in names and _parses(ip_address, last):
        return f"; each remote has its own option: --remote {last}"
    return f"; {_usage(context)}"


def _parses(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _nearest(word: str, known: Iterable[str]) -> list[str]:
    import difflib  # noqa: PLC0415  needed for mistakes only

    return difflib.get_close_matches(word, list(known), 3)
