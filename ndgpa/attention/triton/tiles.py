"""What the attention kernels share: how a tile finds its rows, how logits are made, tile sizes.

Letters: b batch, t tiles of heads (heads that share a selection and a key head: GROUP of them), C
cells, X places of a cell, K slots of a cell, R places of a block, n sites, d and dv features.
Small cells share a program, MEMBERS neighbours at a time: its rows are all their sites, its slots
all their slots one cell after another, and a row sees those of its own cell.
Prefixes: p_ pointer, s_ stride, o_ offsets, m_ mask, b_ tile. Offsets into features are int64,
because the tables are.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.triton.inputs import LOG2_E as LOG2_E, Inputs

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def load_rows(p_rows, m_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr = 0):
    """Rows of features from FIRST on, zeros where masked and beyond the width: (rows, BLOCK)."""
    o_feature = FIRST + tl.arange(0, BLOCK)
    m = m_row[:, None]
    if WIDTH < FIRST + BLOCK:
        m = m & (o_feature < WIDTH)[None, :]
    return tl.load(p_rows[:, None] + o_feature[None, :], mask=m, other=0.0)


@triton.jit
def load_rest(p_rows, m_row, WIDTH: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """As `load_rows`; None where the first tile holds all features, which a BLOCK of 0 says."""
    b_rows = None
    if BLOCK > 0:
        b_rows = load_rows(p_rows, m_row, WIDTH, BLOCK, FIRST)
    return b_rows


@triton.jit
def store_rows(
    p_rows, b_rows, m_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr = 0
):
    """The inverse of `load_rows`, in the dtype of the pointer."""
    o_feature = FIRST + tl.arange(0, BLOCK)
    m = m_row[:, None]
    if WIDTH < FIRST + BLOCK:
        m = m & (o_feature < WIDTH)[None, :]
    tl.store(p_rows[:, None] + o_feature[None, :], b_rows.to(p_rows.dtype.element_ty), mask=m)


@triton.jit
def place_of_program(C, ROW_TILES: tl.constexpr, MEMBERS: tl.constexpr):
    """What a program computes: its tile of rows, the first of its cells, how many there are, its
    tile of heads, and its batch.

    Axis 0 of the launch runs over tiles of rows, cells and batches, axis 1 over tiles of heads.
    """
    program = tl.program_id(0)
    programs = tl.cdiv(C, MEMBERS)
    b = program // (ROW_TILES * programs)
    cell = program // ROW_TILES - b * programs
    cell = cell.to(tl.int64) * MEMBERS
    cells = MEMBERS
    if MEMBERS > 1:
        cells = tl.minimum(C - cell, MEMBERS).to(tl.int32)
    return program % ROW_TILES, cell, cells, tl.program_id(1).to(tl.int64), b.to(tl.int64)


@triton.jit
def query_rows(
    p_cell_sites, o_row, m_row, X: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr
):
    """Rows of a cell, head after head: the head within the group, the site, and which rows exist.

    `p_cell_sites` is where the sites of the cell, X of them, begin (those of several small cells
    follow on each other). A row that does not exist points at site 0; with WHOLE, all do.
    """
    if GROUP == 1:
        o_head = tl.zeros((1,), tl.int64)
        o_place = o_row
    else:
        o_head = o_row // X
        o_place = o_row % X
    if WHOLE:
        return o_head, tl.load(p_cell_sites + o_place).to(tl.int32).to(tl.int64), m_row
    o_site = tl.load(p_cell_sites + o_place, mask=m_row, other=-1).to(tl.int32)
    return o_head, tl.maximum(o_site, 0).to(tl.int64), o_site >= 0


@triton.jit
def key_rows(
    p_blocks,
    p_key_sites,
    i,
    K,
    R: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_PER_SLOT: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The i-th tile of keys of a cell: the slot of each row, its site, and which rows exist.

    A tile holds whole slots, as many as fit, or a slot fills several tiles. With EVEN, no slot and
    no place of a block is empty; with WHOLE besides, no tile has rows left over.
    """
    o_key = tl.arange(0, KEYS)
    if TILES_PER_SLOT == 1:
        o_slot = i * (KEYS // R) + o_key // R
        o_place = o_key % R
        m_key = (o_key < (KEYS // R) * R) & (o_slot < K)
    else:
        o_slot = i // TILES_PER_SLOT + tl.zeros_like(o_key)
        o_place = (i % TILES_PER_SLOT) * KEYS + o_key
        m_key = (o_place < R) & (o_slot < K)
    if WHOLE:
        m_key = tl.full((KEYS,), 1, tl.int1)
        b_block = tl.load(p_blocks + o_slot)
    else:
        b_block = tl.load(p_blocks + o_slot, mask=m_key, other=-1)
    # Also where none should be empty: features that are not finite may break the promise.
    p_sites = p_key_sites + tl.maximum(b_block, 0).to(tl.int64) * R + o_place
    if WHOLE:
        o_site = tl.load(p_sites)
    else:
        if not EVEN:
            m_key = m_key & (b_block >= 0)
        o_site = tl.load(p_sites, mask=m_key, other=-1)
        if not EVEN:
            m_key = o_site >= 0
        o_site = tl.maximum(o_site, 0)
    return o_slot, o_site.to(tl.int32).to(tl.int64), m_key


@triton.jit
def keys_seen(
    p_slot_bias,
    p_key_bias,
    p_key_time,
    b_now,
    slots,
    keys,
    K,
    o_slot,
    o_key,
    o_member,
    m_key,
    MEMBERS: tl.constexpr,
):
    """Which keys of a tile to load, which rows see them, and what is added to logits in base 2.

    (KEYS,), (1 or ROWS, KEYS), (KEYS,). `slots` and `keys` are where the slots of the cell and the
    keys of the head begin. Any of the pointers may be None. A key whose bias is NaN is not loaded,
    so NaN reaches the rows that see it and no other.
    """
    b_bias = tl.zeros(o_key.shape, tl.float32)
    m_load = m_key
    if p_key_bias is not None:
        b_bias = tl.load(p_key_bias + keys + o_key, mask=m_key, other=float("-inf")) * _LOG2_E
        m_key = m_key & (b_bias != float("-inf"))
        m_load = m_key & (b_bias == b_bias)
    if p_slot_bias is not None:
        b_bias += tl.load(p_slot_bias + slots + o_slot, mask=m_key, other=0.0) * _LOG2_E
    m_seen = m_key[None, :]
    if MEMBERS > 1:
        o_first = o_member * K
        m_of = (o_slot[None, :] >= o_first[:, None]) & (o_slot[None, :] < (o_first + K)[:, None])
        m_seen = m_seen & m_of
    if p_key_time is not None:
        m_seen = m_seen & (tl.load(p_key_time + o_key)[None, :] <= b_now[:, None])
    return m_load, m_seen, b_bias


@triton.jit
def finite(b_rows):
    """Rows with zeros where they are not finite, and which rows were not."""
    m_bad = (b_rows != b_rows) | (tl.abs(b_rows) == float("inf"))
    return tl.where(m_bad, 0.0, b_rows).to(b_rows.dtype), tl.max(m_bad.to(tl.int32), 1) > 0


@triton.jit
def products(b_a, b_b, b_a_rest, b_b_rest, PRECISION: tl.constexpr):
    """Of the rows of a with the rows of b, whose last features may be apart; else None."""
    b_s = tl.dot(b_a, tl.trans(b_b), input_precision=PRECISION)
    if b_a_rest is not None:
        b_s = tl.dot(b_a_rest, tl.trans(b_b_rest), b_s, input_precision=PRECISION)
    return b_s


@triton.jit
def logits(b_s, scale, b_bias, m_seen, FOLD: tl.constexpr):
    """Logits in base 2 of products of queries and keys; -inf where one is not seen.

    With FOLD there are no biases and the scale is positive: `weights` multiplies by it.
    """
    if not FOLD:
        b_s = b_s * scale + b_bias
    return tl.where(m_seen, b_s, float("-inf"))


@triton.jit
def weights(b_s, scale, b_max, FOLD: tl.constexpr):
    """exp2 of the logits less the largest, bit for bit the same in forward and backward."""
    if FOLD:
        return tl.exp2(tl.fma(b_s, scale, -b_max))
    return tl.exp2(b_s - b_max)


@dataclass(frozen=True)
class Tile:
    """What one program holds at a time: rows of queries, rows of keys, and how it is launched.

    members: How many small cells share a program.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    members: int = 1


@dataclass(frozen=True)
class Problem:
    """What the choice of a tile depends on.

    rows: queries of a cell, all heads that share its selection and key head. cells: how many there
    are. sites: of a block. slots: of a cell. wide: features, padded. size: bytes of one.
    """

    rows: int
    cells: int
    sites: int
    slots: int
    wide: int
    size: int
    chip: "Chip"

    @property
    def members(self) -> int:
        """How many cells fill the 16 rows that a matrix product has at least."""
        return max(1, min(LEAST_ROWS // self.rows, self.cells))

    @property
    def joined(self) -> "Problem":
        """The problem of those that share a program."""
        count = self.members
        return replace(self, rows=count * self.rows, slots=count * self.slots)


@dataclass(frozen=True)
class Chip:
    """What the choice of a tile depends on besides.

    generation: the major number of the compute capability; 0 for others than NVIDIA's. shared_kib:
    shared memory that one program may have (CUDA C++ Programming Guide, table of compute
    capabilities; 64 KiB on the AMD chips before gfx950).
    """

    generation: int
    shared_kib: int

    @classmethod
    def of(cls, device: torch.device) -> "Chip":
        if device.type == "cpu":
            return cls(generation=0, shared_kib=163)
        if torch.version.hip is not None:
            return cls(generation=0, shared_kib=64)
        capability = torch.cuda.get_device_capability(device)
        shared_kib = {(8, 0): 163, (8, 7): 163}.get(capability, 99)
        return cls(capability[0], 227 if capability[0] in (9, 10) else shared_kib)

    @property
    def hopper(self) -> bool:
        """Whether the matrix units of four warps take operands from shared memory (data center
        chips from Hopper on), which leaves registers for larger tiles."""
        return self.generation in (9, 10)

    @property
    def is_small(self) -> bool:
        return self.shared_kib < 128


LEAST_ROWS = 16


def problem_of(given: Inputs) -> Problem:
    query, (cells, places), sites = given.query, given.cell_sites.shape, given.key_sites.shape[1]
    wide = max(padded_width(query.shape[3]), padded_width(given.value.shape[3]))
    rows, slots = query.shape[1] // given.tiles * places, given.blocks.shape[3]
    chip = Chip.of(query.device)
    return Problem(rows, cells, sites, slots, wide, query.element_size(), chip)


def forward_tile(problem: Problem) -> Tile:
    members, problem = problem.members, problem.joined
    wide, keys = problem.wide, problem.sites * problem.slots
    if problem.size == 4:  # no matrix units: everything is in registers
        row, key, warps, stages = {
            64: (32, 32, 4, 2),
            128: (16, 16, 4, 2),
            256: (16, 32, 8, 1),
        }[max(wide, 64)]
        return Tile(_fit(problem.rows, 16, row), _fit(keys, 16, key), warps, stages, members)
    row = _fit(problem.rows, 16, 128 if wide <= 128 else 64)
    key = _fit(keys, 16, 64 if wide <= 128 else 32)
    warps = {16: 1 if members == 1 else 2, 32: 2, 64: 4, 128: 8}[row]
    if wide == 256 or (wide == 128 and (members > 1 or not problem.chip.hopper)):
        warps = min(2 * warps, 8)
    return Tile(row, key, warps, 3 if wide <= 128 else 2, members)


def query_major_tile(problem: Problem) -> Tile:
    members, problem = problem.members, problem.joined
    wide, keys = problem.wide, problem.sites * problem.slots
    if problem.size == 4:
        key = _fit(keys, 16, 32 if wide <= 64 else 16)
        return Tile(_fit(problem.rows, 16, 16), key, 4 if wide <= 64 else 8, 1, members)
    hopper = problem.chip.hopper and wide <= 128 and problem.rows > 32
    row = _fit(problem.rows, 16, 32 if wide > 128 and problem.chip.is_small else 64)
    key = _fit(keys, 16, 64 if wide <= 64 or hopper else 32)
    warps = {16: 1 if members == 1 else 2, 32: 2, 64: 4}[row]
    if wide > 64 and not hopper:
        warps = min(2 * warps, 8)
    return Tile(row, key, warps, 2, members)


def key_major_tile(problem: Problem) -> Tile:
    """Any number of readers fills the rows of a tile."""
    wide, hopper = problem.wide, problem.chip.hopper
    if problem.size == 4:
        return Tile(16, _fit(problem.sites, 16, 16), 4, 1)
    key = _fit(problem.sites, 16, 64 if wide <= 128 else 32)
    if hopper and wide <= 128:  # four warps are one matrix instruction of 64 rows
        large = problem.chip.generation == 9 and wide > 64 and key == 64
        return Tile(128, key, 8, 2) if large else Tile(64, key, 4, 2)
    warps = 8 if key == 64 or (wide > 64 and key > 16) else 4
    return Tile(64 if wide <= 64 else 32, key, warps, 2)


def _fit(count: int, least: int, most: int) -> int:
    """The power of two that holds `count`, within limits."""
    return min(max(padded(count), least), most)


def padded(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def padded_width(count: int) -> int:
    """Features of a tile: a power of two that the matrix units take."""
    return max(padded(count), 16)


def split_width(count: int) -> tuple[int, int]:
    """Features of a first and of a second tile, where two powers of two are less than one."""
    whole = padded_width(count)
    rest = padded_width(count - whole // 2)
    return (whole // 2, rest) if whole > 64 and whole // 2 + rest < whole else (whole, 0)


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def tiles_per_slot(sites: int, keys: int) -> int:
    return ceil_div(sites, keys)


def key_tiles(slots: int, sites: int, keys: int) -> int:
    """How many tiles of keys a cell reads."""
    per_slot = tiles_per_slot(sites, keys)
    return slots * per_slot if per_slot > 1 else ceil_div(slots, keys // sites)


def precision(dtype: torch.dtype) -> str:
    """How float32 tiles are multiplied: as PyTorch multiplies float32 matrices, so exactly unless
    `torch.backends.cuda.matmul.fp32_precision` says otherwise; always so on AMD chips, few of which
    have tf32."""
    fast = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if fast and torch.version.hip is None else "ieee"


def rows_strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, heads and sites; features must lie side by side."""
    assert x.stride(3) == 1 or x.shape[3] == 1
    return x.stride(0), x.stride(1), x.stride(2)
