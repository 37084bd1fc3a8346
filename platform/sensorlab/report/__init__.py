"""The report of a sweep: one self-contained HTML file from which people decide on a configuration.

``read`` (the sweep's directory), ``recorded`` (its tracking store) and ``pictures`` (panels) collect everything into
the dataclasses of ``content``; ``ranking``, ``distinguish`` and ``importance`` are the arithmetic; ``markup``,
``scales``, ``charts``, ``parallel``, ``summary`` and ``tables`` draw; ``page`` puts the file together; ``attach`` and
``commands`` are its two users.
"""
