"""Rewards of a group -> advantages of its members."""

from kernels.group_advantage.reference import group_advantage

__all__ = ["group_advantage"]
