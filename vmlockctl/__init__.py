"""A virtual machine lock manager for QEMU/KVM hosts, on sanlock-compatible lease areas.

Start reading at ``ondisk/leader.py``, then ``lease/timeouts.py``, ``lease/delta.py``,
``lease/paxos.py``, ``ops/acquire.py`` and ``cli/acquire.py``.
"""

__version__ = "0.1.0"
