"""The law of a class's inventory: what every config of a known structure is made of, without building it."""
