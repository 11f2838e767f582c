"""The only code that touches a lease area: O_DIRECT, aligned buffers, deadlines."""
