"""GPA over many processes: each holds a run of cells and fetches the blocks that they select.

    part = ndgpa.distributed.shard(ndgpa.Image((256, 256), block=4, cell=2), mesh["context"])
    out = ndgpa.distributed.gpa(part.take(query), part.take(key), part.take(value), part, 12)

Import it by name: `import ndgpa.distributed`. See docs/distributed.md.
"""

from ndgpa.distributed.functional import gpa as gpa
from ndgpa.distributed.heads import (
    heads_to_sites as heads_to_sites,
    sites_to_heads as sites_to_heads,
)
from ndgpa.distributed.layout import Layout as Layout, lay_out as lay_out
from ndgpa.distributed.operator import ContextParallel as ContextParallel
from ndgpa.distributed.part import Part as Part, shard as shard
from ndgpa.distributed.placement import (
    ByTraffic as ByTraffic,
    Hilbert as Hilbert,
    InOrder as InOrder,
    Morton as Morton,
    Placement as Placement,
    traffic_of as traffic_of,
)
from ndgpa.distributed.traffic import (
    CountBytes as CountBytes,
    Foretold as Foretold,
    foretell as foretell,
)
