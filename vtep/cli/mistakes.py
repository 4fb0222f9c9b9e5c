"""What was probably meant by a command line that makes no sense: one line for each mistake."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import click

from vtep.config.option_parsers import OFFLOADS
from vtep.errors import shortened, shown

_WORDS = "pyvtep.words"
"""Where a context keeps the words that its command was given."""

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
"""Options of other programs, and near misses, with the option of the same meaning here."""

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
}

_START = ("start", "run", "up", "create", "link", "ip", "add")
_STOP = ("stop", "down", "quit", "exit", "kill")

_YES = ("yes", "true", "on", "1", "enable", "enabled")
_NO = ("no", "false", "off", "0", "disable", "disabled")

_EXAMPLE = "pyvtep --vni 1 --remote 192.0.2.2 --tap vx0"


@contextmanager
def of(context: click.Context, words: Sequence[str]) -> Iterator[None]:
    """Keep the words of a command, and its context, for what may have to be said of them."""
    context.meta[_WORDS] = tuple(words)
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or context
        raise


def check_value(option: click.Option, value: str | tuple[str, ...], context: click.Context) -> None:
    """Raise UsageError where an option was taken for the value of the one before it."""
    names = {name for each in _options(context) for name in (*each.opts, *each.secondary_opts)}
    for item in (value,) if isinstance(value, str) else value:
        if item.startswith("--") and item.partition("=")[0] in names:
            raise click.UsageError(
                f"{option.opts[0]} has no value before {item}, as in: "
                f"{option.opts[0]} {option.metavar}",
                context,
            )


def given_twice(option: click.Option, values: Sequence[Any]) -> str:
    """Return what is wrong with a second value of an option that has one."""
    name = option.opts[0]
    if option.is_flag:
        if len(set(map(bool, values))) == 1:
            return f"{name} is given twice; leave one out"
        both = f"{name} and {option.secondary_opts[0]}"
        return f"{both} contradict each other; leave one out"
    told = [shown(value) if isinstance(value, str | tuple) else "nothing" for value in values]
    hint = "leave one out"
    if name == "--vni":
        hint = (
            "a command is about one VNI; several are in a file (--config) or added: pyvtep vni add"
        )
    return f"{name} is given twice ({' and '.join(told)}); {hint}"


def check_word(word: str, known: Sequence[str], context: click.Context) -> None:
    """Raise UsageError for a word that is an option without its dashes."""
    names = _names(_options(context))
    if word in known or word in ("vni", "json", "socket"):
        return
    every = context.meta.get(_WORDS, ())
    before = every[every.index(word) - 1] if word in every[1:] else ""
    if word.lower() in (*_YES, *_NO) and (flag := _flag(context, before)) is not None:
        raise click.UsageError(f"{before} takes no value: write {_of(flag, word)}", context)
    plain = word.replace("_", "-")
    for name in (plain, f"no-{plain[2:]}" if plain.startswith("no") else plain):
        if name in names:
            raise click.UsageError(
                f"{word}: is not understood here; options begin with two dashes: --{name}", context
            )


# --- commands ---------------------------------------------------------------------------------


def no_such_command(group: click.Group, context: click.Context, words: Sequence[str]) -> str:
    """Return what is wrong with a word that is no command, and what was probably meant."""
    hint = _below_root(group, context, words) if context.parent else _at_root(context, words)
    return f"No such command {shortened(words[0])!r}{hint or _close_command(group, context, words)}"


def _close_command(group: click.Group, context: click.Context, words: Sequence[str]) -> str:
    word = words[0].lower()
    known = group.list_commands(context)
    close = [_VERB_SYNONYMS[word]] if word in _VERB_SYNONYMS else _close(word, known)
    close = [each for each in close if group.get_command(context, each.split()[0])]
    if close:
        return f"; did you mean: {' '.join((context.command_path, close[0], *words[1:]))}"
    return f"; commands of {context.command_path}: {', '.join(known)}"


def _at_root(context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for a word behind `pyvtep` and its options."""
    word = words[0]
    before = _before(context, words)
    if (flag := _flag(context, before)) is not None and word.lower() in (*_YES, *_NO):
        return f"; {flag.opts[0]} takes no value: write {_of(flag, word)}"
    if word.startswith("255.") and _is(ip_network, f"0.0.0.0/{word}") and _is(ip_address, before):
        prefix = ip_network(f"0.0.0.0/{word}").prefixlen
        return f"; write the mask as a prefix length: --address {before}/{prefix}"
    if _is(ip_address, word):
        return f"; each remote has its own option: --remote {word}"
    if word in OFFLOADS and before.split(",")[0] in OFFLOADS:
        return f"; write a list without blanks: --offload {before},{word}"
    if "/" in word and _is(ip_interface, word):
        return f"; each address has its own option: --address {word}"
    if re.fullmatch(r"[0-9]+", word):
        if before.endswith("port"):
            return f"; write {before} {word} as one option with its value"
        return f"; to name a VNI: --vni {word}"
    if (line := _from_kernel_words(context, words)) is not None:
        return f"; options begin with two dashes: {line}"
    if word in _START:
        return f"; a VTEP is started with options, such as: {_EXAMPLE}"
    if word in _STOP:
        return "; end a pyvtep with Ctrl-C or kill, and one of its VNIs with: pyvtep vni del N"
    if word in ("show", "list", "ls", "add", "del", "delete", "flush", "replace", "get", "append"):
        verb = {"list": "show", "ls": "show", "delete": "del"}.get(word, word)
        tables = [name for name, table in _tables(context) if table.get_command(context, verb)]
        lines = [" ".join(("pyvtep", name, verb, *words[1:])) for name in tables]
        return f"; say of what: {' or '.join(lines)}"
    return ""


def _tables(context: click.Context) -> Iterator[tuple[str, click.Group]]:
    root = context.find_root().command
    if isinstance(root, click.Group):
        for name, command in root.commands.items():
            if isinstance(command, click.Group):
                yield name, command


def _below_root(group: click.Group, context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for a word behind `pyvtep vni`, `fdb`, `remote` or `neigh`."""
    word, rest = words[0], " ".join(words[1:])
    path = context.command_path
    if group.name == "vni" and re.fullmatch(r"[0-9]+", word):
        options = _from_kernel_words(context, words[1:]) if rest else ""
        options = (options or rest).removeprefix("pyvtep ")
        start = f"pyvtep --vni {word} {options}".strip()
        add = f"pyvtep vni add {word} {options}".strip()
        return f"; to start a VTEP: {start}; to add a VNI to one that runs: {add}"
    if group.name == "remote" and _is(ip_address, word):
        return f"; did you mean: {path} add {' '.join(words)}"
    if group.name == "fdb" and re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", word):
        verb = "add" if rest else "get"
        return f"; did you mean: {path} {verb} {' '.join(words)}"
    if group.name == "neigh" and _is(ip_address, word):
        verb = "add" if rest else "show"
        return f"; did you mean: {path} {verb}{' ' + ' '.join(words) if rest else ''}"
    show = group.get_command(context, "show")
    if show is not None and word in _completions(show, context):
        return f"; did you mean: {path} show {' '.join(words)}"
    return ""


def _completions(command: click.Command, context: click.Context) -> list[str]:
    """Return the words that a command's grammar knows."""
    return [
        str(item.value if hasattr(item, "value") else item)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
        for item in parameter.shell_complete(context, "")
    ]


def _before(context: click.Context, words: Sequence[str]) -> str:
    """Return the word before these, or an empty one."""
    every = context.meta.get(_WORDS, ())
    at = len(every) - len(words) - 1
    return every[at] if 0 <= at < len(every) else ""


def _flag(context: click.Context, name: str) -> click.Option | None:
    """Return the option of the context's command that is spelled so, if it is on or off."""
    for option in _options(context):
        if option.is_flag and name in (*option.opts, *option.secondary_opts):
            return option
    return None


def _of(flag: click.Option, word: str) -> str:
    """Return how a flag is spelled to be on or off."""
    on = word.lower() in _YES
    if on or not flag.secondary_opts:
        return flag.opts[0] if on else f"nothing instead of {flag.opts[0]}"
    return flag.secondary_opts[0]


def options_below(context: click.Context, name: str) -> list[click.Option]:
    """Return the options of a command, or of what is done where a table has no verb."""
    command = getattr(context.command, "commands", {}).get(name)
    command = getattr(command, "commands", {}).get("show", command)
    return [each for each in getattr(command, "params", ()) if isinstance(each, click.Option)]


def _options(context: click.Context) -> list[click.Option]:
    return [each for each in context.command.params if isinstance(each, click.Option)]


def _from_kernel_words(context: click.Context, words: Sequence[str]) -> str | None:
    """Return a line of ours for one in the grammar of `ip link add type vxlan`, if it is one."""
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
        if word.startswith("--") or not re.fullmatch(r"[a-z0-9_-]+", word):
            line.append(word)
            if word.startswith("--") and rest and not rest[0].startswith("--"):
                line.append(rest.pop(0))
            continue
        plain = word.replace("_", "-")
        name = f"--{_OPTION_SYNONYMS.get(plain, plain)}"
        if plain.startswith("no") and f"--no-{plain[2:]}" in options:
            line.append(f"--no-{plain[2:]}")
        elif (option := options.get(name)) is None:
            return None
        else:
            line.append(name)
            count = 0 if option.is_flag else option.nargs
            line += [rest.pop(0) for _ in range(min(count, len(rest)))]
    if not any(item.startswith("--") for item in line):
        return None
    return " ".join(("pyvtep", *line))


# --- options ----------------------------------------------------------------------------------


def explain(error: click.ClickException) -> str:
    """Return what is wrong with a command line, in one line that says what to type instead."""
    said = " ".join(error.format_message().split()).removesuffix(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return said
    words = context.meta.get(_WORDS, ())
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error.option_name, context, words)
    if isinstance(error, click.BadOptionUsage):
        return said + _usage_of(error.option_name, context, words)
    if isinstance(error, click.MissingParameter) and "Choose from" not in said:
        return f"{said}; {_usage(context)}"
    if said.startswith("Got unexpected extra argument"):
        return said + _extra(context, words)
    return said


def _usage(context: click.Context) -> str:
    return (
        f"usage: {context.command_path} {' '.join(context.command.collect_usage_pieces(context))}"
    )


def _no_such_option(name: str, context: click.Context, words: Sequence[str]) -> str:
    """Return what is wrong with an option that there is not, and what was probably meant."""
    typed = name if name.startswith("--") else _single_dash(name, words)
    said = f"No such option {shortened(typed)!r}"
    plain = typed.lstrip("-").partition("=")[0].replace("_", "-").lower()
    known = _names(_options(context))
    if plain.startswith("no-") and f"{plain}" not in known and plain[3:] in known:
        return f"{said}; to reset it: --{plain[3:]} none"
    wanted = _meant(plain, known)
    if wanted is not None and not typed.startswith("--") and wanted == plain:
        return f"{said}; it has two dashes: --{wanted}"
    if wanted is not None:
        return f"{said}; did you mean --{wanted}?"
    return said + _elsewhere(plain, context)


def _single_dash(name: str, words: Sequence[str]) -> str:
    """Return the whole word of which one letter was taken for an option."""
    letter = name.lstrip("-")[:1]
    for word in words:
        if word.startswith("-") and not word.startswith("--") and letter in word:
            return word
    return name


def _meant(plain: str, known: Sequence[str]) -> str | None:
    """Return the option, without dashes, that was probably meant."""
    candidates = [plain, _OPTION_SYNONYMS.get(plain, plain)]
    if plain.startswith("no"):
        candidates += [f"no-{plain[2:].lstrip('-')}"]
    for candidate in candidates:
        if candidate in known:
            return candidate
    close = _close(plain, known) if len(plain) > 1 else []
    return close[0] if close else None


def _names(options: Iterable[click.Option]) -> list[str]:
    return [
        name.lstrip("-")
        for option in options
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    ]


def _elsewhere(plain: str, context: click.Context) -> str:
    """Return the hint for an option that other commands have, or that has no `no-`."""
    path = context.command_path
    root = context.find_root()
    if any(plain in word.replace("[", " ").split() for word in _words_of(context)):
        return f"; it is a word here, without dashes; {_usage(context)}"
    plain = _OPTION_SYNONYMS.get(plain, plain)
    if context.command is root.command:
        having = _having(root, plain)
        words = context.meta.get(_WORDS, ())
        named = [name for name in having if name.split()[0] in words]
        if having:
            return f"; write it behind the command: pyvtep {(named or having)[0]} --{plain}"
        return "; see: pyvtep --help"
    if path.endswith("docker attach") and plain in ("bridge", "anycast-gateway"):
        return f"; the network says which {plain} it is"
    if path.endswith("check-config"):
        return "; the file stands for itself: pyvtep check-config FILE"
    if plain in ("vni", "id") and path.endswith("vni add"):
        return "; the VNI stands for itself: pyvtep vni add N"
    if plain in ("tap", "dev") and "dev" in " ".join(_words_of(context)):
        return "; a segment is named by --vni N, or dev and the TAP's name"
    wanted = _meant(plain, _names(_options(root)))
    if wanted in ("debug", "config"):
        return f"; write it before the command: pyvtep --{wanted}"
    if wanted is not None and path.endswith("set"):
        return f"; --{wanted} is of the whole process, and set when that is started"
    if wanted is not None and isinstance(root.command, click.Group):
        return f"; of a VTEP that runs it is changed with: pyvtep set --{wanted}"
    return f"; {_usage(context)}"


def _words_of(context: click.Context) -> list[str]:
    return context.command.collect_usage_pieces(context)


def _having(root: click.Context, plain: str) -> list[str]:
    """Return the commands below the root that have an option of this name."""
    found = []
    for name, command in getattr(root.command, "commands", {}).items():
        below = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        for verb, each in below:
            if plain in _names(one for one in each.params if isinstance(one, click.Option)):
                found.append(f"{name} {verb}".strip())
    return found


def _usage_of(name: str, context: click.Context, words: Sequence[str]) -> str:
    """Return how an option is used, for a message."""
    for option in _options(context):
        if name in (*option.opts, *option.secondary_opts):
            if option.is_flag:
                value = next(
                    (word.partition("=")[2] for word in words if word.startswith(f"{name}=")), ""
                )
                if value.lower() in (*_YES, *_NO):
                    return f": write {_of(option, value)}"
                return f": write {' or '.join((*option.opts, *option.secondary_opts))}"
            return f", as in: {name} {option.metavar}"
    return ""


def _extra(context: click.Context, words: Sequence[str]) -> str:
    """Return the hint for words that a command has no use for."""
    last = words[-1].lower() if words else ""
    before = words[-2] if len(words) > 1 else ""
    if (flag := _flag(context, before)) is not None and last in (*_YES, *_NO):
        return f"; {flag.opts[0]} takes no value: write {_of(flag, last)}"
    names = _names(_options(context))
    for word in words:
        wanted = _OPTION_SYNONYMS.get(word, word)
        if wanted in names:
            return f"; options begin with two dashes: --{wanted}"
    if "remote" in names and _is(ip_address, last):
        return f"; each remote has its own option: --remote {last}"
    return f"; {_usage(context)}"


def _is(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _close(word: str, known: Iterable[str]) -> list[str]:
    import difflib  # noqa: PLC0415  most command lines make sense

    return difflib.get_close_matches(word, list(known), 3)
