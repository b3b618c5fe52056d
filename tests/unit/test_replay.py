"""Files of other people's scored responses become the arrays they hold, or an error that helps."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overopt.base.errors import DataError, StoreError
from overopt.pools import replay, replay_layout
from overopt.pools.best_of_n import best_of_n
from overopt.pools.replay import open_replay, read_replay
from overopt.pools.replay_layout import ROW_NUMBER, ReplayColumns

P, N = 5, 7
RNG = np.random.default_rng(0)
PROXY, GOLD = RNG.normal(size=(2, P, N))
TEXTS = [[f"text {i % 4}" for i in range(N)] for _ in range(P)]


def list_rows():
    return [
        {
            "instruction": "Write a story.",
            "input": f"about {p}",
            "answers": TEXTS[p],
            "gold_scores": GOLD[p].tolist(),
            "proxy_scores": PROXY[p].tolist(),
        }
        for p in range(P)
    ]


def long_rows():
    """Prompts interleaved, as when a sampler writes one response of each prompt at a time."""
    return [
        {
            "prompt_id": f"p{p}",
            "response_id": i,
            "response": TEXTS[p][i],
            "proxy_a": PROXY[p, i],
            "proxy_b": -PROXY[p, i],
            "gold": GOLD[p, i],
            "length": 10 * p + i,
        }
        for i in range(N)
        for p in range(P)
    ]


def write(folder, rows, suffix):
    path = folder / f"table.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch_rows", [2, 1_000])
def test_both_layouts_give_the_arrays_back(tmp_path, monkeypatch, suffix, cached, batch_rows):
    monkeypatch.setattr(replay_layout, "BATCH_ROWS", {"lists": batch_rows, "long": batch_rows})
    for layout, rows in (("lists", list_rows()), ("long", long_rows())):
        folder = tmp_path / layout
        folder.mkdir()
        path = write(folder, rows, suffix)
        cache = folder / "cache" if cached else None
        table = read_replay(path, cache_dir=cache, find_duplicates=True)
        assert (table.n_prompts, table.pool_size) == (P, N)
        np.testing.assert_array_equal(table.gold, GOLD)
        np.testing.assert_array_equal(next(iter(table.proxies.values())), PROXY)
        np.testing.assert_array_equal(table.duplicate_ids, np.tile(np.arange(N) % 4, (P, 1)))
        assert isinstance(table.gold, np.memmap) == cached
        assert not table.gold.flags.writeable
        if layout == "long":
            assert table.prompt_ids == tuple(f"p{p}" for p in range(P))
            assert list(table.proxies) == ["proxy_a", "proxy_b"]
            np.testing.assert_array_equal(table.proxies["proxy_b"], -PROXY)
            assert table.length[2, 3] == 23
        else:
            assert table.prompt_ids[1] == "Write a story.\nabout 1"
            assert table.length is None


def test_the_cache_opens_without_the_source_and_enters_the_estimators(tmp_path):
    path = write(tmp_path, list_rows(), "parquet")
    read_replay(path, cache_dir=tmp_path / "cache")
    path.unlink()
    table = open_replay(tmp_path / "cache")
    result = best_of_n(table.proxies["proxy_scores"], {"gold": table.gold}, [1, 4])["gold"]
    np.testing.assert_array_equal(result.mean, best_of_n(PROXY, GOLD, [1, 4]).mean)
    assert table.duplicate_ids is None


def test_a_cache_is_neither_overwritten_nor_trusted_when_incomplete(tmp_path):
    path = write(tmp_path, list_rows(), "jsonl")
    cache = tmp_path / "cache"
    with pytest.raises(StoreError, match="no complete replay table"):
        open_replay(cache)
    read_replay(path, cache_dir=cache)
    with pytest.raises(StoreError, match="already holds a replay table"):
        read_replay(path, cache_dir=cache)
    (cache / "column_000.npy").write_bytes(b"damaged")
    with pytest.raises(StoreError, match="column_000.npy"):
        open_replay(cache)
    manifest = json.loads((cache / replay.MANIFEST).read_text())
    (cache / replay.MANIFEST).write_text(json.dumps(manifest | {"format_version": 0}))
    with pytest.raises(StoreError, match="format_version 0"):
        open_replay(cache)


def test_a_read_that_fails_leaves_no_table(tmp_path):
    rows = list_rows()
    rows[4]["gold_scores"][0] = float("nan")
    path = write(tmp_path, rows, "jsonl")
    with pytest.raises(DataError):
        read_replay(path, cache_dir=tmp_path / "cache")
    with pytest.raises(StoreError):
        open_replay(tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_pool_size_keeps_the_first_of_each_prompt(tmp_path, suffix):
    rows = list_rows()
    for name in ("answers", "gold_scores", "proxy_scores"):
        rows[3][name] = rows[3][name][:4]
    path = write(tmp_path, rows, suffix)
    with pytest.raises(DataError, match="'Write a story.\\\\nabout 3' has 4 .*pass pool_size=4"):
        read_replay(path)
    with pytest.raises(DataError, match="pool_size: 5 exceeds the 4"):
        read_replay(path, pool_size=5)
    np.testing.assert_array_equal(read_replay(path, pool_size=4).gold, GOLD[:, :4])


def test_pool_size_in_the_long_layout(tmp_path):
    path = write(tmp_path, long_rows()[:-1], "parquet")  # the last prompt lacks one response
    with pytest.raises(DataError, match="'p4' has 6 responses .* pass pool_size=6"):
        read_replay(path)
    np.testing.assert_array_equal(read_replay(path, pool_size=6).gold, GOLD[:, :6])


def test_columns_can_be_named(tmp_path):
    rows = [
        {"id": row["input"], "truth": row["gold_scores"], "rm": row["proxy_scores"]}
        for row in list_rows()
    ]
    path = write(tmp_path, rows, "jsonl")
    columns = ReplayColumns(gold="truth", proxies=("rm",), prompt_id="id")
    table = read_replay(path, columns=columns)
    np.testing.assert_array_equal(table.proxies["rm"], PROXY)
    assert table.prompt_ids[2] == "about 2"


def change(rows, i, **cells):
    rows[i] = rows[i] | cells
    return rows


def without(rows, name):
    return [{k: v for k, v in row.items() if k != name} for row in rows]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (without(list_rows(), "gold_scores"), "no column 'gold_scores'.* present: instruction"),
        (without(list_rows(), "proxy_scores"), "no column begins with 'proxy'"),
        (without(long_rows(), "prompt_id"), "no column 'prompt_id'"),
        (
            change(list_rows(), 2, gold_scores=[*GOLD[2, :6], np.inf]),
            "row 3, entry 7, column gold_scores: inf is not finite; score",
        ),
        (change(long_rows(), 9, gold=float("nan")), "row 10, column gold: nan is not finite"),
        (change(long_rows(), 9, proxy_b=None), "row 10, column proxy_b: (nan|None) is not"),
        (
            change(list_rows(), 1, gold_scores=GOLD[1, :3].tolist()),
            "'Write a story.*about 1' has 3 responses",
        ),
        (
            change(list_rows(), 1, proxy_scores=PROXY[1, :3].tolist()),
            "row 2, column proxy_scores has 3 entries but gold_scores has 7",
        ),
        (change(list_rows(), 3, input="about 1"), r"row 4, column instruction\+input: .* row 2;"),
        (
            change(long_rows(), 5, response_id=0),
            "row 6, column response_id: '0' of prompt 'p0' is also the id of row 1",
        ),
        (without(long_rows(), "gold"), r"no column 'gold'.*\(one row per response\).* or --gold"),
    ],
)
def test_unusable_tables_are_refused_by_row_and_column(tmp_path, suffix, rows, message):
    with pytest.raises(DataError, match=message):
        read_replay(write(tmp_path, rows, suffix))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_long_table_needs_no_response_ids_and_takes_prompts_by_their_text(tmp_path, suffix):
    """The table that people write first: prompt, response, gold and a score."""
    rows = [
        {"prompt": row["prompt_id"], **{k: row[k] for k in ("response", "gold", "proxy_a")}}
        for row in long_rows()
    ]
    table = read_replay(write(tmp_path, rows, suffix))
    assert table.prompt_ids == tuple(f"p{p}" for p in range(P))
    np.testing.assert_array_equal(table.proxies["proxy_a"], PROXY)
    np.testing.assert_array_equal(table.gold, GOLD)


def test_a_long_table_may_have_the_prompts_of_alpaca(tmp_path):
    rows = [
        {"instruction": "Write.", "input": f"about {p}", "gold": GOLD[p, i], "proxy": PROXY[p, i]}
        for p in range(P)
        for i in range(N)
    ]
    table = read_replay(write(tmp_path, rows, "jsonl"))
    assert table.prompt_ids[1] == "Write.\nabout 1"
    np.testing.assert_array_equal(table.proxies["proxy"], PROXY)


def test_separate_prompts_of_equal_text_can_be_kept_apart(tmp_path):
    path = write(tmp_path, change(list_rows(), 3, input="about 1"), "jsonl")
    table = read_replay(path, columns=ReplayColumns(prompt_id=ROW_NUMBER))
    assert table.prompt_ids == ("1", "2", "3", "4", "5")


def test_numbers_given_as_text_are_refused(tmp_path):
    path = write(tmp_path, change(long_rows(), 4, gold="1.5"), "jsonl")
    with pytest.raises(DataError, match="row 5, column gold: '1.5' is not a number"):
        read_replay(path)
    path = write(tmp_path, change(list_rows(), 4, gold_scores="1.5"), "jsonl")
    with pytest.raises(DataError, match="row 5, column gold_scores: '1.5' is not a list"):
        read_replay(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has no rows"),
        ("\n\n", "the file has no rows"),
        ("not json\n", "line 1 is not valid JSON"),
        ("[1, 2]\n", "line 1 is a list, not an object"),
    ],
)
def test_unusable_json_is_refused(tmp_path, text, message):
    path = tmp_path / "table.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_replay(path)


def test_rows_of_jsonl_are_counted_with_its_blank_lines(tmp_path):
    lines = [json.dumps(row) for row in change(long_rows(), 6, gold=float("inf"))]
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join([lines[0], "", *lines[1:]]))
    with pytest.raises(DataError, match="row 8, column gold: inf"):
        read_replay(path)
    path.write_text("\n".join([*lines[:2], "", "{broken"]))
    with pytest.raises(DataError, match="line 4 is not valid JSON"):
        read_replay(path)


def test_unusable_parquet_files_are_refused(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_replay(path)
    pq.write_table(pa.Table.from_pylist(long_rows()).slice(0, 0), path)
    with pytest.raises(DataError, match="the file has no rows"):
        read_replay(path)
    with pytest.raises(DataError, match="no such file"):
        read_replay(tmp_path / "absent.parquet")
    (tmp_path / "table.xlsx").write_text("a,b\n")
    with pytest.raises(DataError, match="suffix '.xlsx'"):
        read_replay(tmp_path / "table.xlsx")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path, list_rows(), "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'overopt\[replay\]'"):
        read_replay(path)


# --- formats --------------------------------------------------------------------------------------

FORMATS = [
    f"{form}{packed}"
    for form in ("csv", "tsv", "json", "jsonl")
    for packed in ("", ".gz", ".bz2", ".xz")
]
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def written(folder, rows, suffix):
    """Rows in a format, with lists as JSON in the cells of CSV."""
    form, _, packed = suffix.partition(".")
    text = io.StringIO(newline="")
    if form in ("csv", "tsv"):
        cells = [
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows
        ]
        delimiter = "," if form == "csv" else "\t"
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(cells)
    elif form == "json":
        json.dump(rows, text)
    else:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    data = text.getvalue().encode()
    path = folder / f"table.{suffix}"
    path.write_bytes(PACK[packed](data) if packed else data)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_arrays_back(tmp_path, suffix):
    table = read_replay(written(tmp_path, long_rows(), suffix))
    np.testing.assert_array_equal(table.gold, GOLD)
    np.testing.assert_array_equal(table.proxies["proxy_b"], -PROXY)
    assert table.prompt_ids == tuple(f"p{p}" for p in range(P))
    lists = tmp_path / "lists"
    lists.mkdir()
    table = read_replay(written(lists, list_rows(), suffix))
    np.testing.assert_array_equal(table.proxies["proxy_scores"], PROXY)


def test_csv_of_a_spreadsheet_is_read_as_it_is(tmp_path):
    """A byte-order mark, Windows line ends, quotes, line breaks in cells, ids that look like numbers."""
    path = tmp_path / "t.csv"
    text = 'prompt_id,response,gold,proxy\r\n007,"a, ""b""\nc",1,2\r\n7,d,3.5,-4e-1\r\n\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = read_replay(path)
    assert table.prompt_ids == ("007", "7")
    assert table.gold.tolist() == [[1.0], [3.5]] and table.proxies["proxy"].tolist() == [
        [2.0],
        [-0.4],
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file has no rows"),
        ("t.csv", b"prompt,gold,proxy\n", "the file has no rows"),
        ("t.csv", b"prompt,gold,gold\na,1,2\n", "an empty name or one twice"),
        ("t.csv", b"prompt,gold,proxy\na,1\n", "row 1 has 2 cells and the header 3"),
        ("t.csv", b"prompt,gold,proxy\na,high,2\n", "row 1, column gold: 'high' is not a number"),
        ("t.csv", b"prompt,gold,proxy\na,1,2\na,nan,2\n", "row 2, column gold: nan is not finite"),
        ("t.csv", b"prompt,gold,proxy\na,,2\n", "row 1, column gold: '' is not a number"),
        ("t.csv", b"prompt,gold,proxy\n\xff,1,2\n", "is not a table in UTF-8"),
        ("t.csv", b'prompt,gold,proxy\n"a,1,2\n', "is not a table"),
        ("t.json", b'{"prompt": "a"}', "is a dict, not an array of objects"),
        ("t.json", b"[1]", "entry 1 is a int, not an object"),
        ("t.json", b'{"a": 1}\n{"a": 2}\n', "a file with one object per line is named .jsonl"),
        ("t.json", b"[]", "the file has no rows"),
        ("t.jsonl.gz", b"no gzip", "cannot be read .*damaged"),
        ("t.csv.xz", b"no xz", "cannot be read .*damaged"),
        ("t.csv.bz2", b"no bzip2", "cannot be read .*damaged"),
        (
            "t.csv.gz",
            gzip.compress(b"prompt,gold,proxy\n" + b"a,1,2\n" * 9000)[:-9],
            "cannot be read .*damaged",
        ),
        ("t.csv.zst", b"x", "suffix '.csv.zst' is not .csv, .tsv"),
        ("t.parquet.gz", b"x", "suffix '.parquet.gz' is not"),
        ("t.txt", b"x", "suffix '.txt' is not"),
    ],
)
def test_files_that_are_no_table_are_refused_with_a_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_replay(tmp_path / name)
