"""Answers for people: records with their screen as text, their HTML for a notebook and their pandas frame."""
