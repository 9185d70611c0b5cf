"""Formulas for runs that nothing was traced for."""
