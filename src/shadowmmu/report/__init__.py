"""Tables, plots and the self-contained HTML page: what people read.

Reads nothing but the records of ``lab.results``; computes no result of its own beyond sums over runs. A
metric (its label, unit and meaning) is declared once, in ``report.metrics``. Must not know how a result
came about.
"""
