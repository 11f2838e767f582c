"""Renews host leases, watches claimed processes, stops them when a host lease is lost."""
