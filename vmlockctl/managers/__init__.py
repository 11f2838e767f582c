"""How leases are held on this host: plug-ins with one interface."""
