"""The lossless upgrade: a new process takes over the work of a running one, perhaps newer code.

The *old* process forwards all the time but for a gap of a few milliseconds. In this order:

1. The new one starts, loads the fast path and calls `takeover` on the control socket (`new`).
2. The old one sends its state (`snapshot`) and its descriptors, and forwards on (`old`).
3. The new one builds everything around the descriptors, without reading any, and says `ready`.
4. The old one sends what has changed meanwhile, stops reading, and says `go`.
5. The new one reads, and says `reading`. From here on it is the one that forwards.
6. The old one sends its counters and ages. A second later, it closes its state file, and ends.

Until then, the old process continues if the new one refuses, ends or hangs: it kills it first, so
that two processes never read at one time.

- `format`: the messages as octets, pure.
- `channel`: messages and descriptors over a Unix socket, and the process at its other end.
- `snapshot`: from the state of a VTEP to messages, and back.
- `merge`: runtime changes and those of the configuration file, merged.
- `successor`: the process that `pyvtep upgrade` starts, seen by the old process.
- `starter`: the old process, seen by the one that it has started.
"""
