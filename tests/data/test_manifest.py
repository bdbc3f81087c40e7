import argparse
import hashlib
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image

from common import files
from common.cli import Parser
from common.data import manifest, prototype
from common.data.images import list_classes
from common.data.sets import SPLITS, FileSet
from common.errors import UserError
from tests.data.conftest import SPLIT, draw, fails


def seats(drawn):
    """{path: split} of each image."""
    return {row.path: row.split for row in drawn.rows}


def chosen(root, classes, per_class, seed=0):
    return manifest.choose(list_classes(root)[0], classes, per_class, seed)


def test_every_class_is_in_every_split_and_the_catalogue_counts_the_rows(root):
    drawn = draw(root)
    wanted = {"classes": 3, "images_per_class": 8, "total": 24, "train": 18, "val": 3, "test": 3}
    assert drawn.catalogue() == wanted
    for class_id in {row.class_id for row in drawn.rows}:
        class_splits = Counter(row.split for row in drawn.rows if row.class_id == class_id)
        assert class_splits == {"train": 6, "val": 1, "test": 1}
    assert len({row.path for row in drawn.rows}) == 24
    assert drawn.quarantined == []
    fewer = replace(drawn, rows=drawn.rows[1:])
    assert fewer.catalogue()["images_per_class"] == [7, 8]
    assert fewer.catalogue()["total"] == 23


def test_a_row_describes_its_file(root):
    for row in draw(root).rows:
        content = (root / row.path).read_bytes()
        assert (row.bytes, row.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        with Image.open(root / row.path) as image:
            assert (row.width, row.height) == image.size
        assert row.path.startswith(f"{row.class_id}/{row.class_id} ")


def test_split_sizes_by_largest_remainder():
    assert manifest.split_sizes(600, SPLIT) == [420, 90, 90]
    assert manifest.split_sizes(10, SPLIT) == [7, 2, 1]  # 7, 1.5, 1.5
    assert manifest.split_sizes(8, SPLIT) == [6, 1, 1]  # 5.6, 1.2, 1.2
    assert manifest.split_sizes(5, (0.5, 0.25, 0.25)) == [3, 1, 1]  # 2.5, 1.25, 1.25
    assert manifest.split_sizes(3, SPLIT) == [1, 1, 1]
    assert manifest.split_sizes(10, (0.98, 0.01, 0.01)) == [8, 1, 1]


@pytest.mark.parametrize("images", [3, 7, 50, 601])
@pytest.mark.parametrize("split", [SPLIT, (0.4, 0.3, 0.3), (0.05, 0.05, 0.9), (1 / 3,) * 3])
def test_split_sizes_add_up_and_are_within_one_of_the_shares(images, split):
    sizes = manifest.split_sizes(images, split)
    assert sum(sizes) == images
    assert min(sizes) >= 1
    if images * min(split) >= 1:
        pairs = zip(sizes, split, strict=True)
        assert all(abs(size - images * fraction) < 1 for size, fraction in pairs)


def test_the_same_seed_draws_the_same_from_any_order_of_the_file_system(root):
    first, another = draw(root), draw(root, seed=1)
    assert seats(first) != seats(another)
    for path in sorted(root.glob("*/*.png"), reverse=True):  # rewritten, the last one first
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert draw(root) == first


def test_the_draw_of_seed_0_is_for_ever(root):
    """A change here means that seeds no longer give the published data sets."""
    drawn = chosen(root, 2, 3)
    assert list(drawn) == ["b", "c"]
    numbers = [int(name[2:-4]) for name in drawn["b"]]
    assert numbers == [6, 3, 2, 0, 1, 4, 8, 9, 5, 7, 10, 11]


def test_fewer_images_are_the_first_of_more(root):
    more, fewer = (
        {class_id: files[:count] for class_id, files in drawn.items()}
        for count in (9, 4)
        for drawn in [chosen(root, 3, count, seed=5)]
    )
    assert {class_id: files[:4] for class_id, files in more.items()} == fewer


def test_a_small_class_is_left_out_or_taken_with_what_it_has(root):
    for seed in range(5):
        (root / "c" / f"c {seed}.png").unlink()
    (root / "0 empty").mkdir()
    without = draw(root, classes=None)
    assert "c" not in {row.class_id for row in without.rows}
    assert without.left_out == ["0 empty: 0 images, not 8", "c: 7 images, not 8"]
    with_it = draw(root, classes=4, allow_fewer=True)
    counts = Counter((row.class_id, row.split) for row in with_it.rows)
    assert [counts["c", split] for split in SPLITS] == [5, 1, 1]
    assert with_it.catalogue()["images_per_class"] == [7, 8]
    assert with_it.left_out == ["0 empty: 0 images, not 3"]
    fails(r"3 of 5 classes have at least 8 .*\(0 to 12 per class\)", root, classes=4)


def test_more_than_there_is_is_refused(root):
    fails(r"4 of 4 classes have at least 8 images .*lower --classes", root, classes=5)
    fails(r"0 of 4 classes have at least 13 images \(12 to 12", root, per_class=13)


def test_a_corrupt_file_is_quarantined_and_its_seat_goes_to_the_next_draw(root):
    before = draw(root)
    class_id = before.rows[0].class_id
    order = chosen(root, 3, 8)[class_id]
    half, empty = (f"{class_id}/{name}" for name in (order[0], order[7]))
    split_of = seats(before)
    (root / half).write_bytes((root / half).read_bytes()[:90])
    (root / empty).write_bytes(b"")
    after = draw(root)
    assert [line.split(":")[0] for line in after.quarantined] == [half, empty]
    assert "damaged image" in after.quarantined[0]
    assert "not an image" in after.quarantined[1]
    assert str(root) not in " ".join(after.quarantined)
    for bad, name in ((half, order[8]), (empty, order[9])):
        split_of[f"{class_id}/{name}"] = split_of.pop(bad)
    assert seats(after) == split_of


def test_a_class_that_runs_out_is_left_out_or_refused(root):
    bad, *others = sorted("abcd")
    for seed in range(5):
        (root / bad / f"{bad} {seed}.png").write_text("no image")
    drawn = draw(root, classes=None)
    assert {row.class_id for row in drawn.rows} == {*others}
    assert drawn.left_out == [f"{bad}: 7 good images, not 8"]
    assert draw(root, classes=4, allow_fewer=True).catalogue()["images_per_class"] == [7, 8]
    fails(r"3 of 4 classes have at least 8 good images \(a: 7 good", root, classes=4)


def test_a_picture_is_never_drawn_twice_also_across_classes_and_saved_again(root):
    order = chosen(root, 3, 8)
    (first, names), (other, other_names) = list(order.items())[:2]
    exif = Image.Exif()
    exif[0x0131] = "a program"
    with Image.open(root / first / names[0]) as image:
        image.save(root / first / names[7], exif=exif)
    assert (root / first / names[7]).read_bytes() != (root / first / names[0]).read_bytes()
    shutil.copy(root / first / names[1], root / other / other_names[3])
    drawn = draw(root)
    assert drawn.quarantined == [
        f"{first}/{names[7]}: duplicate of {first}/{names[0]}",
        f"{other}/{other_names[3]}: duplicate of {first}/{names[1]}",
    ]
    assert drawn.catalogue()["total"] == len({row.sha256 for row in drawn.rows}) == 24
    assert draw(root) == drawn


def test_sets_are_labelled_by_sorted_id(root, tmp_path):
    (tmp_path / "words.txt").write_text("a\tcrane\nb\tbee\nc\tcrane\n")
    drawn = draw(root, classes=4)
    sets = drawn.sets()
    assert list(sets) == ["train", "val", "test"]
    for split, images in sets.items():
        assert isinstance(images, FileSet)
        assert images.class_names == ["crane (a)", "bee", "crane (c)", "d"]
        class_ids = [path.parent.name for path in images.files]
        assert ["abcd"[label] for label in images.labels] == class_ids
        wanted = [root / path for path, in_split in seats(drawn).items() if in_split == split]
        assert images.files == wanted
    assert {row.class_name for row in drawn.rows} == {"crane", "bee", "d"}


def written(root, tmp_path):
    drawn = draw(root)
    path = tmp_path / "manifest.csv"
    files.save(path, drawn.csv_bytes())
    return drawn, path


def test_a_manifest_rebuilds_its_set(root, tmp_path):
    (root / "a" / "a 0.png").rename(root / "a" / 'a,"\n\r.png')
    (root / "a" / "a 1.png").rename(root / "a" / os.fsdecode(b"\xff.png"))
    drawn = draw(root, classes=4, per_class=12)
    path = tmp_path / "manifest.csv"
    content = drawn.csv_bytes()
    assert files.save(path, content) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert draw(root, classes=4, per_class=12).csv_bytes() == content
    header = b"path,class_id,class_name,split,width,height,bytes,sha256\n"
    assert content.startswith(header)
    assert b"a/\xff.png" in content
    assert manifest.read(path, root) == drawn
    paths = [row.path for row in drawn.rows]
    assert all(before < after for before, after in pairwise(paths))


def test_a_missing_or_changed_file_is_named(root, tmp_path):
    drawn, path = written(root, tmp_path)
    file = root / drawn.rows[3].path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the length stays the same
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"png: changed since .*manifest.csv .*\(1 of 24 im"):
        manifest.read(path, root)
    file.unlink()
    (root / drawn.rows[5].path).unlink()
    with pytest.raises(UserError, match=r"png: missing since .*\(2 of 24 im") as error:
        manifest.read(path, root)
    assert str(error.value).startswith(str(file))
    with pytest.raises(UserError, match=r"missing since .*\(24 of 24 im"):
        manifest.read(path, tmp_path / "none")


def test_a_changed_manifest_and_another_file_are_refused(root, tmp_path):
    _, path = written(root, tmp_path)
    path.write_text(path.read_text().replace("class_id", "class"))
    with pytest.raises(UserError, match=r"manifest.csv: damaged or changed"):
        manifest.read(path, root)
    files.record(path)
    with pytest.raises(UserError, match=r"manifest.csv: not a manifest of this project"):
        manifest.read(path, root)


def test_sets_of_other_contents_are_other_sets_though_names_and_sizes_agree(root, tmp_path):
    drawn, _ = written(root, tmp_path)
    rows = [replace(row, sha256="0") for row in drawn.rows]
    for split, images in drawn.sets().items():
        assert images.fingerprint() == drawn.sets()[split].fingerprint()
        assert images.fingerprint() != replace(drawn, rows=rows).sets()[split].fingerprint()


# ------------------------------------------------------------------------------- class folders


@pytest.mark.usefixtures("root")
def test_folders_of_no_use_end_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(r"empty: holds 0 class folder\(s\)", tmp_path / "empty")
    (tmp_path / "val").mkdir()
    fails(r"images/a: a folder inside a class folder", tmp_path)
    (tmp_path / "val" / "a" / "roses.jpg").mkdir(parents=True)  # a folder in spite of its name
    fails(r"roses\.jpg: a folder inside a class folder", tmp_path / "val")


def test_files_among_the_class_folders(root):
    before = draw(root)
    names = (".DS_Store", "words.txt", "LOC_synset_mapping.txt", "a/._a 0.png", "a/.DS_Store")
    for name in (*names, "a/IMG_1.HEIC", "b/notes.txt"):
        (root / name).write_text("")
    (root / "a" / ".cache").mkdir()
    after = draw(root)
    assert after.rows == before.rows
    assert after.left_out == [
        "a/._a 0.png: hidden",
        "a/IMG_1.HEIC: no image by its ending; rename or convert it",
        "b/notes.txt: no image by its ending; rename or convert it",
    ]
    shutil.copy(root / "a" / "a 0.png", root / "stray.png")
    assert "stray.png: a file among the class folders" in draw(root).left_out


def test_one_may_work_in_the_datas_own_folder(root):
    before = draw(root)
    for name in ("problem3", "outputs/problem3"):
        (root / name).mkdir(parents=True)
        assert manifest.draw(root, 3, 8, SPLIT, 0, False, written=[root / name]) == before
        shutil.rmtree(root / name.split("/")[0])


def test_links_are_followed(root, tmp_path):
    before = draw(root)
    (tmp_path / "link").symlink_to(root)  # the data folder itself may be a link
    assert draw(tmp_path / "link").rows == before.rows
    shutil.move(root / "b", tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    shutil.move(root / "a" / "a 0.png", tmp_path / "outside.png")
    (root / "a" / "a 0.png").symlink_to(tmp_path / "outside.png")
    assert draw(root) == before


def test_class_names(root):
    from_the_package = {"n01440764": "tench, Tinca tinca"}
    names = manifest.class_names(root, ["b", "a", "z", *from_the_package])
    assert names == {"b": "bee", "a": "ant, emmet", "z": "z", **from_the_package}
    (root / "LOC_synset_mapping.txt").write_text("a army ant, driver\nz zebra\n")
    names = manifest.class_names(root, ["a", "b", "z"])
    assert names == {"a": "army ant, driver", "b": "bee", "z": "zebra"}  # the nearer file wins


# -------------------------------------------------------------------------------------------- flags


def parse(*argv):
    parser = Parser("")
    prototype.add_flags(parser)
    return parser.parse_args([*map(str, argv)])


def test_a_data_set_is_named_by_its_folder_or_said_to_be_embedded():
    assert prototype.name(parse("--data", "imagenet-10")) == "imagenet-10"
    assert prototype.name(parse("--data", "/data/imagenet-10/train")) == "imagenet-10/train"
    assert prototype.name(parse("--data", "synthetic")) == "EMBEDDED DRAWN FLOWERS, 10 classes"
    assert prototype.name(parse()) == "no data"


@pytest.mark.parametrize(
    "flags", [("--classes", 3), ("--per-class", 6), ("--allow-fewer",), ("--split", 0.6, 0.2, 0.2)]
)
def test_a_manifest_answers_what_is_drawn_but_not_of_embedded_data(flags):
    args = parse("--data", "a", "--manifest", "m.csv", *flags)
    with pytest.raises(UserError, match=f"{flags[0]}: the data set of --manifest"):
        prototype.check_flags(args, ["3.1"])
    prototype.check_flags(argparse.Namespace(**{**vars(args), "data": "synthetic"}), ["3.1"])
    prototype.check_flags(parse("--data", "a", "--manifest", "m.csv"), ["3.1"])


def test_shares_are_above_0_and_sum_to_1():
    for split in [(0.7, 0.2, 0.2), (1, 0, 0)]:
        with pytest.raises(UserError, match=r"--split .*: give three fractions above 0"):
            prototype.check_flags(parse("--data", "a", "--split", *split), [])
    # Their float sum is not exactly 1.
    prototype.check_flags(parse("--data", "a", "--split", 0.7, 0.2, 0.1), [])
