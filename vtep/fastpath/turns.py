"""The entry points of the fast path. To import this module is to compile them, or to load them."""

from vtep.fastpath.table import FastPath

__all__ = ["FastPath"]
