"""``python -m vmlockctl``."""

from vmlockctl.cli.main import main

main()
