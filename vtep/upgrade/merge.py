"""The merge of runtime changes with those of the configuration file. Pure.

Three configurations of a VNI are compared: that of the old process's file or command line (`base`),
the one that it has now (`current`), and that of the new process's file or command line (`wanted`).
"""

from collections.abc import Iterable

from attrs import evolve, fields

from vtep.config import Config


def merge(
    base: Iterable[Config], current: Iterable[Config], wanted: Iterable[Config]
) -> list[Config]:
    """Return the configurations after an upgrade.

    An option that the file has changed wins; else the runtime change of it stays. A VNI that was
    added or deleted at run time stays so, unless the file has changed about it.
    """
    base_by, current_by, wanted_by = (
        {config.vni: config for config in configs} for configs in (base, current, wanted)
    )
    merged = []
    for vni, now in current_by.items():
        before, after = base_by.get(vni), wanted_by.get(vni)
        if after is None:
            if before is None:  # Added at run time, and no file knows it.
                merged.append(now)
        elif before is None:  # Added at run time, and in the file since.
            merged.append(after)
        else:
            merged.append(_merge_options(before, now, after))
    # Those that were deleted at run time, and are in the file as before, stay deleted.
    merged += [
        after
        for vni, after in wanted_by.items()
        if vni not in current_by and after != base_by.get(vni)
    ]
    return merged


def _merge_options(base: Config, current: Config, wanted: Config) -> Config:
    names = [field.name for field in fields(Config)]
    changed = {
        name: getattr(wanted, name)
        for name in names
        if getattr(wanted, name) != getattr(base, name)
    }
    return evolve(current, **changed)
