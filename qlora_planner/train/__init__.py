"""The builder: model, adapters, optimizer and trainer of a resolved run. What is measured here is what will be trained.

torch and its libraries are imported when a function is called, never by importing this package.
"""
