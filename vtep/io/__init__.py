"""Thin shells around the kernel: TAP devices and UDP sockets."""
