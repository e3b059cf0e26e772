"""Shards: what is read from them is what the files hold, once an epoch, wherever they lie and whoever reads them."""

import http.server
import json
import os
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from tasks.datasets import sampling
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import SPLITS, DataError, ReadError
from tasks.datasets.image.box_formats.packed import unpacked
from tasks.datasets.image.folder import ImageFolder
from tasks.datasets.shards import storage as storage_module
from tasks.datasets.shards.cache import Prefetch, ShardCache
from tasks.datasets.shards.data import ShardableData, ShardOptions, parts_of
from tasks.datasets.shards.layout import ABOUT, INDEX, ShardItem, read_shard_set, write_index
from tasks.datasets.shards.order import ShardBatches
from tasks.datasets.shards.storage import Storage
from tasks.datasets.shards.write import write_shards

CLASSES = ("high", "low", "middle")
TRAIN, VAL, TEST = 60, 6, 9


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file server that understands ranges, counts what it is asked for, and can be told to fail."""

    asked: ClassVar[Counter[str]] = Counter()
    failing: ClassVar[dict[str, int]] = {}  # path -> how many more times
    pause = 0.0

    def do_GET(self) -> None:
        type(self).asked[self.path] += 1
        if self.failing.get(self.path, 0) > 0:
            self.failing[self.path] -= 1
            self.send_error(503)
            return
        time.sleep(self.pause)
        asked = self.headers.get("Range")
        if asked is None:
            super().do_GET()
            return
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        content = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # asked for the sizes of all shards at once


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds of three classes, each at its own loudness, so that a waveform tells which file it is."""
    root = tmp_path_factory.mktemp("files")
    number = 0
    for split, count in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        for index in range(count):
            number += 1
            path = root / split / CLASSES[index % 3] / f"{index:03d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = number / 100 * np.sin(np.arange(1600) * (0.05 + 0.1 * (index % 3)))
            soundfile.write(path, wave, 16000, subtype="FLOAT")
    return root


def sounds(data_dir: str | Path, **options: Any) -> AudioFolder:
    settings: dict[str, Any] = {"name": "sounds", "num_workers": 0, "batch_size": 4, "seconds": 0.1} | options
    data = AudioFolder(data_dir=str(data_dir), **settings)
    data.prepare_data()
    data.setup()
    return data


def from_shards(
    address: str | Path, buffer: int = 10_000, cache: Path | None = None, **options: Any
) -> AudioFolder:
    reading = ShardOptions(buffer=buffer, cache_dir=None if cache is None else str(cache))
    return sounds(address, format="webdataset", shards=options.pop("shards", reading), **options)


@pytest.fixture(scope="module")
def written(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sounds in shards of 8 samples, in their own order."""
    root = tmp_path_factory.mktemp("shards")
    data = sounds(files)
    write_shards(data, data.splits, Storage(str(root)), shard_samples=8, shuffle=False)
    return root


@pytest.fixture
def served(written: Path) -> Iterator[str]:
    """The address of the shards behind a local http server."""
    Handler.asked, Handler.failing, Handler.pause = Counter(), {}, 0.0
    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(written)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def bucket(files: Path) -> Iterator[str]:
    """Shards in fsspec's in-memory file system, which behaves as a bucket does: keys, no folders of this machine."""
    data = sounds(files)
    write_shards(data, data.splits, Storage("memory://bucket/sounds"), shard_samples=8, shuffle=False)
    yield "memory://bucket/sounds"
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["folder", "http", "http by range", "bucket", "bucket by range"])
def place(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> tuple[str, Path | None]:
    """Where shards lie, and the folder that keeps them here."""
    kind, *by_range = request.param.split(" by ")
    if kind == "folder":
        return str(written), None
    address = request.getfixturevalue({"http": "served", "bucket": "bucket"}[kind])
    return address, None if by_range else tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "PAUSE", 0.0)


def as_process(rank: int, world: int) -> Callable[[], tuple[int, int]]:
    return lambda: (rank, world)


def origin(item: Any) -> str:
    """`high/000.wav`."""
    return "/".join(item.path.parts[-2:])


# -- the same samples ----------------------------------------------------------------------------------------


def test_shards_hold_what_the_files_hold(files: Path, place: tuple[str, Path | None]) -> None:
    ours, theirs = sounds(files), from_shards(place[0], cache=place[1])
    assert theirs.info() == ours.info()
    for split in SPLITS:
        assert [origin(item) for item in theirs.splits[split]] == [
            origin(item) for item in ours.splits[split]
        ]
        for train in (True, False):
            pairs = zip(
                ours.loader(split, train=train, batch_size=5),
                theirs.loader(split, train=train, batch_size=5),
                strict=True,
            )
            for one, other in pairs:
                assert one.failures == other.failures == []
                for part in ("raw", "target", "index"):
                    assert torch.equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("task", ["audio_folder", "image_folder", "cifar10", "ucf101"])
def test_embedded_sample_in_shards(composed: Callable[..., DictConfig], samples: Path, task: str) -> None:
    from hydra.utils import instantiate

    modality = {"audio_folder": "audio", "ucf101": "video"}.get(task, "image")
    data = {}
    for format in ("files", "webdataset"):
        cfg = composed(
            f"modality={modality}", f"task={task}", f"task.data.format={format}", f"paths.samples={samples}"
        )
        data[format] = instantiate(cfg.task.data)
        data[format].prepare_data()
        data[format].setup()
    ours, theirs = data["files"], data["webdataset"]
    assert isinstance(theirs, ShardableData)
    assert theirs.info() == ours.info()
    assert "embedded sample of" in theirs.describe()
    assert len(theirs.shard_set.shards) > 3  # type: ignore[union-attr]
    for split in SPLITS:
        mixed = np.random.default_rng(0).permutation(len(ours.splits[split]))
        assert len(theirs.splits[split]) == len(mixed)
        read = {train: theirs._reader(train) for train in (True, False)}
        for index in (0, len(mixed) - 1):
            one, other = ours.splits[split][mixed[index]], theirs.splits[split][index]
            assert one.target == other.target
            for train in (True, False):
                raws = (
                    ours.read_item(one, train, np.random.default_rng(5)),
                    read[train](other, np.random.default_rng(5))[0],
                )
                assert torch.equal(*raws)


def test_several_labels(tmp_path: Path, files: Path) -> None:
    rows = ["path,label,split"]
    for number, path in enumerate(sorted(files.rglob("*.wav"))):
        labels = path.parent.name if number % 2 else f"{path.parent.name};loud"
        rows.append(f"{path},{labels},{path.parent.parent.name}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = sounds(files, csv=str(tmp_path / "labels.csv"), multilabel=True)
    write_shards(data, data.splits, Storage(str(tmp_path / "shards")), shuffle=False)
    again = from_shards(tmp_path / "shards")
    assert again.info() == data.info()
    assert again.multilabel
    for one, other in zip(data.splits["train"], again.splits["train"], strict=True):
        assert other.target.dtype == np.float32
        assert np.array_equal(one.target, other.target)
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        label = json.loads(tar.extractfile("000000000.json").read())  # type: ignore[union-attr]
    assert label == {
        "labels": [again.class_names[k] for k in np.flatnonzero(again.splits["train"][0].target)]
    }


def test_webdataset_reads_our_shards(written: Path, files: Path) -> None:
    """The format is the published one: the package of that name finds the same samples."""
    readers = pytest.importorskip("webdataset.tariterators")
    found: list[Any] = []
    for path in sorted(written.glob("train-*.tar")):
        with path.open("rb") as stream:
            members = readers.tar_file_expander([{"url": str(path), "stream": stream}])
            found += list(readers.group_by_keys(members))
    ours = sounds(files).splits["train"]
    assert len(found) == TRAIN
    for number, (sample, item) in enumerate(zip(found, ours, strict=True)):
        assert sample["__key__"] == f"{number:09d}"
        assert sample["wav"] == item.path.read_bytes()
        assert int(sample["cls"]) == item.target


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, files: Path) -> None:
    data = sounds(files)
    for name in ("one", "two"):
        write_shards(data, data.splits, Storage(str(tmp_path / name)), shard_bytes=100_000)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
    assert len(one) > 5
    for name, content in one.items():
        assert not name.endswith(".tar") or len(content) < 100_000 + 30_000
    mixed = from_shards(tmp_path / "one").splits["train"]
    assert sorted(origin(item) for item in mixed) == sorted(origin(item) for item in data.splits["train"])
    assert {origin(item).split("/")[0] for item in mixed[:12]} == set(CLASSES), "classes are mixed"


def test_a_limit_reads_few_shards(tmp_path: Path, files: Path, written: Path) -> None:
    data = sounds(files)
    write_shards(data, data.splits, Storage(str(tmp_path)), shard_samples=8)
    mixed, in_order = (
        from_shards(tmp_path, limit=6).splits["train"],
        from_shards(written, limit=6).splits["train"],
    )
    assert len(mixed) == len(in_order) == 6
    assert {item.shard for item in mixed} == {0}  # type: ignore[attr-defined]
    assert len({item.shard for item in in_order}) > 3, "unmixed, the first ones would be of one class"  # type: ignore[attr-defined]


def test_statistics_come_from_the_first_shards_where_they_are_mixed(tmp_path: Path, files: Path) -> None:
    data = sounds(files)
    write_shards(data, data.splits, Storage(str(tmp_path)), shard_samples=8)
    mixed = from_shards(tmp_path)
    raws = torch.cat(list(mixed.training_raws(most=8)))
    assert len(raws) == 8
    expected = [
        mixed._reader(False)(mixed.splits["train"][index], np.random.default_rng())[0] for index in range(8)
    ]
    assert torch.equal(raws, torch.stack(expected))
    assert len(mixed.splits["train"]) == TRAIN


# -- the order -----------------------------------------------------------------------------------------------

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(
    lambda sizes: np.repeat(range(len(sizes)), sizes)
)


@given(shards=SHARDS, batch=st.integers(1, 9), world=st.integers(1, 4), buffer=st.integers(1, 60))
def test_evaluation_draws_every_sample_once(shards: Any, batch: int, world: int, buffer: int) -> None:
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            patch.setattr(sampling, "_rank_and_world", as_process(rank, world))
            batches = ShardBatches(shards, batch, shuffle=False, drop_last=False, seed=0, buffer=buffer)
            drawn = list(batches)
            assert len(drawn) == len(batches)
            seen += [index for part in drawn for index, _ in part]
    assert seen == list(range(len(shards)))


@given(
    shards=SHARDS,
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    buffer=st.integers(1, 60),
    epoch=st.integers(0, 3),
)
def test_training_draws_full_batches_and_nothing_twice(
    shards: Any, batch: int, world: int, buffer: int, epoch: int
) -> None:
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            patch.setattr(sampling, "_rank_and_world", as_process(rank, world))
            batches = ShardBatches(shards, batch, shuffle=True, drop_last=True, seed=0, buffer=buffer)
            batches.set_epoch(epoch)
            drawn = list(batches)
            assert len(drawn) == len(batches) == len(shards) // (batch * world)
            assert all(len(part) == batch for part in drawn)
            assert all(at == epoch for part in drawn for _, at in part)
            seen += [index for part in drawn for index, _ in part]
    assert len(set(seen)) == len(seen) == len(shards) // (batch * world) * batch * world


def order(batches: ShardBatches, epoch: int) -> list[int]:
    batches.set_epoch(epoch)
    return [index for part in batches for index, _ in part]


def test_few_shards_are_open_at_a_time() -> None:
    """100 shards of 50 samples, a buffer of 200: a shard is read over at most 250 samples, and they come mixed."""
    shards = np.repeat(range(100), 50)
    batches = ShardBatches(shards, 10, shuffle=True, drop_last=True, seed=3, buffer=200)
    drawn = np.array(order(batches, 0))
    of_shard = shards[drawn]
    for shard in range(100):
        places = np.flatnonzero(of_shard == shard)
        assert len(places) == 50
        assert places[-1] - places[0] < 50 + 200 + 1
    first_places = [int(np.flatnonzero(of_shard == shard)[0]) for shard in range(100)]
    assert first_places != sorted(first_places), "the shards have a new order"
    neighbours = np.abs(np.diff(of_shard)) > 0
    assert neighbours.mean() > 0.5, "neighbours mostly come from different shards"
    assert len({tuple(order(batches, epoch)) for epoch in range(3)}) == 3
    assert order(batches, 0) == drawn.tolist()


def test_a_split_that_fits_is_drawn_as_files_are() -> None:
    shards = np.repeat(range(5), 10)
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "_rank_and_world", as_process(rank, 2))
            options: dict[str, Any] = {"shuffle": True, "drop_last": True, "seed": 7}
            ours, theirs = (
                ShardBatches(shards, 4, buffer=50, **options),
                sampling.EpochBatches(50, 4, **options),
            )
            assert list(ours) == list(theirs)


def test_processes_read_shards_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shards, read = np.repeat(range(40), 25), []
    for rank in range(4):
        monkeypatch.setattr(sampling, "_rank_and_world", as_process(rank, 4))
        batches = ShardBatches(shards, 10, shuffle=True, drop_last=True, seed=0, buffer=100)
        read.append(set(shards[order(batches, 1)].tolist()))
    assert sum(map(len, read)) <= 40 + 3, "neighbours share the shard at their border, nothing else"


def test_shards_are_announced_before_they_are_needed() -> None:
    shards, announced = np.repeat(range(30), 20), []
    batches = ShardBatches(
        shards, 5, shuffle=True, drop_last=True, seed=0, buffer=60, ahead=40, announce=announced.append
    )
    known: list[int] = []
    for number, batch in enumerate(batches):
        if number < 100:
            reach = [key for key in order_from(shards, number * 5, 5 + 40)]
            assert set(reach) <= set(announced)
        known.append(len(announced))
        assert {int(shards[index]) for index, _ in batch} <= set(announced)
    assert sorted(announced) == list(range(30)), "each once"
    assert known[0] < 10, "not all at the start"


def order_from(shards: Any, start: int, count: int) -> list[int]:
    batches = ShardBatches(shards, 5, shuffle=True, drop_last=True, seed=0, buffer=60)
    return [int(shards[index]) for index in order(batches, 0)[start : start + count]]


# -- nodes and reader processes ------------------------------------------------------------------------------


def test_two_nodes_with_two_readers_see_every_sample_once(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node fetches what it reads, once; its two processes share what is fetched."""
    seen: dict[str, list[str]] = {split: [] for split in SPLITS}
    read_by_node = []
    for rank in range(2):
        monkeypatch.setattr(sampling, "_rank_and_world", as_process(rank, 2))
        Handler.asked = Counter()
        data = from_shards(served, buffer=10, cache=tmp_path / f"node{rank}", num_workers=2, batch_size=5)
        for split in SPLITS:
            loader = data.loader(split)
            batches = list(loader)
            assert len(batches) == len(loader)
            assert not [error for batch in batches for error in batch.failures]
            items = data.splits[split]
            seen[split] += [origin(items[index]) for batch in batches for index in batch.index.tolist()]
        read_by_node.append(
            {path: count for path, count in Handler.asked.items() if path.startswith("/train")}
        )
    assert len(seen["train"]) == TRAIN
    assert {len(seen["val"]), len(seen["test"])} == {VAL, TEST}
    for names in seen.values():
        assert len(set(names)) == len(names)
    for fetched in read_by_node:
        assert set(fetched.values()) == {1}, "no shard is fetched twice"
        assert len(fetched) < 8, "and not all of them"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 7, 15])
def test_a_restart_goes_on_at_the_next_batch(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, stop: int
) -> None:
    monkeypatch.setattr(sampling, "_rank_and_world", as_process(0, 1))

    def made() -> Any:
        data = from_shards(served, buffer=20, cache=tmp_path / "cache", num_workers=workers)
        return data.train_dataloader()

    def two_epochs(loader: Any) -> list[Any]:
        found = []
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            found += [(batch.index.tolist(), batch.raw.tolist()) for batch in loader]
        return found

    whole = two_epochs(made())
    assert len(whole) == 30
    loader = made()
    passing = iter(loader)
    first = [next(passing) for _ in range(stop)]
    state = loader.state_dict()
    assert state == {"epoch": 0, "batches": stop}
    del passing
    again = made()
    again.load_state_dict(state)
    rest = [(batch.index.tolist(), batch.raw.tolist()) for batch in again]
    if stop < 15:
        again.batch_sampler.set_epoch(1)
        rest += [(batch.index.tolist(), batch.raw.tolist()) for batch in again]
    assert [(batch.index.tolist(), batch.raw.tolist()) for batch in first] + rest == whole


def test_a_restart_fetches_only_what_is_left(served: str, tmp_path: Path) -> None:
    loader = from_shards(served, buffer=8, cache=tmp_path).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 13})
    Handler.asked = Counter()
    assert len(list(loader)) == 2
    assert len([path for path in Handler.asked if path.startswith("/train")]) <= 3


# -- keeping shards ------------------------------------------------------------------------------------------


def test_no_more_is_kept_than_allowed(served: str, tmp_path: Path) -> None:
    found = read_shard_set(Storage(served))
    size = found.shards[0].size
    cache = ShardCache(Storage(served), tmp_path / "a", limit=3 * size)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old.tar").write_bytes(bytes(size))  # of another set, used long ago
    sizes = []
    for number in (0, 1, 2, 0, 3):
        cache.read(found.shards[number].file, size, 0, 10)
        sizes.append(sum(path.stat().st_size for path in tmp_path.glob("*/*.tar")))
        time.sleep(0.02)
    assert max(sizes) <= 3 * size
    kept = {path.name for path in tmp_path.glob("*/*.tar")}
    assert kept == {found.shards[number].file for number in (0, 2, 3)}, "what was used longest ago went first"
    assert not [path for path in tmp_path.glob("*/.*") if path.stat().st_size], "no drafts are left"


def test_a_buffer_larger_than_the_disk_is_refused(served: str, tmp_path: Path) -> None:
    options = ShardOptions(buffer=50, cache_dir=str(tmp_path), cache_gb=1e-4)
    message = (
        r"mixing 50 samples of http.* takes .* GB of shards at a time: raise task.data.shards.cache_gb=0.0001"
    )
    with pytest.raises(DataError, match=message):
        from_shards(served, shards=options)


def test_a_shard_is_fetched_once_whoever_asks(served: str, tmp_path: Path) -> None:
    found = read_shard_set(Storage(served))
    shard = found.shards[0]
    Handler.asked, Handler.pause = Counter(), 0.2
    cache = ShardCache(Storage(served), tmp_path / "a", limit=10**9)
    prefetch = Prefetch(cache)
    prefetch(shard.file, shard.size)
    askers = [threading.Thread(target=cache.path, args=(shard.file, shard.size)) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert Handler.asked[f"/{shard.file}"] == 1


# -- what can go wrong ---------------------------------------------------------------------------------------


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    root.mkdir()
    for path in written.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    return root


def cut(root: Path) -> None:
    path = root / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train-000003.tar").unlink(), r"copy/train-000003.tar is not there"),
        (cut, r"the shard .*train-000002.tar has [\d,]+ bytes instead of [\d,]+: it is damaged"),
        (
            lambda root: (root / ABOUT).unlink(),
            r"copy holds no shards \(no shards.json\): write some with action=shard",
        ),
        (lambda root: (root / ABOUT).write_text("{"), r"shards.json is damaged, or not of this version"),
        (lambda root: (root / ABOUT).write_text("{}"), r"shards.json is damaged, or not of this version"),
        (lambda root: (root / INDEX).write_text("x"), r"index.parquet does not belong to shards.json"),
    ],
)
def test_damaged_shards_get_one_sentence(copy: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(copy)
    with pytest.raises(DataError, match=message) as raised:
        from_shards(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_stops_the_run_with_one_sentence(
    served: str, tmp_path: Path, workers: int, written: Path
) -> None:
    data = from_shards(served, cache=tmp_path, num_workers=workers)
    Handler.failing = {"/train-000001.tar": 10**9}
    with pytest.raises(DataError) as raised:
        list(data.train_dataloader())
    said = str(raised.value)
    assert "\n" not in said
    assert f"{served}/train-000001.tar cannot be read (503" in said
    with pytest.raises(DataError, match=r"train-000001.tar cannot be read"):
        list(data.training_raws())


def test_a_hiccup_is_forgiven(served: str, tmp_path: Path) -> None:
    Handler.failing = {"/shards.json": 2, "/train-000001.tar": 3}
    data = from_shards(served, cache=tmp_path)
    assert len(list(data.train_dataloader())) == TRAIN // 4


def test_a_damaged_sample_is_named_and_the_others_go_on(copy: Path) -> None:
    data = from_shards(copy)
    item = data.splits["test"][2]
    assert isinstance(item, ShardItem)
    path = copy / "test-000000.tar"
    content = bytearray(path.read_bytes())
    content[item.offset + 500] ^= 1
    path.write_bytes(content)
    batches = list(data.test_dataloader())
    assert [error for batch in batches for error in batch.failures] == [
        f"{copy}/test-000000.tar/000000002.wav: its bytes are not those that were written (wrong checksum)"
    ]
    assert sum(len(batch.index) for batch in batches) == TEST - 1


def test_a_damaged_copy_is_fetched_again(served: str, tmp_path: Path) -> None:
    data = from_shards(served, cache=tmp_path)
    item = data.splits["train"][0]
    assert isinstance(item, ShardItem)
    good = data.content(item)
    (kept,) = tmp_path.glob("*/train-000000.tar")
    kept.write_bytes(bytes(kept.stat().st_size))
    assert data.content(item) == good


def test_a_server_that_knows_no_ranges_is_named(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = from_shards(served)
    monkeypatch.setattr(Handler, "do_GET", http.server.SimpleHTTPRequestHandler.do_GET)
    with pytest.raises(
        DataError, match=r"its server cannot send parts of files: set task.data.shards.cache_dir"
    ):
        list(data.test_dataloader())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nosuch://bucket/x", r"nosuch://bucket/x cannot be opened \(Protocol not known: nosuch\)"),
        ("http://127.0.0.1:9/x", r"http://127.0.0.1:9/x/shards.json cannot be read \(Cannot connect"),
        ("/no/such/folder", r"/no/such/folder holds no shards"),
    ],
)
def test_wrong_addresses_get_one_sentence(address: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_shards(address)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def fail(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(
        DataError, match=r"s3://b/x: Install s3fs to access S3 \(pip install -e '.\[shards\]'"
    ):
        from_shards("s3://b/x")


def test_other_wrong_options_get_one_sentence(written: Path, files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="format must be files or webdataset, not 'tar'"):
        sounds(files, format="tar")
    with pytest.raises(DataError, match=r"holds shards of sounds \(audio\), not of x"):
        ImageFolder(name="x", data_dir=str(written), format="webdataset").setup()
    with pytest.raises(DataError, match="buffer must be at least 1"):
        ShardOptions(buffer=0)
    data = sounds(files)
    with pytest.raises(
        DataError, match=r"holds shards already: choose another folder, or say action.replace=true"
    ):
        write_shards(data, data.splits, Storage(str(written)))
    gone = replace(data.splits["val"][0], path=tmp_path / "gone.wav")
    with pytest.raises(DataError, match=r"gone.wav cannot be read \(No such file or directory\)"):
        write_shards(data, dict(data.splits) | {"val": [gone]}, Storage(str(tmp_path / "new")))
    assert not (tmp_path / "new" / ABOUT).exists()
    assert not list((tmp_path / "new").glob(".*")), "no drafts are left"


# -- a hostile server ----------------------------------------------------------------------------------------


def say(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the shards say of themselves."""
    about = json.loads((root / ABOUT).read_text())
    change(about)
    (root / ABOUT).write_text(json.dumps(about))


def index_with(root: Path, column: str, value: Any) -> None:
    """Change the first row of the index, and its digest with it."""
    import hashlib

    import pyarrow.parquet as pq

    rows = pq.read_table(root / INDEX).to_pydict()
    rows[column][0] = value
    write_index(root / INDEX, rows)
    digest = hashlib.sha256((root / INDEX).read_bytes()).hexdigest()
    say(root, lambda about: about.update(digest=digest))


@pytest.fixture
def hostile(copy: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the shards to spoil, and its address; any name that is asked for is answered with a shard."""

    class AnyName(Handler):
        def translate_path(self, path: str) -> str:
            found = Path(super().translate_path(path))
            return str(found if found.is_file() else copy / "train-000000.tar")

    server = Server(("127.0.0.1", 0), partial(AnyName, directory=str(copy)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield copy, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "name", ["../victim.tar", "/ABSOLUTE/victim.tar", "..\\victim.tar", ".victim.tar", "victim"]
)
def test_a_server_cannot_name_files_of_this_machine(
    hostile: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    root, address = hostile
    victim = tmp_path / "cache" / "victim.tar"
    victim.parent.mkdir()
    victim.write_bytes(bytes((root / "train-000000.tar").stat().st_size))
    name = name.replace("/ABSOLUTE", str(victim.parent))
    say(root, lambda about: about["shards"][0].update(file=name))
    with pytest.raises(DataError, match="is no plain name") as raised:
        list(from_shards(address, cache=tmp_path / "cache").train_dataloader())
    assert "\n" not in str(raised.value)
    assert victim.is_file()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("offset", 10**15), ("offset", -1), ("size", 10**15), ("size", -1), ("shard", 99), ("shard", -1)),
        *(("key", "../../x"), ("key", "k" * 10_000), ("extension", "/../x"), ("target", 3), ("target", -1)),
    ],
)
def test_an_index_points_into_its_shards_only(copy: Path, column: str, value: Any) -> None:
    index_with(copy, column, value)
    with pytest.raises(DataError, match=r"is damaged") as raised:
        from_shards(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["shards"][1].update(file=about["shards"][0]["file"]),
        lambda about: about["shards"][0].update(size="1"),
        lambda about: about["shards"][0].update(size=-1),
        lambda about: about["shards"][0].update(samples=10**12),
        lambda about: about.update(class_names=[["a"]]),
        lambda about: about.update(shards=[]),
    ],
)
def test_wrong_words_about_shards_get_one_sentence(copy: Path, change: Callable[[Any], None]) -> None:
    say(copy, change)
    with pytest.raises(DataError, match=r"shards.json is damaged"):
        from_shards(copy)


def test_a_shard_that_never_ends_is_cut(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = from_shards(served, cache=tmp_path)
    sent = []

    def endless(self: Handler) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for _ in range(2000):
                self.wfile.write(bytes(100_000))
                sent.append(100_000)

    monkeypatch.setattr(Handler, "do_GET", endless)
    with pytest.raises(DataError, match=r"sends more than the [\d,]+ bytes it was said to have"):
        list(data.train_dataloader())
    assert sum(sent) < 100_000_000
    with pytest.raises(DataError, match=r"shards.json sends more than"):
        from_shards(served, shards=ShardOptions(cache_dir=None, index_mb=1))


def test_a_pipe_among_the_shards_is_no_file(copy: Path) -> None:
    (copy / ABOUT).unlink()
    os.mkfifo(copy / ABOUT)
    with pytest.raises(DataError, match=r"shards.json is no regular file"):
        from_shards(copy)


# -- targets of their own kind -------------------------------------------------------------------------------


def dense(kind: str, root: str | Path, **options: Any) -> Any:
    """Drawn scenes with masks or boxes: written below `root`, or read from shards."""
    from tasks.datasets.image import box_scenes, scenes
    from tasks.datasets.image.box_folder import BoxFolder
    from tasks.datasets.image.mask_folder import MaskFolder

    source, draw = {"masks": (MaskFolder, scenes.mask_folder), "boxes": (BoxFolder, box_scenes.box_folder)}[
        kind
    ]
    if not options and not Path(root).exists():
        draw(Path(root), (12, 3, 4))
    data = source(name=kind, data_dir=str(root), num_workers=0, **options)
    data.prepare_data()
    data.setup()
    return data


def of_split(data: Any, split: str) -> dict[str, Any]:
    """What a split reads, by the file's name, in training's way where it is that."""
    dataset = data.loader(split).dataset
    return {item.path.stem: dataset[index, 0] for index, item in enumerate(data.splits[split])}


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_masks_and_boxes_read_from_shards_as_from_files(kind: str, tmp_path: Path) -> None:
    data = dense(kind, tmp_path / "files")
    write_shards(data, data.splits, Storage(str(tmp_path / "shards")), shard_samples=5)
    again = dense(kind, tmp_path / "shards", format="webdataset")
    assert again.info() == data.info()
    assert "in 5 shards" in again.describe()
    for split in ("val", "test"):
        ours, theirs = of_split(data, split), of_split(again, split)
        assert set(ours) == set(theirs)
        for name, one in ours.items():
            assert one.raw["pixels"].equal(theirs[name].raw["pixels"])
            target, other = one.target, theirs[name].target
            if kind == "masks":
                assert target.equal(other)
            else:
                assert set(target) == set(other)
                assert all(target[part].equal(other[part]) for part in target)
    batch = next(iter(again.loader("train", batch_size=4)))
    assert len(batch) == 4
    assert not batch.failures
    with pytest.raises(DataError, match="holds shards of"):
        dense({"masks": "boxes", "boxes": "masks"}[kind], tmp_path / "shards", format="webdataset")


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_webdataset_reads_masks_and_boxes_beside_pictures(kind: str, tmp_path: Path) -> None:
    """Two members a sample, of the same key, as any reader expects them; the same bytes each time."""
    data = dense(kind, tmp_path / "files")
    for name in ("a", "b"):
        write_shards(data, data.splits, Storage(str(tmp_path / name)))
    files = sorted(file.name for file in (tmp_path / "a").glob("*.tar"))
    assert files == ["test-000000.tar", "train-000000.tar", "val-000000.tar"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        keys = Counter(member.name.partition(".")[0] for member in tar)
        endings = {member.name.partition(".")[2] for member in tar}
    assert set(keys.values()) == {2}
    assert len(keys) == len(data.splits["train"])
    assert endings - {"jpg", "png"} == {"masks": {"mask.png"}, "boxes": {"json"}}[kind]


def test_what_cannot_be_read_is_named_from_shards_too(tmp_path: Path) -> None:
    for kind in ("masks", "boxes"):
        data = dense(kind, tmp_path / kind)
        first = data.splits["test"][0]
        if kind == "masks":
            Path(first.where["mask"]).write_bytes(b"no mask")
        else:
            data.splits["test"] = [
                replace(first, where={"fault": "its labels: a reason"}),
                *data.splits["test"][1:],
            ]
        write_shards(data, data.splits, Storage(str(tmp_path / f"{kind}-shards")), shuffle=False)
        again = dense(kind, tmp_path / f"{kind}-shards", format="webdataset")
        read = [again.loader("test").dataset[index, 0] for index in range(4)]
        said = {"masks": "its mask", "boxes": "its labels: a reason"}[kind]
        assert said in read[0].said
        assert "test-000000.tar/000000000" in read[0].said
        assert all(not hasattr(one, "said") for one in read[1:])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nothing", "no sample of several files|something else than a file and its target"),
        (b"", "something else than a file and its target"),
    ],
)
def test_a_damaged_sample_of_two_files_is_one_sentence(content: bytes, said: str) -> None:
    with pytest.raises(ReadError, match=said):
        parts_of(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"size": null, "objects": [[1, 2, 3]]}', b"[" * 100_000,
                                     b'{"size": null, "objects": [[1, 2, 3, 4, "dog", 0]]}',
                                     b'{"size": [1], "objects": []}', b'{"size": null, "objects": [], "outlines": [1]}',
                                     b'{"size": null, "objects": [[NaN, 2, 3, 4, "cat", 0]]}'])  # fmt: skip
def test_boxes_of_a_damaged_shard_are_one_sentence(content: bytes) -> None:
    with pytest.raises(ReadError, match="its boxes cannot be read") as raised:
        unpacked(content, ["cat"])
    assert "\n" not in str(raised.value)
