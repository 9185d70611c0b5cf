"""Answers as text: rendering only, no arithmetic. rich is imported when something is shown in colour."""
