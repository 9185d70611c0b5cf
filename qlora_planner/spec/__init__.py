"""What is asked and what is known: runs, models, traces, machines."""
