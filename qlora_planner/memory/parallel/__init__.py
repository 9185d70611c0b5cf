"""What a strategy for several cards changes of one rank's memory: a module a strategy."""
