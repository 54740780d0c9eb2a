"""Questions put to the model: comparison of designs, replay of runs, an explained walk, the cost model.

Builds scenarios, runs them through ``engine``, has them judged by ``verify``, prices them. Must not know
the command line or how results are shown.
"""
