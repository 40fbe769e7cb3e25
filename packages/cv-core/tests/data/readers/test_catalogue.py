"""The counts that are published with every data set, against what the readers return."""

import os

import numpy as np
import pytest
import torch
from cv_core.data import kinds, sources
from cv_core.data.archives import read_members
from cv_core.data.readers import shapes
from cv_core.data.root import find

pytestmark = pytest.mark.skipif(
    not os.environ.get("CV_DATA"), reason="CV_DATA does not name the data root"
)


def load(name):
    missing = sources.entry_of(name).missing()
    if missing:
        pytest.skip(f"{missing[0].path} is not in the data root")
    return sources.load(name)


def per_class(y):
    return np.bincount(np.asarray(y)[np.asarray(y) >= 0]).tolist()


MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
CLASSIFICATION = {
    "mnist": ((60000, 1, 28, 28), (10000, 1, 28, 28), MNIST_TRAIN, MNIST_TEST),
    "fashion-mnist-900": ((600, 1, 28, 28), (300, 1, 28, 28), [60] * 10, [30] * 10),
    "cifar10": ((10000, 3, 32, 32), (2000, 3, 32, 32), [1000] * 10, [200] * 10),
}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification(name):
    data = load(name)
    train, test, train_counts, test_counts = CLASSIFICATION[name]
    assert tuple(data.train_x.shape) == train
    assert tuple(data.test_x.shape) == test
    assert per_class(data.train_y) == train_counts
    assert per_class(data.test_y) == test_counts
    assert data.train_x.dtype == torch.float32
    assert data.train_x.min() == 0
    assert data.train_x.max() == 1
    assert (data.num_classes, data.in_channels) == (10, train[1])
    assert data.image_size == train[2:]


@pytest.mark.slow
def test_mnist_pixels_agree_with_torchvision(tmp_path):
    import gzip

    from torchvision.datasets import MNIST

    data = load("mnist")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in data.origin.files:
        path = find(file.path)
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    theirs = MNIST(tmp_path, train=False, download=False)
    assert torch.equal((data.test_x[:, 0] * 255).round().byte(), theirs.data)
    assert torch.equal(data.test_y, theirs.targets)


def test_cifar10_human_labels():
    noisy = load("cifar10n")
    clean = load("cifar10")
    assert torch.equal(noisy.train_x, clean.train_x)
    # shares of wrong labels in all 50,000 are 9.01, 40.21, 17.23, 18.12, 17.64 %: the subset of
    # 10,000 must lie within four standard errors
    published = {
        "aggre": 9.01,
        "worse": 40.21,
        "random1": 17.23,
        "random2": 18.12,
        "random3": 17.64,
    }
    assert set(noisy.noisy_labels) == set(published)
    for name, percent in published.items():
        share = (noisy.noisy_labels[name] != noisy.train_y).double().mean().item()
        error = (percent / 100 * (1 - percent / 100) / 10000) ** 0.5
        assert abs(share - percent / 100) < 4 * error
    human = load("cifar10h").soft_labels["human"]
    assert human.shape == (2000, 10)
    torch.testing.assert_close(human.sum(1), torch.ones(2000))
    # people are right on CIFAR-10 more than 9 times in 10
    assert (human.argmax(1) == clean.test_y).double().mean() > 0.95


def test_cifar10n_in_the_original_order():
    with np.load(find("cifar10/cifar10n_labels.npz")) as labels:
        clean = labels["clean_label"]
        shares = [
            round(100 * float((labels[f"{name}_label"] != clean).mean()), 2)
            for name in ("aggre", "worse")
        ]
    with np.load(find("cifar10/cifar10_subset.npz")) as subset:
        assert np.array_equal(clean[subset["train_index"]], subset["y_train"])
    assert shares == [9.01, 40.21]


def test_votes():
    faces = load("ferplus")
    assert faces.counts.shape == (35887, 10)
    assert [faces.usage.count(part) for part in ("Training", "PublicTest", "PrivateTest")] == [
        28709,
        3589,
        3589,
    ]
    assert faces.names[0] == "neutral"
    assert faces.names[-1] == "NF"
    assert faces.counts.sum(1).min() == 9
    objects = load("cifar10h-votes")
    assert objects.counts.shape == (10000, 10)
    assert per_class(objects.y) == [1000] * 10


IHDP_EFFECTS = [4.016, 4.051, 4.099, 4.274, 4.162, 4.004, 3.991, 3.854, 10.466, 4.586]


def test_ihdp():
    replications = load("ihdp").replications
    effects = [float((one.mu1 - one.mu0).mean()) for one in replications]
    assert np.round(effects, 3).tolist() == IHDP_EFFECTS
    for one in replications:
        assert one.x.shape == (747, 25)
        assert per_class(one.t) == [608, 139]


CORA_COUNTS = [351, 217, 418, 818, 426, 298, 180]
CITESEER_COUNTS = [249, 590, 668, 701, 596, 508]
GRAPHS = {
    "cora": (2708, 1433, 5278, CORA_COUNTS, (140, 500, 1000)),
    "citeseer": (3327, 3703, 4552, CITESEER_COUNTS, (120, 500, 1000)),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("form", ["", "-npz"])
def test_citation_graphs(name, form):
    graph = load(name + form)
    nodes, features, edges, counts, split = GRAPHS[name]
    assert tuple(graph.x.shape) == (nodes, features)
    assert graph.edge_index.shape == (2, 2 * edges)
    assert per_class(graph.y) == counts
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    assert tuple(int(mask.sum()) for mask in masks) == split
    assert not (graph.train_mask & graph.test_mask).any()
    assert int((graph.y == -1).sum()) == nodes - sum(counts)


@pytest.mark.parametrize("name", GRAPHS)
def test_raw_files_and_npz_hold_the_same_graph(name):
    raw, npz = load(name), load(f"{name}-npz")
    assert torch.equal(raw.x, npz.x)
    assert torch.equal(raw.y, npz.y)
    for mask in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(raw, mask), getattr(npz, mask))

    def pairs(graph):
        return set(map(tuple, graph.edge_index.T.tolist()))

    assert pairs(raw) == pairs(npz)


HYPERGRAPHS = {
    "cocitation-cora": (2708, 1579, 4786, 1434, [418, 351, 180, 818, 298, 426, 217], (140, 2568)),
    "cocitation-citeseer": (3312, 1079, 3453, 1458, [701, 596, 508, 590, 668, 249], (138, 3174)),
    "coauthorship-cora": (2708, 1072, 4585, 2388, None, (140, 2568)),
}


@pytest.mark.parametrize("name", HYPERGRAPHS)
def test_hypergraphs(name):
    graph = load(name)
    nodes, hyperedges, nnz, covered, counts, split = HYPERGRAPHS[name]
    assert len(graph.x) == len(graph.y) == nodes
    assert graph.num_hyperedges == hyperedges
    assert graph.hyperedge_index.shape == (2, nnz)
    assert len(graph.hyperedge_index[0].unique()) == covered
    assert counts is None or per_class(graph.y) == counts
    assert len(graph.splits) == 10
    for train, test in graph.splits:
        assert (len(train), len(test)) == split
        assert len(set(train.tolist()) | set(test.tolist())) == nodes


def test_bccd():
    data = load("bccd")
    assert (len(data.train), len(data.val), len(data.test)) == (205, 87, 72)
    counts = np.zeros(3, dtype=int)
    for part in (data.train, data.val, data.test):
        for item in part.items:  # still encoded: boxes without decoding 364 pictures
            counts += np.bincount(item.labels, minlength=3)
            assert (item.boxes[:, 2:] > item.boxes[:, :2]).all()
            assert item.boxes.min() >= 0
            assert (item.boxes <= [640, 480, 640, 480]).all()
    assert dict(zip(data.class_names, counts.tolist(), strict=True)) == {
        "RBC": 4155,
        "WBC": 372,
        "Platelets": 361,
    }
    image, target = data.train[0]
    assert image.shape == (3, 480, 640)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64


def test_bccd_box_in_pixels():
    # BloodImage_00001 is the first training image; its first box is read here by hand
    import re

    text = read_members(find("bccd/bccd_voc.zip"))["BCCD/Annotations/BloodImage_00001.xml"].decode()
    xmin, ymin, xmax, ymax = (int(number) for number in re.findall(r"<[xy]m\w+>(\d+)<", text)[:4])
    _, target = load("bccd").train[0]
    assert target["boxes"][0].tolist() == [xmin - 1, ymin - 1, xmax, ymax]


def test_omniglot():
    one, two, both = (load(name) for name in ("omniglot-small1", "omniglot-small2", "omniglot"))
    assert (len(one.images), len(two.images)) == (2720, 3120)
    assert (int(one.character.max()) + 1, int(two.character.max()) + 1) == (136, 156)
    assert one.alphabet_names == ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    assert "Japanese_(katakana)" in two.alphabet_names
    assert len(both.alphabet_names) == 8
    assert set(per_class(both.character)) == {20}  # every character by 20 drawers
    shared = {"Greek", "Latin"}
    counts = dict(zip(one.alphabet_names, per_class(one.alphabet), strict=True))
    assert len(both.images) == 2720 + 3120 - sum(counts[name] for name in shared)
    assert len(both.runs) == 20
    for run in both.runs:
        assert run.train.shape == run.test.shape == (20, 1, 105, 105)
        assert sorted(run.answers.tolist()) == list(range(20))
    image = both.images[0]
    assert image.shape == (1, 105, 105)
    assert set(image.unique().tolist()) == {0.0, 1.0}
    assert image.mean() < 0.2  # ink is 1


def test_shared_alphabets_of_omniglot_are_the_same_drawings():
    sets = [read_members(find(f"omniglot/images_background_small{n}.zip")) for n in (1, 2)]
    first, second = (
        {name.partition("/")[2]: content for name, content in found.items()} for found in sets
    )
    shared = set(first) & set(second)
    assert {name.partition("/")[0] for name in shared} == {"Greek", "Latin"}
    assert all(first[name] == second[name] for name in shared)


def test_camvid():
    data = load("camvid")
    assert (len(data.train), len(data.val), len(data.test)) == (367, 101, 233)
    assert (data.num_classes, data.ignore_index) == (11, 11)
    seen = set()
    for index in range(0, 367, 40):
        image, mask = data.train[index]
        assert image.shape == (3, 180, 240)
        assert mask.shape == (180, 240)
        assert mask.dtype == torch.int64
        seen |= set(mask.unique().tolist())
    assert seen <= set(range(12))
    assert {0, 1, 3, 5, 8} <= seen  # sky, building, road, tree, car


def test_isbi():
    data = load("isbi-em")
    assert (len(data.train), len(data.val), len(data.test)) == (20, 5, 5)
    masks = torch.stack([data.train[index][1] for index in range(20)])
    assert data.train[0][0].shape == (1, 512, 512)
    # interior covers about 78 % of the pixels
    assert (masks == 0).double().mean().item() == pytest.approx(0.78, abs=0.01)


def test_drive():
    data = load("drive")
    assert (len(data.train), len(data.val), len(data.test)) == (20, 0, 10)
    assert len(data.second_observer) == 10
    image, mask = data.test[0]
    assert image.shape == (3, 584, 565)
    assert set(mask.unique().tolist()) == {0, 1, 255}
    second = data.second_observer[0]
    assert torch.equal(second == 255, mask == 255)
    inside = mask != 255
    overlap = 2 * (second * mask)[inside].sum() / (second[inside].sum() + mask[inside].sum())
    assert overlap > 0.7  # two people, one picture
    assert image[:, ~inside].mean() < 0.1  # black outside the field of view


def test_chasedb1():
    data = load("chasedb1")
    assert (len(data.train), len(data.test), len(data.second_observer)) == (20, 8, 8)
    image, mask = data.train[0]
    assert image.shape == (3, 960, 999)
    assert set(mask.unique().tolist()) == {0, 1}
    second, first = data.second_observer[0], data.test[0][1]
    assert 2 * (second * first).sum() / (second.sum() + first.sum()) > 0.6


@pytest.mark.parametrize("name", ["crackforest", "crackforest-boundaries"])
def test_crackforest(name):
    data = load(name)
    assert (len(data.train), len(data.val), len(data.test)) == (71, 24, 23)
    assert len(data.unlabelled) == 37
    image, mask = data.train[0]
    assert image.shape[1:] == mask.shape
    assert set(mask.unique().tolist()) == {0, 1}
    names = [item.name for part in (data.train, data.val, data.test) for item in part.items]
    assert len(set(names)) == 118


def test_magnetic_tile():
    data = load("magnetic-tile")
    items = [item for part in (data.train, data.val, data.test) for item in part.items]
    folders = [item.name.partition("/")[0] for item in items]
    counts = {name: folders.count(name) for name in set(folders)}
    assert counts == {
        "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103, "free": 200,
    }  # fmt: skip
    empty = 0
    for part in (data.train, data.val, data.test):
        for sample, item in zip(range(len(part)), part.items, strict=True):
            if item.name.startswith(("uneven", "fray")):
                mask = part[sample][1]
                assert set(mask.unique().tolist()) <= {0, item.label}
                empty += not mask.any()
    assert empty == 6


def test_no_magnetic_tile_is_in_two_parts():
    data = load("magnetic-tile")
    parts = (data.train, data.val, data.test)
    shots = [  # one blowhole in three lights, by eye
        f"blowhole/image/exp{light}.jpg"
        for light in ("1_num_108719", "4_num_108774", "6_num_108812")
    ]
    holding = {n for n, part in enumerate(parts) for item in part.items if item.name in shots}
    assert len(holding) == 1
    for kind in range(len(data.class_names)):
        shares = [sum(item.label == kind for item in part.items) for part in parts]
        assert min(shares) / sum(shares) > 0.1
        assert max(shares) == shares[0]


IMAGE_SETS = {"set12": (12, 1), "bsd68": (68, 1), "set5": (5, 3), "set14": (14, None),
              "train400": (400, 1)}  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_image_sets(name):
    data = load(name)
    count, channels = IMAGE_SETS[name]
    assert len(data.images) == len(data.names) == count
    image = data.images[0]
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert channels is None or len(image) == channels


def test_sizes_of_image_sets():
    sizes = [tuple(image.shape[1:]) for image in load("set12").images]
    assert (sizes.count((256, 256)), sizes.count((512, 512))) == (7, 5)
    assert {tuple(image.shape[1:]) for image in load("bsd68").images} == {(481, 321), (321, 481)}
    assert load("train400").images[17].shape == (1, 180, 180)


def test_sample_photographs():
    data = sources.load("sample-photographs")
    assert data.names == ("china", "flower")
    assert all(image.shape == (3, 427, 640) for image in data.images)


def test_teddy_cones():
    pairs = load("teddy-cones").pairs
    assert set(pairs) == {"teddy", "cones"}
    for pair in pairs.values():
        assert pair.left.shape == pair.right.shape == (3, 375, 450)
        unknown = (pair.left_disparity == 0).double().mean()
        assert 0.01 < unknown < 0.05
        # the right view, moved by the disparity, shows the left view
        rows, columns = (pair.left_disparity > 0).nonzero().T
        there = (columns - pair.left_disparity[rows, columns]).round().long()
        seen = there >= 0
        rows, columns, there = rows[seen], columns[seen], there[seen]
        moved = (pair.left[:, rows, columns] - pair.right[:, rows, there]).abs().mean()
        still = (pair.left - pair.right).abs().mean()
        assert moved < 0.5 * still


def test_davis():
    clip = load("davis-car-shadow")
    assert clip.frames.shape == (40, 3, 240, 427)
    assert clip.masks.shape == (40, 240, 427)
    small = load("davis-car-shadow-grey")
    assert small.frames.shape == (40, 1, 120, 214)
    assert small.masks.shape == (40, 120, 214)
    assert set(small.masks.unique().tolist()) == set(clip.masks.unique().tolist()) == {0, 1}
    shares = clip.masks.double().mean((1, 2)), small.masks.double().mean((1, 2))
    torch.testing.assert_close(*shares, atol=2e-3, rtol=0.03)  # the same object


MESHES = {
    "alligator": (3208, 5981), "beetle": (1148, 2053), "cheburashka": (6669, 13334),
    "cow": (2903, 5804), "fandisk": (6475, 12946), "homer": (6002, 12000),
    "rocker-arm": (10044, 20088), "spot": (2930, 5856), "stanford-bunny": (35947, 69451),
    "suzanne": (507, 500), "teapot": (3644, 6320), "woody": (694, 1267),
}  # fmt: skip


def test_meshes():
    data = load("meshes")
    assert set(data.meshes) == set(MESHES)
    for name, content in read_members(find("meshes/meshes_obj.zip")).items():
        _, polygons = shapes.parse_obj(content.decode("latin1"), name)
        stem = name.removesuffix(".obj")
        mesh = data.meshes[stem]
        assert (len(mesh.vertices), len(polygons)) == MESHES[stem]
        assert len(mesh.faces) == sum(len(polygon) - 2 for polygon in polygons)


def test_closed_meshes_obey_euler():
    mesh = load("meshes").meshes["spot"]  # a cow without holes: V - E + F = 2
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    unique = len(edges.sort(1).values.unique(dim=0))
    assert len(mesh.vertices) - unique + len(mesh.faces) == 2


def test_modelnet():
    bathtubs = load("modelnet10-bathtub").meshes
    assert list(bathtubs) == [f"bathtub_000{number}" for number in range(1, 6)]
    assert (len(bathtubs["bathtub_0001"].vertices), len(bathtubs["bathtub_0001"].faces)) == (
        3514,
        3546,
    )
    voxels = load("modelnet10-voxels")
    assert voxels.x.shape == (1354, 32, 32, 32)
    assert per_class(voxels.y) == [889, 465]
    assert voxels.x.flatten(1).any(1).all()


VIEWS = {
    "bbcsport": ((3183, 3203), [62, 104, 193, 124, 61]),
    "msrc-v1": ((24, 576, 512, 256, 254), [30] * 7),
    "uci-digits": ((240, 76, 216, 47, 64, 6), [200] * 10),
    "3sources": ((3560, 3631, 3068), [56, 21, 11, 18, 51, 12]),
    "100leaves": ((64, 64, 64), [16] * 100),
    "webkb": ((1840, 3000), [230, 821]),
    "ngs": ((2000, 2000, 2000), [100] * 5),
    "bdgp": ((1000, 500), [500] * 5),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    data = load(name)
    features, counts = VIEWS[name]
    assert [view.shape for view in data.views] == [(sum(counts), d) for d in features]
    assert all(view.dtype == np.float64 for view in data.views)
    assert per_class(data.y) == counts
    assert len(data.view_names) == len(features)
    assert data.num_classes == len(counts)


def test_emotions():
    data = load("emotions")
    assert [view.shape for view in data.views] == [(593, 64), (593, 8)]
    assert data.Y.sum(0).tolist() == [173, 166, 264, 148, 168, 189]
    assert len(data.label_names) == 6


MATRICES = {
    "orl": (400, (32, 32), [10] * 40),
    "yale": (165, (50, 50), [11] * 15),
    "yaleb": (944, (32, 32), None),
    "coil20": (1440, (32, 32), [72] * 20),
    "cbcl-faces": (2429, (19, 19), []),
    "alphadigits": (1014, (20, 16), [39] * 26),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name):
    data = load(name)
    count, shape, counts = MATRICES[name]
    assert data.X.shape == (count, shape[0] * shape[1])
    assert data.X.dtype == np.float64
    assert data.image_shape == shape
    assert data.X.min() >= 0
    assert data.X.max() <= 1
    if counts is None:
        assert len(per_class(data.y)) == 15
        assert set(per_class(data.y)) <= set(range(59, 65))
    elif counts:
        assert per_class(data.y) == counts
    else:
        assert data.y is None


@pytest.mark.parametrize("name", ["orl", "yaleb", "cbcl-faces"])
def test_faces_stand_upright(name):
    # Averaged over people, a face is symmetric about the vertical axis, not the horizontal one.
    data = load(name)
    face = data.X.mean(0).reshape(data.image_shape)
    sideways = np.abs(face - face[:, ::-1]).mean()
    upside_down = np.abs(face - face[::-1]).mean()
    assert sideways < upside_down


def test_letters_stand_upright():
    data = load("alphadigits")
    letter = data.X[data.y == data.class_names.index("L")].mean(0).reshape(20, 16)
    assert letter[:, :8].sum() > letter[:, 8:].sum()  # the stroke is at the left
    assert letter[10:].sum() > letter[:10].sum()  # the foot is at the bottom


CHECKED = set(CLASSIFICATION) | {"cifar10n", "cifar10h", "modelnet10-voxels"}  # slow to load again


@pytest.mark.parametrize(
    "name", [source.name for source in sources.names() if source.name not in CHECKED]
)
def test_kind_is_as_listed(name):
    data = load(name)
    assert type(data) is getattr(kinds, sources.kind_of(name))
    assert data.origin.name == name
    assert data.origin.title
    assert data.origin.licence


def test_every_file_is_used_and_intact():
    from cv_core.data.root import check_file

    used = {file.path for entry in sources.catalogue().values() for file in entry.origin.files}
    assert used == set(sources.data_files())
    present = [file for file in sources.data_files().values() if (path := _path(file)).is_file()]
    assert len(present) >= 76
    for file in present:
        path = _path(file)
        check_file(path, file)
        assert file.size == path.stat().st_size


def _path(file):
    from cv_core.data.root import locate

    return locate(file.path)
