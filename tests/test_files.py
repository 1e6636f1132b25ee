"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from core.files import sweep, sweep_of, sync_tree, whole_file, write_atomic


def half_written(file: Path) -> None:
    with whole_file(file) as temporary:
        temporary.write_text("half")
        file.parent.write_text("a folder cannot be written")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomic(file, b"old")
    with pytest.raises(TypeError):
        write_atomic(file, 3)  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError):
        half_written(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.glob("*f*")) == [file]


def test_a_written_file_is_readable_by_others_and_its_folder_is_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / ("n" * 200)
    write_atomic(file, "täxt")
    assert file.read_text(encoding="utf-8") == "täxt"
    assert file.stat().st_mode & 0o777 == 0o644
    sync_tree(tmp_path)


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path, home: Path) -> None:
    kept = [home, tmp_path / "model", tmp_path / ".gitignore", tmp_path / "a.tmp", tmp_path / ".link"]
    kept[1].mkdir()
    kept[2].touch()
    kept[3].touch()
    kept[4].symlink_to(home)
    (tmp_path / ".model-x1" / "deep").mkdir(parents=True)
    (tmp_path / ".state.json.x1.tmp").touch()
    sweep(tmp_path)
    sweep(tmp_path / "nothing")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_is_left_of_one_file_is_swept_and_its_neighbours_are_not(tmp_path: Path) -> None:
    kept = [tmp_path / "queue.json", tmp_path / ".queue.json", tmp_path / ".other.json.x1.tmp"]
    for path in (*kept, tmp_path / ".queue.json.x1.tmp"):
        path.touch()
    sweep_of(tmp_path / "queue.json")
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == sorted(kept)
