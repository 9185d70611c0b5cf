"""axolotl's files."""
