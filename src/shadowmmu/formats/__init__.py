"""Formats: strict readers and exact writers of what others produce and consume.

``ptdump`` is the kernel's stage-2 page-table dump, ``ftrace`` its trace buffer, ``answer`` the console log of
the real-kernel rig, ``runs`` the recorded runs that ship with the package, ``casemate`` the traces of that
checker of page-table updates. This room must not know any
model: it turns text into records and records into text.
"""
