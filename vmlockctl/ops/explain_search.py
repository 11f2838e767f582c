"""The search for a disk's openers, begun before anything else: most of explain's time goes there."""

from vmlockctl.host.openers import Search

__all__ = ["Search"]
