"""The tree of what sequences of tokens begin with in common, for `prefix_sharing`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

# A shorter run in common is computed once for each branch: attending to it apart costs as much as it saves.
MIN_SHARED_TOKENS = 16


@dataclass(frozen=True)
class Node:
    """A run of tokens that the same sequences go through.

    Attributes:
        parent: index of the node before it, −1 where sequences begin.
        begin: column of its first token in the packed sequence.
        end: column behind its last token; its descendants' tokens follow.
        subtree_end: column behind its last descendant's.
        depth: position of its first token in the sequences.
    """

    parent: int
    begin: int
    end: int
    subtree_end: int
    depth: int


@dataclass(frozen=True)
class PrefixTree:
    """A packed sequence of N tokens.

    Attributes:
        token_ids: N ids.
        position_ids: N positions, each counted from the beginning of the sequences that it belongs to.
        nodes: every node stands before its descendants, which lie next to each other.
        leaves: index of the node in which each sequence ends.
    """

    token_ids: list[int]
    position_ids: list[int]
    nodes: list[Node]
    leaves: list[int]

    def columns(self, sequence: int, first: int, stop: int) -> list[int]:
        """Where the tokens of a sequence at positions `first` to `stop` − 1 lie."""
        found: list[int] = []
        node = self.nodes[self.leaves[sequence]]
        while stop > first:
            low = max(first, node.depth)
            found[:0] = range(node.begin + low - node.depth, node.begin + stop - node.depth)
            stop = min(stop, low)
            node = self.nodes[node.parent]
        return found


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # equal up to `low`; halving lets the comparison run over slices
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def build_tree(sequences: Sequence[tuple[int, ...]]) -> PrefixTree:
    """The tree of some sequences of at least one token each, in any order; equal ones share a leaf."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    shared = [0, *(common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))]
    token_ids: list[int] = []
    position_ids: list[int] = []
    spans: list[tuple[int, int, int, int]] = []  # parent, begin, end, depth
    leaves = [0] * len(sequences)
    # Runs of sorted sequences that share `depth` tokens, which end with the node `parent`; the next one is the last.
    groups = [(0, len(order), 0, -1)]
    while groups:
        low, high, depth, parent = groups.pop()
        longest = sequences[order[high - 1]]
        stop = min(shared[low + 1 : high], default=len(longest))
        alike = stop == len(longest)
        if alike and stop == depth:  # they end where their parent does
            for index in order[low:high]:
                leaves[index] = parent
            continue
        if alike or stop - depth >= MIN_SHARED_TOKENS:
            begin = len(token_ids)
            token_ids += longest[depth:stop]
            position_ids += range(depth, stop)
            spans.append((parent, begin, len(token_ids), depth))
            depth, parent = stop, len(spans) - 1
        if alike:
            groups.append((low, high, depth, parent))
            continue
        cuts = [low, *(i for i in range(low + 1, high) if shared[i] == stop), high]
        groups += [(a, b, depth, parent) for a, b in reversed(list(itertools.pairwise(cuts)))]
    ends = [end for _, _, end, _ in spans]
    for number in reversed(range(len(spans))):
        before = spans[number][0]
        if before >= 0:
            ends[before] = max(ends[before], ends[number])
    nodes = [Node(before, begin, end, ends[i], depth) for i, (before, begin, end, depth) in enumerate(spans)]
    return PrefixTree(token_ids, position_ids, nodes, leaves)


def plan_trees(sequences: Sequence[tuple[int, ...]], tokens: int) -> tuple[list[list[int]], list[int]]:
    """Indices of sequences in batches whose trees have at most so many tokens, or that are one sequence; what begins
    alike stands together. And how many tokens each of these trees has at most."""
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i], i))
    shared = [0, *(common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))]
    # How many tokens a tree computes once for a sequence and the one before it, at least.
    shared = [max(0, count - MIN_SHARED_TOKENS + 1) for count in shared]
    batches: list[list[int]] = []
    computed: list[int] = []
    start = 0
    while start < len(order):
        used = [len(sequences[order[start]])]
        stop = start + 1
        while stop < len(order):
            more = len(sequences[order[stop]]) - shared[stop]
            if used[-1] + more > tokens:
                break
            used.append(used[-1] + more)
            stop += 1
        if stop < len(order):
            # What the next batch shares with this one it computes again: cut where that is least, but not so early
            # that batches become small.
            enough = [cut for cut in range(start + 1, stop + 1) if 2 * used[cut - start - 1] >= used[-1]]
            stop = min(enough, key=lambda cut: (shared[cut], -cut))
        batches.append(order[start:stop])
        computed.append(used[stop - start - 1])
        start = stop
    return batches, computed
