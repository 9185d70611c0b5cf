"""A training from what is asked for to its summary: the request, what is looked at before, the run, what is kept."""
