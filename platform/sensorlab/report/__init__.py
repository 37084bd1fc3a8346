"""The report of a sweep: one self-contained HTML file from which people decide on a configuration.

``read`` (the sweep's directory), ``recorded`` (its tracking store), ``pictures`` (panels) and ``result_tables`` collect
everything into the dataclasses of ``content``; ``ranking``, ``distinguish`` and ``importance`` are the arithmetic;
``markup``, ``scales``, ``charts``, ``parallel``, ``lineage``, ``summary`` and ``tables`` draw; ``page`` puts the file
together; ``attach`` and ``commands`` are its two users.
"""
