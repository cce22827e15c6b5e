"""Small faults, and the tests that should notice them.

When a file moves, its constant moves; when a line changes, `make mutants` says which old text is
no longer found. Tests are named by file, so that a law may stand in any function of it.
"""

from typing import NamedTuple

# What is mutated
BASE = "ndgpa/structures/base.py"
TABLES = "ndgpa/structures/tables.py"
GRID = "ndgpa/structures/grid.py"
CLUSTERS = "ndgpa/structures/clusters.py"
DISJOINT = "ndgpa/structures/disjoint.py"
POINTS = "ndgpa/structures/points.py"
SAMPLING = "ndgpa/structures/sampling.py"
VISIBLE = "ndgpa/structures/visible.py"
CALL = "ndgpa/problem.py"
RULE = "ndgpa/selection/base.py"
SLOTS = "ndgpa/selection/slots.py"
CANDIDATES = "ndgpa/structures/candidates.py"
COARSE_LEVEL = "ndgpa/selection/coarse.py"
PYRAMID = "ndgpa/selection/pyramid.py"
RELEVANCE = "ndgpa/selection/relevance.py"
RANKING = "ndgpa/selection/ranking.py"
TOP_RATIO = "ndgpa/selection/top_ratio.py"
PER_HEAD = "ndgpa/selection/per_head.py"
STATIC = "ndgpa/selection/static.py"
SOFT = "ndgpa/selection/soft.py"
SOFT_TOP_K = "ndgpa/selection/soft_top_k.py"
PERTURBED = "ndgpa/selection/perturbed_top_k.py"
MULTI_LEVEL = "ndgpa/selection/multi_level.py"
ANTIDIAGONAL = "ndgpa/selection/antidiagonal.py"
REFERENCE = "ndgpa/attention/reference.py"
CELLS = "ndgpa/attention/cells.py"
ENGINE = "ndgpa/attention/engine.py"
INVERSE = "ndgpa/attention/triton/inverse.py"
FORWARD = "ndgpa/attention/triton/forward.py"
BACKWARD = "ndgpa/attention/triton/backward_queries.py"
TILES = "ndgpa/attention/triton/tiles.py"
FULL = "ndgpa/operators/full.py"
COARSE = "ndgpa/operators/coarse.py"
NYSTROM = "ndgpa/operators/nystrom.py"
PERFORMER = "ndgpa/operators/performer.py"
MULTI_AXIS = "ndgpa/operators/multi_axis.py"
CACHE = "ndgpa/cache/cache.py"
PYG = "ndgpa/integrations/pyg.py"
POSE_LOSSES = "examples/images/pose_morphing/losses.py"
POSE_DATA = "examples/images/pose_morphing/data.py"
VIDEO_LOSSES = "examples/video/losses.py"

# What should notice
PROBLEMS = "tests/test_problems.py"
T_GRID = "tests/structures/test_grid.py"
T_CLUSTERS = "tests/structures/test_clusters.py"
T_DISJOINT = "tests/structures/test_disjoint.py"
T_POINTS = "tests/structures/test_points.py"
T_CAUSAL = "tests/selection/test_causal.py"
T_LEARNT = "tests/selection/test_learnt.py"
T_LEVELS = "tests/selection/test_multi_level.py"
T_RULES = "tests/selection/test_rules.py"
T_TOP_K = "tests/selection/test_top_k.py"
T_CALLS = "tests/test_functional.py"
T_CHUNKED = "tests/attention/test_chunked.py"
T_CACHE = "tests/cache/test_cache.py"
T_PYG = "tests/integrations/test_pyg.py"
T_FULL = "tests/operators/test_full.py"
T_COARSE = "tests/operators/test_coarse.py"
T_NYSTROM = "tests/operators/test_nystrom.py"
T_PERFORMER = "tests/operators/test_performer.py"
T_AXES = "tests/operators/test_multi_axis.py"
T_KERNELS = "tests/kernels/test_attention.py"
T_INVERSE = "tests/kernels/test_inverse.py"
T_SMALL_CELLS = "tests/kernels/test_small_cells.py"
T_POSE_LOSSES = "tests/examples/pose_morphing/test_losses.py"
POSE_DATA = "examples/images/pose_morphing/data.py"
T_AFFINE = "tests/examples/pose_morphing/test_affine.py"
T_TEXTURE = "tests/examples/pose_morphing/test_texture.py"
T_VIDEO = "tests/examples/video/test_parts.py"


class Mutant(NamedTuple):
    """One fault: the first `old` in the file becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    # Structures
    Mutant(
        "tables of inference mode are kept", "ndgpa/_ops.py",
        "stack.enter_context(torch.inference_mode(False))",
        "stack.enter_context(torch.inference_mode(torch.is_inference_mode_enabled()))",
        (T_GRID, T_CLUSTERS, T_CALLS),
    ),
    Mutant(
        "the latest time of a block is at least 0", TABLES,
        "masked_fill(empty, limits.min).amax", "masked_fill(empty, 0).amax",
        (PROBLEMS, T_CLUSTERS, T_CAUSAL),
    ),
    Mutant(
        "the mean of a block counts its empty places", BASE,
        "return (sums / self.block_sizes[:, None])", "return (sums / self.blocks.shape[1])",
        (T_CLUSTERS, T_GRID),
    ),
    Mutant(
        "a copy on another device forgets its groups", CLUSTERS,
        "moved._group = None if self._group is None else self._group.to(device)",
        "moved._group = None",
        (T_CLUSTERS, T_DISJOINT),
    ),
    Mutant(
        "blocks of coarsened clusters have their earliest time", CLUSTERS,
        "self.block_span[1]", "self.block_span[0]",
        (T_CLUSTERS, T_LEVELS, PROBLEMS),
    ),
    Mutant(
        "runs cross from one group to another", CLUSTERS,
        "new_group[1:] = group[1:] != group[:-1]", "new_group[1:] = False",
        (T_CLUSTERS, T_DISJOINT),
    ),
    Mutant(
        "the window of the last cell goes on past the border", GRID,
        "ends = (begins + cell + reach).clamp(max=count)", "ends = begins + cell + reach",
        (T_GRID, T_RULES),
    ),
    Mutant(
        "a window reaches one block less to the left", GRID,
        "along = (begins - reach).clamp(min=0)", "along = (begins - reach + 1).clamp(min=0)",
        (T_RULES, PROBLEMS),
    ),
    Mutant(
        "blocks of blocks last as long as blocks", GRID,
        "length = self.block_shape[self.time_axis] * (last[0] - first[0] + 1)",
        "length = self.block_shape[self.time_axis]",
        (T_GRID, T_LEVELS),
    ),
    Mutant(
        "a block of a grid that is not filled is over", GRID,
        "return begin, begin + length - 1",
        "return begin, (begin + length - 1).clamp(max=int(last.max()))",
        (T_GRID, T_CACHE, PROBLEMS),
    ),
    Mutant(
        "groups of nested spaces collide", DISJOINT,
        "groups += int(own.max()) + 1", "groups += 1",
        (T_DISJOINT,),
    ),
    Mutant(
        "points are split across their narrowest axis", POINTS,
        "wider = high - low > widest", "wider = (high - low < widest) | (widest < 0)",
        (T_POINTS,),
    ),
    Mutant(
        "a strided block begins at its second site", SAMPLING,
        "return structure.strided_blocks(self.step)",
        "return structure.strided_blocks(self.step).roll(1, 0)",
        ("tests/operators/test_gpa.py", T_CALLS, PROBLEMS),
    ),
    Mutant(
        "a site does not see its own time", VISIBLE,
        "[:, None] >= key_structure.time", "[:, None] > key_structure.time",
        (T_FULL, T_CAUSAL),
    ),
    # Selection
    Mutant(
        "the euclidean bias has the wrong sign", CALL,
        "return -scale * key", "return scale * key", (PROBLEMS,),
    ),
    Mutant(
        "a hidden key is very unlikely", CALL,
        "masked_fill(~key_mask[:, None], -torch.inf)", "masked_fill(~key_mask[:, None], -9.0)",
        (PROBLEMS,),
    ),
    Mutant(
        "a causal cell asks with all its queries", COARSE_LEVEL,
        "if not problem.causal:", "if True:",
        (T_CAUSAL, PROBLEMS),
    ),
    Mutant(
        "the sizes of ragged blocks count nothing", COARSE_LEVEL,
        "log_size = seen.log()", "log_size = seen.clamp(max=1).log()",
        (T_TOP_K, PROBLEMS),
    ),
    Mutant(
        "a block is named as often as it is forced", SLOTS,
        "again[..., 1:] = table[..., 1:] == table[..., :-1]", "pass",
        (T_RULES, PROBLEMS),
    ),
    Mutant(
        "forced blocks of other groups are read", SLOTS,
        "if structure.cell_group is not None and key_structure.group is not None:", "if False:",
        (T_DISJOINT, PROBLEMS),
    ),
    Mutant(
        "blocks that a cell sees from its second time on are not read", CANDIDATES,
        "torch.searchsorted(begins, until, right=True)", "torch.searchsorted(begins, until)",
        (T_CAUSAL, PROBLEMS),
    ),
    Mutant(
        "a share of the past counts the future", BASE,
        "count = _count_past if causal else _count_in_group", "count = _count_in_group",
        (PROBLEMS, T_CAUSAL),
    ),
    Mutant(
        "relevance that is not a number is kept", RELEVANCE,
        "mass.nan_to_num_(nan=0.0)", "mass.abs_()",
        (T_TOP_K, T_RULES, PROBLEMS),
    ),
    Mutant(
        "blocks of the cell's own time are no candidates", RELEVANCE,
        "past = of.cell_time[cells, None] >= of.key_time",
        "past = of.cell_time[cells, None] > of.key_time",
        (T_CAUSAL, PROBLEMS),
    ),
    Mutant(
        "relevance of logits forgets the bias of ragged cells", RELEVANCE,
        "(weight.sum(dim=2) * query.shape[2])[:, None, :, None]", "query.shape[2]",
        (T_TOP_K, PROBLEMS),
    ),
    Mutant(
        "of equals the highest id is kept", RANKING,
        "keep = above | (equal & (equal.cumsum(dim=-1) <= left))",
        "keep = above | (equal & (equal.flip(-1).cumsum(dim=-1).flip(-1) <= left))",
        (T_TOP_K, PROBLEMS),
    ),
    Mutant(
        "a share that is reached is exceeded", RANKING,
        "reached = before[..., :k] >= p * mass", "reached = before[..., :k] > p * mass",
        (T_RULES,),
    ),
    Mutant(
        "heads that share do not add up", RELEVANCE,
        'return {"head": heads, "group": key_heads, "all": 1}[share]',
        'return {"head": heads, "group": key_heads, "all": key_heads}[share]',
        (T_TOP_K, PROBLEMS),
    ),
    Mutant("0.29 of 100 is 28", TOP_RATIO, ".limit_denominator(_DENOMINATOR)", "", (T_RULES,)),
    Mutant(
        "a block named twice keeps the last bias", RULE,
        "again[..., 1:] = blocks[..., 1:] == blocks[..., :-1]",
        "again[..., :-1] = blocks[..., 1:] == blocks[..., :-1]",
        (T_RULES, T_LEARNT, PROBLEMS),
    ),
    Mutant(
        "each head reads what the next one selects", PER_HEAD,
        "own = head * selection.blocks.shape[1] // heads",
        "own = (head + 1) * selection.blocks.shape[1] // heads % selection.blocks.shape[1]",
        (T_RULES, PROBLEMS),
    ),
    Mutant(
        "own blocks are read that are wholly later", STATIC,
        "tables.append(visible(named, structure, key_structure, causal))", "tables.append(named)",
        (T_RULES, T_CAUSAL, PROBLEMS),
    ),
    Mutant(
        "learnt weights are biases without a logarithm", SOFT,
        "bias = chosen.masked_fill(empty, 1).log()", "bias = chosen.masked_fill(empty, 1) - 1",
        (T_LEARNT, PROBLEMS),
    ),
    Mutant(
        "tau is not found to the last bit", SOFT_TOP_K,
        "for _ in range(64):", "for _ in range(12):", (T_LEARNT,),
    ),
    Mutant(
        "noise that was drawn is divided by all samples", PERTURBED,
        "/ (sigma * (samples - 1))", "/ (sigma * samples)", (T_LEARNT,),
    ),
    Mutant(
        "a negative scale turns the box inside out", MULTI_LEVEL,
        "return query * math.copysign(1.0, coarse.scale), abs(coarse.scale)",
        "return query, abs(coarse.scale)",
        (T_LEVELS, PROBLEMS),
    ),
    Mutant(
        "blocks that are not seen widen the box", PYRAMID,
        "nodes.least.masked_fill(seen == 0, torch.inf)", "nodes.least", (T_LEVELS, PROBLEMS),
    ),
    Mutant(
        "straddling nodes are dropped", MULTI_LEVEL,
        "            if problem.causal:", "            if False:", (T_LEVELS, PROBLEMS),
    ),
    Mutant(
        "diagonals for antidiagonals", ANTIDIAGONAL,
        "problem.query.detach()).flip(3)", "problem.query.detach())",
        (T_RULES, PROBLEMS),
    ),
    # Attention
    Mutant(
        "the reference ignores the bias of slots", REFERENCE,
        "logits = logits + repeat(bias,", "logits = logits + 0 * repeat(bias,",
        (PROBLEMS, T_CALLS),
    ),
    Mutant(
        "a query that sees nothing has a log-sum-exp of 0", REFERENCE,
        "logsumexp(dim=-1, keepdim=True).masked_fill(~sees, -torch.inf)",
        "logsumexp(dim=-1, keepdim=True).masked_fill(~sees, 0)",
        (PROBLEMS, T_CALLS),
    ),
    Mutant(
        "empty slots are the first block", CELLS,
        "bias = bias.masked_fill(empty[..., None], -torch.inf)", "pass",
        (PROBLEMS, T_CHUNKED),
    ),
    Mutant(
        "the log-sum-exp has no gradient", ENGINE,
        "mean if grad_lse is None else mean - grad_lse[..., None]", "mean",
        (PROBLEMS, T_CHUNKED),
    ),
    Mutant(
        "chunks of tiles take the time of the first cells", CELLS,
        "return tiles % self.cells", "return torch.arange(len(tiles)) % self.cells",
        (T_CHUNKED, PROBLEMS),
    ),
    # Kernels
    Mutant(
        "a fully masked query has a log-sum-exp of 0", FORWARD,
        "b_lse = (b_max + tl.log2(b_sum))",
        "b_lse = (tl.where(m_masked, 0.0, b_max) + tl.log2(b_sum))",
        (T_KERNELS,),
    ),
    Mutant(
        "the running sum is not rescaled", FORWARD,
        "b_sum = b_sum * b_shrink + tl.sum(b_p, 1)", "b_sum = b_sum + tl.sum(b_p, 1)",
        (T_KERNELS,),
    ),
    Mutant(
        "small cells that share a program see each other's keys", TILES,
        "m_seen = m_seen & m_of", "pass",
        (T_SMALL_CELLS, T_KERNELS),
    ),
    Mutant(
        "kernels read keys of the query's own time no more", TILES,
        "[None, :] <= b_now[:, None])", "[None, :] < b_now[:, None])",
        (T_KERNELS,),
    ),
    Mutant(
        "the gradient of the log-sum-exp is lost in the kernels", BACKWARD,
        "b_mean -= tl.load(p_grad_lse + o_query, mask=m_row, other=0.0)", "pass", (T_KERNELS,),
    ),
    Mutant(
        "the last reader of a block has no gradient", INVERSE,
        "end = torch.minimum(first + longest, starts.gather(1, real + 1))",
        "end = torch.minimum(first + longest - 1, starts.gather(1, real + 1))",
        (T_INVERSE,),
    ),
    # Operators
    # Lives on a CPU, whose fused attention gives 0 for such a query by itself; not all kernels do.
    Mutant(
        "a query that sees nothing is the mean of all values", FULL,
        "if mask is not None:\n        out =", "if False:\n        out =", (T_FULL,),
    ),
    Mutant(
        "the coarse branch has no gradient through its gate", COARSE,
        "flow = grad * gate", "flow = grad", (T_COARSE,),
    ),
    Mutant(
        "landmarks of masked keys are means over all", NYSTROM,
        "sizes = sums(mask[:, None, :, None].to(x.dtype))",
        "sizes = sums(torch.ones_like(mask[:, None, :, None], dtype=x.dtype))",
        (T_NYSTROM,),
    ),
    Mutant(
        "random features are not uniform over rotations", PERFORMER,
        "rows = rows * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]", "rows = rows * 0.9",
        (T_PERFORMER,),
    ),
    Mutant(
        "both halves of the heads attend within blocks", MULTI_AXIS,
        "_groups(blocks.mT, key_blocks.mT)", "_groups(blocks, key_blocks)", (T_AXES,),
    ),
    # Cache and integrations
    Mutant(
        "the cell that a prompt has begun asks with its first site", CACHE,
        "query = self._asked[:, :, number * sites : (number + 1) * sites]",
        "query = self._asked[:, :, :sites]",
        (T_CACHE,),
    ),
    Mutant(
        "attention of the layer has no residual", PYG,
        "self.norm_attention(x + self.dropout(attended))",
        "self.norm_attention(self.dropout(attended))",
        (T_PYG,),
    ),
    Mutant(
        "message passing of the layer has no residual", PYG,
        "self.norm_conv(x + self.dropout(passed))", "self.norm_conv(self.dropout(passed))",
        (T_PYG,),
    ),
    Mutant(
        "graphs of a batch see each other", PYG,
        "return Clusters(block_of_site, cell_of_block, group=group)",
        "return Clusters(block_of_site, cell_of_block)",
        (T_PYG,),
    ),
    # Losses of the examples
    Mutant(
        "the generator wants to be found out", "examples/common/adversarial.py",
        "return F.softplus(-fake).mean()", "return F.softplus(fake).mean()", (T_POSE_LOSSES,),
    ),
    Mutant(
        "unknown places count in the correspondence", POSE_LOSSES,
        "weight = (weight * (weight > 0.5))", "weight = (weight * 0 + 1)", (T_POSE_LOSSES,),
    ),
    Mutant(
        "points move against the picture", POSE_DATA,
        "place.mT - shift", "place.mT + shift", (T_AFFINE,),
    ),
    Mutant(
        "texture has the sign of the filter", POSE_LOSSES,
        "F.avg_pool2d(x.abs(), WINDOW", "F.avg_pool2d(x, WINDOW", (T_TEXTURE,),
    ),
    Mutant(
        "both heads of a copy must be right", VIDEO_LOSSES,
        "(error * filling.found).amin(dim=0)", "(error * filling.found).amax(dim=0)",
        (T_VIDEO,),
    ),
)  # fmt: skip
