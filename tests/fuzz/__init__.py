"""Coverage-guided fuzzing with atheris: see `scripts/fuzz` and `tests/fuzz/__main__.py`."""
