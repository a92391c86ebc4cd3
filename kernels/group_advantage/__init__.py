"""Rewards of a group -> advantages of its members."""

from kernels.group_advantage.api import Baseline, group_advantage

__all__ = ["Baseline", "group_advantage"]
