"""Sources: where models come from (the catalogue, files and folders, the Hub) and where profiles are kept."""
