"""The figures of chapter 15 against the package."""

import io
import zipfile

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mllama_lite.checkpoints import tensor_files
from mllama_lite.checkpoints.tensor_files import read_pth_index, read_safetensors
from mllama_lite.errors import InputError

WRITTEN = {
    "gate": torch.tensor([0.5]).bfloat16(),
    "norm": torch.tensor([1.5, 1.25, 1.75]).bfloat16(),
    "weight": torch.tensor([[1.0, 2], [3, 4]]).bfloat16(),
}


def test_file_of_tensors_is_the_librarys(figure):
    shown = figure("file_of_tensors")
    shown.set("Start from", "as written")
    assert bytes(shown.values()["bytes"]) == save(WRITTEN)
    assert shown.values()["refused"] is None
    assert "All tensors are what was written." in shown.words()


@pytest.mark.parametrize(
    "settings, refusal",
    [
        ({"Start from": "weight two bytes early"}, "weight begins at byte 6"),
        ({"Start from": "norm of another shape"}, "norm has 6 bytes for [2, 2]"),
        ({"Start from": "cut off"}, "its tensors end at byte 208, it has 204"),
        ({"Start from": "places exchanged"}, None),
        (
            {"Start from": "as written", "Bytes at the end": -20},
            "its header does not fit into its 188 bytes",
        ),
        ({"Start from": "as written", "Bytes at the end": 3}, "it has 211"),
        (
            {"Start from": "as written", "Tensor": "gate", "Ends at byte": 1},
            "gate has 1 bytes for [1]",
        ),
        (
            {"Start from": "as written", "Tensor": "weight", "Shape": "4"},
            None,
        ),
        (
            {
                "Start from": "as written",
                "Tensor": "weight",
                "Begins at byte": 10,
                "Ends at byte": 18,
            },
            "weight begins at byte 10, what is before ends at 8",
        ),
    ],
)
def test_file_of_tensors_is_refused_as_by_the_package(
    figure, tmp_path, settings, refusal
):
    shown = figure("file_of_tensors")
    for label, value in settings.items():
        shown.set(label, value)
    values, path = shown.values(), tmp_path / "tiny.safetensors"
    data = bytes(values["bytes"])
    path.write_bytes(data)
    if refusal is None:
        assert values["refused"] is None
        tensors, _ = read_safetensors(path)
        theirs = load(data)
        assert list(tensors) == list(values["numbers"])
        for name, stored in tensors.items():
            read = stored.read()
            assert torch.equal(read, theirs[name])
            assert values["numbers"][name] == read.flatten().tolist()
        assert "not what was written, and nothing in the file tells" in shown.words()
    else:
        with pytest.raises(InputError) as caught:
            read_safetensors(path)
        assert f"({values['refused']})" in str(caught.value)
        with pytest.raises(SafetensorError):
            load(data)
        assert refusal in shown.words()


def test_file_of_tensors_reads_other_bytes(figure):
    """Without checks an offset that is one byte off gives other numbers."""
    shown = figure("file_of_tensors")
    shown.set("Start from", "as written")
    shown.set("Tensor", "norm")
    shown.set("Begins at byte", 3)
    shown.set("Ends at byte", 9)
    data = torch.cat([t.flatten() for t in WRITTEN.values()]).view(torch.uint8)
    want = data[3:9].clone().view(torch.bfloat16).tolist()
    assert shown.values()["numbers"]["norm"] == pytest.approx(want, rel=1e-9, abs=0)
    assert "norm would not be what was written" in shown.words()


SAVED = {
    "weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "gate": torch.tensor([0.5]),
}


@pytest.mark.parametrize("done", ["nothing", "packed anew", "a member more"])
def test_zip_members_is_an_archive_that_torch_reads(figure, tmp_path, done):
    shown = figure("zip_members")
    shown.set("What was done to it", done)
    values, path = shown.values(), tmp_path / "tiny.pth"
    data = bytes(values["bytes"])
    path.write_bytes(data)
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    assert values["refused"] is None and "Accepted" in shown.words()
    index, theirs = read_pth_index(path), torch.load(path, weights_only=True)
    for name, tensor in SAVED.items():
        assert torch.equal(index[name].read(), tensor)
        assert torch.equal(theirs[name], tensor)
    with path.open("rb") as file:
        members = tensor_files._members(file)
    found = {f"tiny/{m['name']}": (m["begin"], m["size"]) for m in values["found"]}
    assert found == members
    # What is said not to be touched may hold anything.
    for member in values["found"]:
        if member["fate"] == "not touched":
            begin, size = member["begin"], member["size"]
            data = data[:begin] + b"?" * size + data[begin + size :]
    path.write_bytes(data)
    assert read_pth_index(path) == index


@pytest.mark.parametrize(
    "done, refusal",
    [
        ("a number is missing", "the numbers of weight are not where they should be"),
        ("compressed", "'tiny/data/0' is compressed"),
        ("a member twice", "'tiny/data/1' is there twice"),
        ("two in one place", "its members overlap or end behind it"),
        ("another machine’s bytes", "its byte order is b'big'"),
        ("a pickle that calls print", "its pickle asks for '__builtin__ print'"),
    ],
)
def test_zip_members_is_refused_as_by_the_package(figure, tmp_path, done, refusal):
    shown = figure("zip_members")
    shown.set("What was done to it", done)
    values = shown.values()
    (tmp_path / "tiny.pth").write_bytes(bytes(values["bytes"]))
    with pytest.raises(InputError) as caught:
        read_pth_index(tmp_path / "tiny.pth")
    assert values["refused"] == refusal and refusal in str(caught.value)
    assert f"Refused: {refusal}." in shown.words()
