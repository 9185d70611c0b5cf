"""Profiling: facts of a model read off its real class, without weights. Needs torch and the training stack."""
