"""The planner: from a card, a model and what the user fixed to the run that is recommended. Pure.

Nothing is imported here: a survey does without what a plan needs, and the other way round.
"""
