"""A long run of two VTEPs under changing traffic, whose use of resources must not grow."""
