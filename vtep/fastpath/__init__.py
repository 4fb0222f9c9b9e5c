"""The fast path: compiled turns that repeat the decisions of the slow path. It is optional.

Python decides, and a compiled turn repeats the decision. The first frame of a kind takes the slow
path (`vtep.datapath`), where every rule is. Its verdict becomes a row of a table in numpy arrays.
For frames of the same kind, a turn does only the mechanics of headers. All others it returns to the
slow path.

- `layout`: the columns of all arrays.
- `jit`: how functions are compiled, and the system calls.
- `checksum`, `keys`: the Internet checksum; headers, flow hash, lookup of a row.
- `receive`: one turn from the underlay to the TAPs.
- `transmit`: one turn from a TAP to the underlay.
- `turns`: the entry points. To import it is to compile or to load them.
- `table`: the tables as seen from Python: rows are added, counted and made invalid.

Only `table` and `layout` may be imported without numba.
"""
