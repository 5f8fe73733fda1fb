"""The description of a call, as values: coordinates, patterns, layouts, score rules, observations; and their lowering.

Nothing here computes attention. A backend receives the lowered form and never a pattern's name.
"""
