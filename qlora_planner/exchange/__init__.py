"""In and out: plan files, runs as scripts and configs of other tools, and those tools' configs read back."""
