"""How families of traces are made: one tape a class, structure and recipe, with the class's dimensions as letters."""
