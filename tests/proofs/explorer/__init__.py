"""A model checker for the shipped procedures of ``lease`` (faults.md section 3b).

    check(scene_name) -> Result     every interleaving of a bounded scene, with its faults
    SCENES                          the scenes by name

``remembered``  what a suspended procedure still remembers
``memory``      the sectors that a scene can change
``programs``    what each host does, as a graph of suspended procedures
``world``       all hosts and the faults: what can happen next, and what must not
``ending``      a lone host acquires from every final state
``search``      depth first or breadth first through all states
``trace``       a run in readable steps
"""

from __future__ import annotations

from tests.proofs.explorer.scenes import SCENES, Scene
from tests.proofs.explorer.search import Result, Violation, check, explore, replay

__all__ = ["SCENES", "Result", "Scene", "Violation", "check", "explore", "replay"]
