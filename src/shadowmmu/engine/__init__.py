"""The executor: an event table stepped through host, guest and L0 in one compiled loop.

``step`` is that loop, ``setup`` builds the machine a scenario asks for, ``executor`` drives the loop
from Python (growing arrays where it stops for room), ``observe`` reads what may be compared with the
real kernel. Must not know where events came from.
"""
