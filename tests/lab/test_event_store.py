"""Events come back as they were kept."""

from __future__ import annotations

from trace_lab import TraceText

from shadowmmu.lab.event_store import EventStore


def test_events_come_back_with_the_fields_that_count() -> None:
    text = TraceText().canonical(0x4000_0000, 0x9000_0000).shadow(0x8000_0000, 0x9000_0000)
    text.event("s2map_ret", "ret=-11").notifier(0x4000_0000).event("tlbi_vmalls12", "crm=0 op2=6")
    text.event("unmap_gfn", "start=0x1 end=0x2 mayblock=0").event("unmap_gfn", "start=0x1 end=0x2")
    events = list(text.read())
    store = EventStore()
    for event in events:
        store.append(event)
    back = list(store)
    assert len(store) == len(events)
    for kept, event in zip(back, events, strict=True):
        assert kept[:4] == event[:4]
        known = {key: value % (1 << 64) for key, value in event.values.items() if key in kept.values}
        assert known.items() <= kept.values.items()
    assert [event.values["mayblock"] for event in back if event.name == "unmap_gfn"] == [1, 0, 1]
    assert next(event.values for event in back if event.name == "s2map_ret") == {"ret": (1 << 64) - 11}
