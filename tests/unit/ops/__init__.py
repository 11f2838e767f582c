"""Unit tests of vmlockctl.ops."""
