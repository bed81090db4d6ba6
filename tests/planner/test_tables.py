"""Table lists and profiles: what is read, and where faults are said to be."""

from pathlib import Path

import pytest

from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.planner.inputs.cluster import Cluster, load_cluster
from torchrec_xd.planner.inputs.table_lists import load_constraints, load_tables
from torchrec_xd.planner.inputs.tables import TableSpec, schema_tables
from torchrec_xd.schema import Domain, Schema, Task

CONFIGS = Path(__file__).parents[2] / "configs"


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_csv_and_yaml_say_the_same(tmp_path):
    as_csv = written(
        tmp_path,
        "t.csv",
        "name,rows,dim,features,pooling,sequence\nuser,1000,64,,,\nitem,2000,32,item;recent,1;20,\nhist,50,8,3,2.5,true\n",
    )
    as_yaml = written(
        tmp_path,
        "t.yaml",
        "tables:\n"
        "- {name: user, rows: 1000, dim: 64}\n"
        "- {name: item, rows: 2000, dim: 32, features: [item, recent], pooling: [1, 20]}\n"
        "- {name: hist, rows: 50, dim: 8, features: 3, pooling: 2.5, sequence: true}\n",
    )
    listed = load_tables(as_csv)
    assert listed == load_tables(as_yaml)
    assert listed.pooling() == {"user": 1, "item": 1, "recent": 20, "hist_0": 2.5, "hist_1": 2.5, "hist_2": 2.5}


def test_a_bare_yaml_list_is_a_table_list(tmp_path):
    path = written(tmp_path, "t.yaml", "- name: user\n  rows: 10\n  dim: 4\n")
    assert [t.name for t in load_tables(path).tables] == ["user"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("t.csv", "name,rows,dim\na,1,4\nb,x,4\n", r"t\.csv:3: 'rows'.*got 'x'"),
        ("t.csv", "name,rows,dim\na,1\n", r"t\.csv:2: 2 cells under a header of 3"),
        ("t.csv", "name,rows,width\na,1,4\n", r"t\.csv:2: unknown key 'width'"),
        ("t.csv", "name,rows,dim\na,1,4\n\na,2,8\n", r"t\.csv:4: table 'a' is already on line 2"),
        ("t.csv", "name,rows,dim\n", "holds no table"),
        ("t.yaml", "tables:\n- {name: a, rows: 1, dim: 4}\n- {name: b, rows: 0, dim: 4}\n", r"t\.yaml:3: 'rows'"),
        ("t.yaml", "tables:\n- {name: a, rows: 1, dim: 6}\n", r"t\.yaml:2: .*dim 6 of table 'a' is no multiple of 4"),
        ("t.yaml", "tables:\n- {name: a, rows: 1, dim: 4, pooling: [1, 2]}\n", r"t\.yaml:2: .*1 features and 2 pool"),
        ("t.yaml", "tables:\n- {name: a, rows: 1, dim: 4, features: 0}\n", r"t\.yaml:2: .*at least one feature"),
        ("t.yaml", "tables:\n- {name: a, rows: 1, dim: 4, pooling: -1}\n", r"t\.yaml:2: 'pooling.0'.*greater than 0"),
        (
            "t.yaml",
            "tables:\n- {name: a, rows: 1, dim: 4, sequence: true, weighted: true}\n",
            "weights belong to pooled",
        ),
        ("t.yaml", "tables:\n- oops\n", r"t\.yaml:2: expected a mapping with name, rows, dim"),
        ("t.yaml", "tables: {a: 1}\n", r"t\.yaml:1: expected a list of tables, got {'a': 1}"),
        ("t.yaml", "hello\n", "expected a list of tables, or a mapping with the key 'tables'"),
        ("t.yaml", "- name: a\n  rows: 1\n  rows: 2\n  dim: 4\n", r"t\.yaml:3: key 'rows' is written twice"),
        ("t.yaml", "? [a]\n: 1\ntables: []\n", r"t\.yaml:1: key \['a'\] is a list"),
        ("t.yaml", "- {name: a.b, rows: 1, dim: 4}\n", r"t\.yaml:1: .*table 'a\.b': .*rename the table"),
        ("t.csv", "name,rows,dim\nitems,1,4\n", r"t\.csv:2: .*table 'items': .*rename the table"),
        (
            "t.csv",
            "name,rows,dim\na,99999999999999999999,4\n",
            r"t\.csv:2: 'rows': .*less than or equal to 281474976710656",
        ),
        ("t.csv", "\nname,rows,dim,dim\na,1,4,8\n", r"t\.csv:2: columns written twice: dim"),
        ("t.csv", "name,rows,dim,features\na,1,4,f;f\n", r"t\.csv:2: .*names a feature twice"),
        ("t.csv", "name,rows,dim,features\na,1,4,f;\n", r"t\.csv:2: 'features\.1'"),
        (
            "t.yaml",
            "- {name: a, rows: 1, dim: 4, features: [f], pooling: 2}\n- {name: b, rows: 1, dim: 4, features: [f]}\n",
            r"t\.yaml:2: feature 'f' has pooling 1 here and 2 on line 1",
        ),
        ("t.yaml", "tabels:\n- {name: a, rows: 1, dim: 4}\n", r"t\.yaml:1: unknown key 'tabels'"),
        ("t.yaml", "tables: [\n", ":2: not valid YAML"),
        ("t.txt", "", "a .csv or a .yaml file"),
        (
            "t.yaml",
            "tables:\n- {name: a, rows: 1, dim: 4}\nconstraints:\n- {tables: [a], forbid: [rowwise]}\n",
            r"t\.yaml:4: .*unknown sharding type or kernel 'rowwise'; valid: data_parallel",
        ),
        (
            "t.yaml",
            "tables:\n- {name: a, rows: 1, dim: 4}\nconstraints: 5\n",
            r"t\.yaml:3: .*a list of constraints, got 5",
        ),
        (
            "t.yaml",
            "tables:\n- {name: a, rows: 1, dim: 4}\nconstraints:\n- {tabels: [a], together: true}\n",
            r"t\.yaml:4: unknown key 'tabels'; did you mean 'tables'\?",
        ),
    ],
)
def test_faults_name_file_line_and_rule(tmp_path, name, text, fault):
    with pytest.raises(UserError, match=f"(?s){fault}"):
        load_tables(written(tmp_path, name, text))


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfname,rows,dim\na,10,4\n")
    assert load_tables(path).tables == (TableSpec(name="a", rows=10, dim=4),)


def test_constraints_of_their_own_file_name_its_lines(tmp_path):
    good = written(tmp_path, "c.yaml", "constraints:\n- {tables: [a], ranks: [1]}\n- {tables: [b], together: true}\n")
    assert [c.tables for c in load_constraints(good)] == [("a",), ("b",)]
    for text, fault in {
        "constraints:\n- {tables: [a], together: true}\n- {tables: [a]}\n": r"c\.yaml:3: .*needs one of",
        "tables: []\n": r"c\.yaml:1: unknown key 'tables'; valid keys: constraints",
        "constraints: null\n": r"c\.yaml:1: expected a list of constraints, got None",
    }.items():
        with pytest.raises(UserError, match=fault):
            load_constraints(written(tmp_path, "c.yaml", text))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_tables(tmp_path / "none.csv")


def test_tables_of_a_schema_count_ids_per_row():
    schema = Schema(
        name="s",
        user="user",
        domains={"a": Domain(role="target", train="a")},
        tasks=(Task(label="y", domain="a"),),
        features=(
            Feature(column="user", kind="id", group="user", rows=100),
            Feature(column="tags", kind="bag", group="shared", rows=50),
            Feature(column="hist", kind="sequence", group="sequence", rows=70, length=12, table="item"),
            Feature(column="item", kind="id", group="shared", rows=70),
            Feature(column="price", kind="dense", group="shared"),
        ),
        dim=16,
    )
    listed = schema_tables(schema, {"tags": 3.5})
    assert listed.tables == (
        TableSpec(name="t_user", rows=100, dim=16, features=("user",), pooling=(1.0,)),
        TableSpec(name="t_tags", rows=50, dim=16, features=("tags",), pooling=(3.5,)),
        TableSpec(name="t_item", rows=70, dim=16, features=("hist", "item"), pooling=(12.0, 1.0), sequence=True),
    )
    with pytest.raises(UserError, match="pooling of 'price': no such feature with a table"):
        schema_tables(schema, {"price": 2})


@pytest.mark.parametrize("path", sorted((CONFIGS / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_makes_a_topology(path):
    cluster = load_cluster(path.stem, CONFIGS / "clusters")
    topology = cluster.with_changes(world_size=4 * cluster.ranks_per_node).topology()
    assert topology.world_size == 4 * cluster.ranks_per_node
    assert topology.inter_host_bw == pytest.approx(cluster.inter_node_gib_s * 1024**3 / 1000)
    assert topology.devices[0].storage.hbm == cluster.hbm_bytes
    assert topology.devices[0].storage.ddr == cluster.ddr_bytes


@pytest.mark.parametrize("path", sorted((CONFIGS / "tables").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_table_list_reads(path):
    assert load_tables(path).tables


def test_unknown_profiles_and_uneven_nodes_are_errors():
    with pytest.raises(UserError, match=r"unknown cluster '9xH100': .* one of: .*8xH100"):
        load_cluster("9xH100", CONFIGS / "clusters")
    with pytest.raises(UserError, match="world_size 12 is no multiple of ranks_per_node 8"):
        load_cluster("8xH100", CONFIGS / "clusters").with_changes(world_size=12)
    with pytest.raises(UserError, match="'hbm_gib'"):
        Cluster(device="cuda", world_size=1, ranks_per_node=1, hbm_gib=1, ddr_gib=1).with_changes(hbm_gib=0)


def test_reservation_keeps_memory_of_the_tables_device_free():
    gpu = Cluster(device="cuda", world_size=1, ranks_per_node=1, hbm_gib=10, ddr_gib=20, reservation=0.25)
    assert (gpu.hbm_bytes, gpu.ddr_bytes) == (int(7.5 * 2**30), 20 * 2**30)
    cpu = Cluster(device="cpu", world_size=1, ranks_per_node=1, hbm_gib=0, ddr_gib=20, reservation=0.25)
    assert (cpu.hbm_bytes, cpu.ddr_bytes) == (0, 15 * 2**30)
