"""Where `verify` and `train` tell what they hear, for whoever watches from outside."""

# Names a file, to which every event of the child is added, one JSON object a line.
EVENTS_VARIABLE = "QLORA_PLANNER_EVENTS"
