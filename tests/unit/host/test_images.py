"""Which images stand on an image, by their own headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import find_program, run_command
from tests.support.qemu import make_disk
from vmlockctl.host.images import _told_by_qemu_img, backing_chain, overlays_of, read_image

pytestmark = pytest.mark.real("qemu-img")


def overlay(path: Path, base: str, *, base_format: str = "raw") -> Path:
    command = [find_program("qemu-img"), "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", base_format]
    result = run_command([*command, str(path), "1M"])
    assert result.returncode == 0, result
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "base.img")


def test_the_header_names_the_backing_file(tmp_path: Path, base: Path) -> None:
    absolute = overlay(tmp_path / "a.qcow2", str(base))
    relative = overlay(tmp_path / "b.qcow2", "base.img")
    for image in (absolute, relative):
        found = read_image(str(image))
        assert found is not None and (found.format, found.backing) == ("qcow2", str(base))


def test_overlays_beside_it_and_elsewhere(tmp_path: Path, base: Path) -> None:
    """Also where the header has another name of the base; a torn header is no overlay."""
    beside = overlay(tmp_path / "a.qcow2", str(base))
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "else").mkdir()
    far = overlay(tmp_path / "else" / "b.qcow2", str(tmp_path / "link"))
    (tmp_path / "torn.qcow2").write_bytes(beside.read_bytes()[:18])
    assert overlays_of([str(base)], []) == [str(beside)]
    assert overlays_of([str(base)], [str(far), "/missing"]) == [str(far), str(beside)]


def test_the_chain(tmp_path: Path, base: Path) -> None:
    """As qemu-img tells it."""
    middle = overlay(tmp_path / "a.qcow2", "base.img")
    top = overlay(tmp_path / "b.qcow2", str(middle), base_format="qcow2")
    chain = backing_chain(str(top))
    assert chain == _told_by_qemu_img(str(top))
    assert ([image.format for image in chain.images], chain.problem) == (["qcow2", "qcow2", "raw"], "")
    assert chain.below == (str(middle), str(base))


def test_a_chain_that_ends_nowhere(tmp_path: Path, base: Path) -> None:
    top, ring = overlay(tmp_path / "a.qcow2", "base.img"), overlay(tmp_path / "r.qcow2", "r.qcow2")
    far = overlay(tmp_path / "n.qcow2", "nbd://host/export")
    base.unlink()
    assert backing_chain(str(top)).problem == f"{base}: No such file or directory"
    assert backing_chain(str(ring)).problem == f"{ring} stands on itself"
    assert backing_chain(str(far)).problem == "nbd://host/export: No such file or directory"


@pytest.mark.parametrize(
    "format_name", ["vmdk", "vpc", "vhdx", "vdi", "qed", "parallels", "qcow", "raw", "qcow2"]
)
def test_every_format_is_called_what_qemu_calls_it(tmp_path: Path, format_name: str) -> None:
    image = tmp_path / "image"
    result = run_command([find_program("qemu-img"), "create", "-q", "-f", format_name, str(image), "8M"])
    assert result.returncode == 0, result
    assert [found.format for found in backing_chain(str(image)).images] == [format_name]
    assert (read_image(str(image)) is None) == (format_name not in ("raw", "qcow2"))


def test_without_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.vmdk"
    path.write_bytes(b"KDMV".ljust(1024, b"\0"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert backing_chain(str(path)).problem == "neither raw nor qcow2, and qemu-img is not installed"
