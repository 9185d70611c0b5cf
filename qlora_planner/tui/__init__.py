"""The explorer: what fits, one run and its knobs, its frontier and prices. `core` has no terminal; screens show it."""
