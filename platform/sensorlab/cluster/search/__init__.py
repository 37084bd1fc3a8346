"""What a sweep tries next, and how its trials compare.

``searcher`` is what Tune asks; it repeats every configuration with several seeds. ``propose`` and its neighbours are
the algorithms: each configuration is a pure function of the sweep's seed, of its position and of what was measured
before, so a restored sweep proposes what the uninterrupted one would have. ``standing`` ranks configurations.
"""
