"""Robustness, tried at random: what strikes a run (kills, damage, bad input, full disks), and whether it holds."""
