"""A scripted two-arm expert for the transfer cube: the right arm picks it up, the left arm takes it over.

A pure function of the cube's position and the time, without a simulator. World frame of gym-aloha: x to the right, y
away from the viewer, z up, metres; the arms stand at x = -0.469 and x = 0.469 and face one another. Grippers: 0 closed,
1 open.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from vla_ft.simulation.geometry import Pose, axis_angle, blend, compose, ease

DURATION = 8.0
"""Seconds of one demonstration: 400 steps at gym-aloha's 50 Hz."""
CUBE_HALF = 0.02
"""Half the cube's edge, metres: the height of its centre when it lies on the table."""
CUBE_RANGE = ((0.0, 0.2), (0.4, 0.6))
"""Where gym-aloha puts the cube: x and y from, to, in metres."""

HOME_LEFT = Pose(np.array([-0.3172, 0.5, 0.2953]), axis_angle((0, 1, 0), -5.73))
HOME_RIGHT = Pose(np.array([0.3172, 0.5, 0.2953]), compose(axis_angle((0, 0, 1), 180), axis_angle((0, 1, 0), -5.73)))
"""Where the gripper links are in gym-aloha's start pose."""
HOME_GRIPPER = 0.1

# The right gripper keeps one slope from the grasp to the handover, so that the cube stays level and its upper and lower
# faces are free for the left gripper, which comes level and rolled by a quarter turn.
RIGHT_SLOPE = 75.0
RIGHT_ROTATION = compose(axis_angle((0, 0, 1), 180), axis_angle((0, 1, 0), RIGHT_SLOPE))
LEFT_ROTATION = axis_angle((1, 0, 0), 90)
RIGHT_REACH = 0.137
LEFT_REACH = 0.137
"""Metres from gripper link to cube centre in a grasp; the finger tips end at 0.154."""
MEETING = np.array([0.0, 0.5, 0.25])
"""Where the cube changes hands."""
OPEN, CLOSED = 1.0, 0.0


@dataclass(frozen=True)
class Keyframe:
    """One arm at ``time`` seconds: gripper link pose and normalised gripper opening."""

    time: float
    pose: Pose
    gripper: float


@dataclass(frozen=True)
class Targets:
    """What both arms should do at one moment."""

    left: Pose
    right: Pose
    left_gripper: float
    right_gripper: float


@dataclass(frozen=True)
class Plan:
    """The keyframes of one demonstration, in order of time, the first at 0."""

    left: tuple[Keyframe, ...]
    right: tuple[Keyframe, ...]

    def at(self, time: float) -> Targets:
        """Targets at ``time`` seconds; before the first and after the last keyframe the arms stand still."""
        left, left_gripper = _interpolate(self.left, time)
        right, right_gripper = _interpolate(self.right, time)
        return Targets(left, right, left_gripper, right_gripper)


def plan_transfer(cube: np.ndarray) -> Plan:
    """The plan for a cube that lies level with its centre at ``cube`` [3]; its height is that of the table."""
    lying = np.array([cube[0], cube[1], CUBE_HALF])
    return Plan(left=_left_arm(), right=_right_arm(lying))


def _holding(cube: np.ndarray, rotation: np.ndarray, reach: float) -> Pose:
    """Gripper link pose that has the cube's centre ``reach`` metres in front of it."""
    return Pose(cube - reach * Pose(cube, rotation).forward, rotation)


def _right_arm(lying: np.ndarray) -> tuple[Keyframe, ...]:
    """Hover, descend, close, lift, carry to the meeting point, wait, open, draw back."""
    grasp = _holding(lying, RIGHT_ROTATION, RIGHT_REACH)
    meet = _holding(MEETING, RIGHT_ROTATION, RIGHT_REACH)
    hover, lift = _shift(grasp, z=0.09), _shift(grasp, z=0.10)
    away = _shift(meet, x=0.10, z=0.06)
    # The slope is taken up in the arm's middle plane. On the way to a cube beside it the wrist would pass the pose in
    # which two of its axes align, and the forearm would spin by half a turn, to a side that depends on the cube.
    turned = Pose(HOME_RIGHT.position, RIGHT_ROTATION)
    return (
        Keyframe(0.0, HOME_RIGHT, HOME_GRIPPER),
        Keyframe(0.8, turned, HOME_GRIPPER),
        Keyframe(2.0, hover, OPEN),
        Keyframe(2.8, grasp, OPEN),
        Keyframe(3.2, grasp, CLOSED),
        Keyframe(3.9, lift, CLOSED),
        Keyframe(5.0, meet, CLOSED),
        Keyframe(6.5, meet, CLOSED),
        Keyframe(6.9, meet, OPEN),
        Keyframe(7.7, away, OPEN),
    )


def _left_arm() -> tuple[Keyframe, ...]:
    """Wait beside the meeting point with the gripper open, come in, close, take the cube along."""
    meet = _holding(MEETING, LEFT_ROTATION, LEFT_REACH)
    ready = _shift(meet, x=-0.10)
    carry = _shift(meet, x=-0.06)
    return (
        Keyframe(0.0, HOME_LEFT, HOME_GRIPPER),
        Keyframe(2.6, HOME_LEFT, HOME_GRIPPER),
        Keyframe(4.4, ready, OPEN),
        Keyframe(4.9, ready, OPEN),
        Keyframe(5.9, meet, OPEN),
        Keyframe(6.4, meet, CLOSED),
        Keyframe(7.0, meet, CLOSED),
        Keyframe(7.8, carry, CLOSED),
    )


def _shift(pose: Pose, x: float = 0.0, z: float = 0.0) -> Pose:
    return Pose(pose.position + np.array([x, 0.0, z]), pose.rotation)


def _interpolate(keyframes: tuple[Keyframe, ...], time: float) -> tuple[Pose, float]:
    """Pose and gripper at ``time``, minimum-jerk between neighbouring keyframes."""
    if time <= keyframes[0].time:
        return keyframes[0].pose, keyframes[0].gripper
    for start, end in itertools.pairwise(keyframes):
        if time <= end.time:
            share = ease((time - start.time) / (end.time - start.time))
            return blend(start.pose, end.pose, share), start.gripper + share * (end.gripper - start.gripper)
    return keyframes[-1].pose, keyframes[-1].gripper
