"""The cost of vmlockctl beside sanlock, measured in one run: ``python -m tests.bench``."""
