"""What went wrong: the doctor, and runs that ran out of memory."""
