"""Means to test with: hosts made of network namespaces on one machine."""
