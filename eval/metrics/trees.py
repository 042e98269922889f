"""Distance of two ordered trees, after Zhang and Shasha (SIAM J. Comput. 18, 1989)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """A node of an ordered tree."""

    label: str
    children: tuple["Node", ...] = ()


def tree_distance(first: Node, second: Node, *, alone: Callable[[str], int], change: Callable[[str, str], int]) -> int:
    """The least cost of turning one tree into the other by removing, inserting and relabelling nodes.

    Args:
        first: a tree.
        second: another.
        alone: the cost of removing or inserting a node with this label.
        change: the cost of putting one label for another. Together the costs must be a metric, so that no detour is
            cheaper than the direct way.
    """
    one, other = (_Side(tree, alone) for tree in _without_equal_ends(first, second))
    changes = [[change(a, b) for b in other.labels] for a in one.labels]
    distances = [[0] * len(other.labels) for _ in one.labels]
    for other_root in other.keyroots:
        columns = other.below(other_root)
        for root in one.keyroots:
            _fill(distances, changes, one.below(root), columns)
    return distances[-1][-1]


def _without_equal_ends(first: Node, second: Node) -> tuple[Node, Node]:
    """Both trees without the subtrees at their ends that are equal.

    With costs that are a metric this changes no distance: whatever else an equal subtree were mapped to, its
    counterpart can be followed to what it is mapped to in turn, and so on, until the detour is cut out.
    """
    while first.label == second.label and first.children and second.children:
        ours, theirs = list(first.children), list(second.children)
        while ours and theirs and ours[-1] == theirs[-1]:
            del ours[-1], theirs[-1]
        while ours and theirs and ours[0] == theirs[0]:
            del ours[0], theirs[0]
        if not len(ours) == len(theirs) == 1 or ours[0].label != theirs[0].label:
            return Node(first.label, tuple(ours)), Node(second.label, tuple(theirs))
        first, second = ours[0], theirs[0]
    return first, second


_Column = tuple[int, int, int, int]


class _Side:
    """A tree as lists over its nodes, children first.

    Attributes:
        labels: of each node.
        costs: of removing or inserting each node.
        leftmost: of each node the number of the first leaf below it.
        keyroots: the last node that has each of these leaves.
    """

    def __init__(self, root: Node, alone: Callable[[str], int]) -> None:
        self.labels: list[str] = []
        self.leftmost: list[int] = []
        self._visit(root)
        self.costs = [alone(label) for label in self.labels]
        self._below: dict[int, list[_Column]] = {}
        self.keyroots = sorted({leaf: number for number, leaf in enumerate(self.leftmost)}.values())

    def _visit(self, node: Node) -> int:
        leaves = [self._visit(child) for child in node.children]
        self.leftmost.append(leaves[0] if leaves else len(self.labels))
        self.labels.append(node.label)
        return self.leftmost[-1]

    def below(self, root: int) -> list[_Column]:
        """Of every node below a key root, and itself: its place among them, that of its first leaf, cost and number."""
        if root not in self._below:
            start = self.leftmost[root]
            self._below[root] = [
                (node - start, self.leftmost[node] - start, self.costs[node], node) for node in range(start, root + 1)
            ]
        return self._below[root]


def _fill(
    distances: list[list[int]], changes: list[list[int]], rows: Sequence[_Column], columns: Sequence[_Column]
) -> None:
    """Fills in the distances of all pairs of subtrees whose first leaf is that of these two key roots.

    This is the inner loop of everything: names are local, and no call is made in it but one.
    """
    above = [0]
    for _, _, cost, _ in columns:
        above.append(above[-1] + cost)
    forests = [above]
    for _, left, removal, node in rows:
        known, change, before = distances[node], changes[node], forests[left]
        latest = above[0] + removal
        row = [latest]
        for column, other_left, insertion, other_node in columns:
            best = above[column + 1] + removal
            if latest + insertion < best:
                best = latest + insertion
            if left or other_left:
                if before[other_left] + known[other_node] < best:
                    best = before[other_left] + known[other_node]
            else:
                if above[column] + change[other_node] < best:
                    best = above[column] + change[other_node]
                known[other_node] = best
            row.append(best)
            latest = best
        forests.append(row)
        above = row
