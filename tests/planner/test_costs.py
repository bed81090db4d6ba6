"""Costs are torchrec's own, shard by shard."""

import pytest
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints

from tests.support.planner_cases import cpus, gpus, module_of, random_tables
from torchrec_xd.distributed.exchange import CommunicationSettings
from torchrec_xd.distributed.sharders import sharders, torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs.options import cost_tables
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.module_tables import module_tables
from torchrec_xd.planner.inputs.tables import TableList, TableSpec


@pytest.mark.parametrize(("cluster", "seed"), [(gpus(1), 0), (gpus(4), 1), (gpus(24), 2), (cpus(2), 3), (cpus(3), 4)])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
def test_every_shard_costs_what_torchrec_says(cluster, seed, optimizer):
    listed = random_tables(8, seed)
    module = module_of(listed, "fp16" if seed % 2 else "fp32", optimizer)
    tables = module_tables(module, torchrec_sharders())
    ours = {
        (table.fqn, option.sharding_type, option.kernel, option.num_shards): option
        for table, options in zip(tables, cost_tables(tables, cluster, 512, listed.pooling()), strict=True)
        for option in options
        if option.cache_load_factor in (None, UVM_CACHING_RATIO)
    }
    lengths = {t.name: [listed.pooling()[f] for f in t.features] for t in tables}
    theirs = EmbeddingEnumerator(
        topology=cluster.topology(),
        batch_size=512,
        constraints={name: ParameterConstraints(pooling_factors=factors) for name, factors in lengths.items()},
    ).enumerate(module, torchrec_sharders())
    compared = 0
    for option in theirs:
        if option.sharding_type in ("column_wise", "table_column_wise") and option.num_shards == 1:
            continue  # a whole table under another name
        if option.num_shards > cluster.world_size:
            continue  # several column shards on one rank
        if option.sharding_type == "table_column_wise" and option.num_shards > cluster.node_size:
            continue
        mine = ours[option.fqn, option.sharding_type, option.compute_kernel, option.num_shards]
        shards = [run for run in mine.runs for _ in range(run.count)]
        assert [s.perf for s in option.shards] == [run.perf for run in shards]
        assert [s.storage for s in option.shards] == [run.storage for run in shards]
        assert [s.size for s in option.shards] == [[run.rows, run.dim] for run in shards]
        compared += 1
    assert compared >= 2 * len(tables)


def test_a_weighted_table_costs_what_torchrec_says_and_more_than_a_plain_one():
    listed = TableList(tables=tuple(TableSpec(name=n, rows=10**6, dim=64, weighted=n == "w") for n in ("p", "w")))
    plain, weighted = module_tables(module_of(listed), torchrec_sharders())
    assert (plain.path, weighted.path) == ("bags", "weighted_bags")
    both = cost_tables([plain, weighted], gpus(4), 512, {"p": 20.0, "w": 20.0})
    for one, other in zip(*both, strict=True):
        assert one.label == other.label
        assert one.total_ms < other.total_ms
    theirs = EmbeddingEnumerator(
        topology=gpus(4).topology(),
        batch_size=512,
        constraints={name: ParameterConstraints(pooling_factors=[20.0]) for name in ("p", "w")},
    ).enumerate(module_of(listed), torchrec_sharders())
    found = {(o.name, o.sharding_type, o.compute_kernel): o.shards[0].perf for o in theirs}
    for table, options in zip((plain, weighted), both, strict=True):
        for option in options:
            if option.column_dim is None and option.cache_load_factor in (None, UVM_CACHING_RATIO):
                assert option.runs[0].perf == found[table.name, option.sharding_type, option.kernel]


def test_narrow_columns_cost_what_torchrec_says_when_asked_for_them():
    listed = TableList(tables=(TableSpec(name="wide", rows=1000, dim=256),))
    module = module_of(listed)
    tables = module_tables(module, torchrec_sharders())
    (options,) = cost_tables(tables, gpus(8), 512, {})
    for least in (32, 64, 128):
        theirs = EmbeddingEnumerator(
            topology=gpus(8).topology(),
            batch_size=512,
            constraints={"wide": ParameterConstraints(sharding_types=["column_wise"], min_partition=least)},
        ).enumerate(module, torchrec_sharders())
        (fused,) = [o for o in theirs if o.compute_kernel == "fused"]
        (mine,) = [o for o in options if o.label == f"column_wise[{least}]/fused"]
        assert mine.total_ms == pytest.approx(sum(s.perf.total for s in fused.shards))
        assert mine.num_shards == fused.num_shards == 256 // least


def test_constraints_choose_types_and_kernels():
    tables = module_tables(module_of(random_tables(3, 0)), torchrec_sharders())
    only = Constraint(tables=("t1",), sharding_types=("row_wise",), kernels=("fused",))
    ban = Constraint(tables=("t*",), forbid=("fused_uvm", "data_parallel"))
    options = cost_tables(tables, gpus(8), 512, {}, (only, ban))
    by_name = dict(zip([t.name for t in tables], options, strict=True))
    assert [o.label for o in by_name["t1"]] == ["row_wise/fused"]
    assert {o.kernel for o in by_name["t0"]} == {"fused", "fused_uvm_caching"}
    assert "data_parallel" not in {o.sharding_type for o in by_name["t0"]}


def test_grid_sharding_only_on_request():
    listed = TableList(tables=(TableSpec(name="wide", rows=1000, dim=256),))
    tables = module_tables(module_of(listed), torchrec_sharders())
    (free,) = cost_tables(tables, gpus(16), 512, {})
    assert "grid_shard" not in {o.sharding_type for o in free}
    (asked,) = cost_tables(tables, gpus(16), 512, {}, (Constraint(tables=("*",), sharding_types=("grid_shard",)),))
    assert {o.sharding_type for o in asked} == {"grid_shard"}
    assert {o.num_shards for o in asked} == {16}


def test_constraints_that_leave_nothing_name_the_table_and_the_choices():
    tables = module_tables(module_of(random_tables(2, 0)), torchrec_sharders())
    constraint = Constraint(tables=("t1",), sharding_types=("row_wise",))
    with pytest.raises(UserError, match=r"no way to shard table 't1'; 'cpu' has: column_wise/fused"):
        cost_tables(tables, cpus(2), 512, {}, (constraint,))


def test_what_is_exchanged_in_fewer_bits_costs_by_its_bytes():
    module = module_of(random_tables(4, 5))

    def exchange(**communication):
        tables = module_tables(module, sharders(CommunicationSettings(**communication)))
        runs = [run for options in cost_tables(tables, gpus(4), 512, {}) for o in options for run in o.runs]
        return sum(run.perf.fwd_comms for run in runs), sum(run.perf.bwd_comms for run in runs)

    forward, backward = exchange()
    assert exchange(forward="fp16") == pytest.approx((forward / 2, backward))
    assert exchange(forward="int8") == pytest.approx((forward / 4, backward))
    assert exchange(backward="bf16")[1] < backward
