"""Running what was planned: a supervised child that trains, is watched, and is started again when it fails."""
