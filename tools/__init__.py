"""What a maintainer runs: profiles, traces, tables and calibration made anew. Not in the wheel."""
