"""Checks that the nodes of a model's trees stay within the model, because libraries follow their indices unchecked.

A trial notices only what the golden rows reach: a node that other rows reach could end or stall the API.
"""

import json
from typing import Any

import numpy as np

__all__ = ["check_features", "check_lightgbm", "check_nodes", "check_xgboost"]


def check_nodes(left: np.ndarray, right: np.ndarray, inner: np.ndarray) -> None:
    """Check that children come after their parent in the same tree, as libraries number them. This rules out cycles.

    Args:
        left: the left child of each node that has children, (n_inner,).
        right: the right child of each, (n_inner,).
        inner: whether each node has children, (n_nodes,).

    Raises:
        ValueError: a child does not.
    """
    parents = np.flatnonzero(inner)
    for children in (left, right):
        if not ((children > parents) & (children < len(inner))).all():
            raise ValueError("a node of its trees points outside its tree")


def check_features(features: np.ndarray, count: int) -> None:
    """Check that nodes use one of `count` inputs, or one of `count` sets of categories.

    Raises:
        ValueError: a node uses another.
    """
    if not ((features >= 0) & (features < count)).all():
        raise ValueError("a node of its trees uses an input that the model does not have")


def check_lightgbm(booster: Any) -> None:
    """Check the trees of a LightGBM booster. Its text is what it has in memory, not what a file says.

    Raises:
        ValueError: a node points outside its tree, or uses an input or categories that the model does not have.
    """
    trees = booster.model_to_string(num_iteration=-1).partition("\nend of trees")[0].split("\nTree=")[1:]
    for tree in trees:
        lines = dict(line.split("=", 1) for line in tree.split("\n") if "=" in line)
        left, right, features = (_numbers(lines, name) for name in ("left_child", "right_child", "split_feature"))
        # LightGBM numbers leaves by themselves, as -1, -2, ...: here, after the inner nodes.
        inner = np.arange(len(left) + int(lines["num_leaves"])) < len(left)
        left, right = (np.where(children < 0, len(left) + ~children, children) for children in (left, right))
        check_nodes(left, right, inner)
        check_features(features, booster.num_feature())
        check_features(_numbers(lines, "leaf_features"), booster.num_feature())  # of linear trees
        categorical = _numbers(lines, "decision_type") % 2 == 1
        check_features(_numbers(lines, "threshold", np.float64)[categorical], int(lines["num_cat"]))


def check_xgboost(booster: Any) -> None:
    """Check the inputs that the trees of an XGBoost booster use. XGBoost follows the children when it reads them.

    Raises:
        ValueError: a node uses an input that the model does not have.
    """
    kind = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]
    for tree in kind.get("gbtree", kind)["model"].get("trees", ()):  # gblinear has none
        inner = np.array(tree["left_children"]) != -1
        check_features(np.array(tree["split_indices"])[inner], booster.num_features())


def _numbers(lines: dict[str, str], name: str, dtype: type = np.int64) -> np.ndarray:
    return np.array(lines.get(name, "").split()).astype(dtype)
