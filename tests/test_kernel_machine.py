"""What a kernel makes of its machine: packages that the image lacks, from wheels in the mounts, and a full disk."""

import sys
import zipfile
from pathlib import Path

import pytest
from fake_scripts import HANDS_IN, fake_kernel

from kernels import calls, machine, mounts

INFER = "infer.py --runs run --out preds/a"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return fake_kernel(tmp_path, monkeypatch)


def make_wheel(folder: Path, name: str, version: str, *needs: str, tag: str = "py3-none-any", body: str = "") -> Path:
    """A wheel of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", body or f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def test_what_the_image_lacks_is_installed_for_the_calls(fake, capsys):
    """The newest wheel in bounds, with what it needs in turn; nothing of it in the working folder or here. What the
    image has in another version stays, where no mount has a wheel that fits."""
    wheels = fake.inputs / "datasets" / "me" / "wheels"
    make_wheel(wheels, "landfold_probe", "1.0")
    make_wheel(wheels, "landfold_probe", "1.5", "landfold-helper>=3", "landfold-x; extra == 'more'", "numpy>=99")
    make_wheel(wheels, "landfold_probe", "2.0")
    make_wheel(wheels, "landfold_probe", "1.9", tag="cp27-cp27m-win32")
    make_wheel(wheels, "landfold_helper", "3.0")
    fake.script("infer.py", "import landfold_probe, landfold_helper\n"
                "print('probe', landfold_probe.version, landfold_helper.version)")  # fmt: skip
    assert fake.train("infer.py --runs a", packages=["landfold-probe>=1.2,<2", "numpy>=1.26"]) == 0
    said = capsys.readouterr().out
    assert "installed landfold_helper-3.0-py3-none-any.whl\ninstalled landfold_probe-1.5-py3-none-any.whl\n" in said
    assert "probe 1.5 3.0" in said and "landfold_probe" not in sys.modules
    assert [path.name for path in fake.working.iterdir()] == ["noted.jsonl"]


def test_a_newer_wheel_comes_before_an_old_package_of_the_image(fake, monkeypatch, capsys):
    old = fake.inputs.parent / "image"
    (old / "landfold_probe-1.0.dist-info").mkdir(parents=True)
    (old / "landfold_probe.py").write_text("version = 'old'")
    (old / "landfold_probe-1.0.dist-info" / "METADATA").write_text("Name: landfold-probe\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(old))
    monkeypatch.setenv("PYTHONPATH", str(old))
    fake.script("infer.py", "import landfold_probe; print('probe', landfold_probe.version)")
    assert fake.train("infer.py --runs a", packages=["landfold-probe>=1.0"]) == 0
    assert "probe old" in capsys.readouterr().out
    make_wheel(fake.inputs / "wheels", "landfold_probe", "1.1")
    assert fake.train("infer.py --runs a", packages=["landfold-probe>=1.1"]) == 0
    assert "probe 1.1" in capsys.readouterr().out


def test_what_a_wheel_needs_is_replaced_where_a_wheel_fits(tmp_path):
    one = make_wheel(tmp_path, "landfold_probe", "1.5", "packaging>=1000", "pip>=1000")
    other = make_wheel(tmp_path, "packaging", "1000.1")
    make_wheel(tmp_path, "pip", "999")
    assert machine.choose_wheels(["landfold-probe"], mounts.walk(tmp_path)) == [one, other]


def test_packages_that_no_mount_has_are_named(fake, capsys):
    make_wheel(fake.inputs / "wheels", "landfold_probe", "1.5", "landfold-helper")
    assert fake.train("infer.py --runs a", packages=["landfold-probe", "landfold-absent>=2", "numpy<1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "python kernels/build.py --wheels" in error and not fake.noted()
    assert "landfold-absent>=2 (here: none), landfold-helper (here: none), numpy<1 (here: " in error


def test_a_damaged_wheel_is_named(fake, capsys):
    wheel = make_wheel(fake.inputs / "wheels", "landfold_probe", "1.5")
    for damage in (lambda: wheel.write_bytes(b"no zip"), lambda: zipfile.ZipFile(wheel, "w").close()):
        damage()
        assert fake.train("infer.py --runs a", packages=["landfold-probe"]) == 2
        assert "landfold_probe-1.5-py3-none-any.whl" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["opencv-python", "opencv-contrib-python-headless"])
def test_opencv_has_several_names(monkeypatch, name):
    def version(asked: str) -> str:
        if asked != name:
            raise machine.importlib.metadata.PackageNotFoundError
        return "4.10.0"

    monkeypatch.setattr(machine.importlib.metadata, "version", version)
    assert machine.lacking(["opencv-python-headless>=4.9"]) == []
    assert [str(one) for one in machine.lacking(["opencv-python-headless>=4.11", "opencvx"])] == [
        "opencv-python-headless>=4.11", "opencvx"
    ]  # fmt: skip


def test_requirements_of_another_python_do_not_count():
    assert machine.lacking(["landfold-absent; python_version < '3'", "numpy>=1.0"]) == []


def test_the_disk_is_watched(fake, monkeypatch, capsys):
    """Low: said once, and the calls go on. Nothing left: the call is ended, what was handed in stays."""
    free = fake.working / "free"
    free.write_text("10e9")
    monkeypatch.setattr(machine, "WARN", 2e9)
    monkeypatch.setattr(machine, "STOP", 200e6)
    monkeypatch.setattr(calls, "LOOK", 0.0)
    monkeypatch.setattr(machine.Disk, "free", lambda disk: float(free.read_text() or 10e9))
    fake.script("infer.py", f"Path('free').write_text('1.9e9'); time.sleep(1)\n{HANDS_IN}")
    fake.script("ensemble.py", "Path('free').write_text('1.99e8'); time.sleep(600)")
    assert fake.run(INFER, INFER) == 0
    assert capsys.readouterr().out.count("DISK: 1.90 GB are left") == 1
    assert fake.run(INFER, "ensemble.py --out out") == 2
    said = capsys.readouterr()
    assert f"{fake.working}: 199 MB of disk are left" in said.err and said.err.count("\n") == 1
    assert "stays as it was handed in" in said.out


def test_a_full_disk_is_seen_before_the_first_call(fake, small_disk, monkeypatch, capsys):
    """A disk of 256 KB, where less is left than a call needs."""
    monkeypatch.setattr(machine, "STOP", 200e6)
    fake.working = small_disk
    assert fake.run(INFER) == 2
    assert f"{small_disk}: 0 MB of disk are left" in capsys.readouterr().err and not fake.noted()
