import errno
import operator
import os
from pathlib import Path

import joblib
import pytest
from dask.distributed import LocalCluster

from algorithm.errors import InputError
from training.files import read_json
from training.parallel import Workers, default_workers, end_workers, over_scans

PATHS = [Path(f"/{name}/{name}.json") for name in "abcdefgh"]
NAMES = [f"{name}.json" for name in "abcdefgh"]
CALL = operator.methodcaller("__call__")
NAME = operator.attrgetter("name")  # other processes cannot import a function of this file


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster:
        yield cluster


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_the_order_of_the_items(count):
    assert over_scans("names", NAME, PATHS, Workers(count)) == NAMES


def test_workers_end_when_told_and_others_come_after_them():
    def pids():
        return set(over_scans("pids", CALL, [os.getpid] * 4, Workers(2)))

    before = pids()
    assert os.getpid() not in before
    end_workers()
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not before & pids()


def test_no_items_no_results():
    assert over_scans("names", NAME, [], Workers(1, dask="tcp://nowhere:1")) == []


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_names_its_item(count, tmp_path):
    with pytest.raises(InputError, match=r"^a\.json: /a/a\.json: no such file"):
        over_scans("read", read_json, PATHS[:1], Workers(count))
    with pytest.raises(RuntimeError, match=r"^\{'case': 3\}: Error: KeyError: 'rml'$"):
        over_scans("look up", operator.itemgetter("rml"), [{"case": 3}], Workers(count))
    with pytest.raises(OSError, match=r"a\.json: No such file or directory: '/a/a\.json'") as caught:
        over_scans("remove", os.rmdir, PATHS[:1], Workers(count))
    assert caught.value.errno == errno.ENOENT


def test_an_error_in_one_of_many_scans_ends_the_work(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text("{}")
    bad.write_text("{")
    with pytest.raises(InputError, match=r"^bad\.json: .*damaged, no JSON"):
        over_scans("read", read_json, [good, good, bad, good], Workers(1))


def test_a_dask_cluster_does_the_work_in_order_and_its_client_is_closed(cluster):
    workers = Workers(dask=cluster.scheduler_address)
    assert over_scans("names", NAME, PATHS, workers) == NAMES
    with pytest.raises(InputError, match=r"^a\.json: /a/a\.json: no such file"):
        over_scans("read", read_json, PATHS[:1], workers)
    of_others = ("fire-and-forget", "Client-worker")
    assert [name for name in cluster.scheduler.clients if not name.startswith(of_others)] == []


def test_a_cluster_without_workers_is_refused():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty:
        workers = Workers(dask=empty.scheduler_address, patience_s=0.2)
        with pytest.raises(InputError, match="the scheduler has no workers; start some with `dask worker"):
            over_scans("names", NAME, PATHS, workers)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "no address"])
def test_no_scheduler(address):
    with pytest.raises(InputError, match=f"--dask {address}: no Dask scheduler answers there"):
        over_scans("names", NAME, PATHS, Workers(dask=address, patience_s=0.5))


def test_default_workers_are_few():
    assert 1 <= default_workers() <= min(4, joblib.cpu_count())
