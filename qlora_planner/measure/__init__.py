"""What this machine is and what it measures: the door to the driver, and the doctor."""
