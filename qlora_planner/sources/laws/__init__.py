"""Laws of classes: from a config to the profile of its model, by arithmetic."""
