"""The X-ray networks: shapes and counts worked out by hand, published names, weights from files or a clear refusal."""

from __future__ import annotations

import pytest
import torch

from pneumoscope.errors import InputError, ModelError
from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig, ResNet50, ResNetConfig
from pneumoscope.models.weights import PUBLISHED, carry_published


def test_chest_cnn_shapes_and_parameters():
    model = ChestCNN(ChestCNNConfig(features=(4, 8), classes=3)).eval()
    # block 1: 1*4*9 + 2*4; block 2: 4*8*9 + 2*8 + 8*8*9 + 2*8; head: 8*3 + 3
    assert sum(p.numel() for p in model.parameters()) == 36 + 8 + 288 + 16 + 576 + 16 + 27
    x = torch.rand(2, 1, 50, 34)
    assert model.features(x).shape == (2, 8, 12, 8)
    assert torch.allclose(model(x), model.classify(model.features(x)))
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("bad", [{"features": ()}, {"classes": 1}, {"dropout": 1.0}, {"in_channels": 0}])
def test_chest_cnn_refuses_nonsense(bad):
    with pytest.raises(InputError):
        ChestCNNConfig(**bad)


def test_resnet_has_the_published_tensors():
    model = ResNet50(ResNetConfig(classes=1000))
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    state = model.state_dict()
    assert len(state) == 320
    assert tuple(state["conv1.weight"].shape) == (64, 3, 7, 7)
    assert tuple(state["layer1.0.downsample.0.weight"].shape) == (256, 64, 1, 1)
    assert tuple(state["layer4.2.conv3.weight"].shape) == (2048, 512, 1, 1)
    assert tuple(state["fc.weight"].shape) == (1000, 2048)
    assert "layer2.1.downsample.0.weight" not in state
    assert [len(getattr(model, f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert model.layer2[0].conv2.stride == (2, 2), "the published model has its stride on the 3 x 3 convolution"
    assert len(model.weighted_layers()) == 50, "which is what the name says"


def test_resnet_of_one_channel_is_that_of_three_equal_ones():
    torch.manual_seed(0)
    model = ResNet50(ResNetConfig(width=4)).eval()
    x = torch.rand(2, 1, 64, 64)
    assert model.features(x).shape == (2, 128, 2, 2)
    assert torch.allclose(model(x), model(x.expand(-1, 3, -1, -1)), atol=1e-6)


def tiny() -> ResNet50:
    torch.manual_seed(1)
    return ResNet50(ResNetConfig(width=2, classes=5))


def test_published_weights_are_carried_but_for_the_head(tmp_path):
    torch.save({f"module.{k}": v for k, v in tiny().state_dict().items()}, tmp_path / "w.pth")
    torch.manual_seed(2)
    model = ResNet50(ResNetConfig(width=2, classes=3))
    origin = carry_published(model, "resnet50", tmp_path / "w.pth")
    assert torch.equal(model.layer4[2].conv3.weight, tiny().layer4[2].conv3.weight)
    assert set(origin.report.mismatched) == {"fc.weight", "fc.bias"}
    assert origin.published is None
    assert "no published file" in origin.sentence()


def test_a_published_file_is_known_by_its_sum(tmp_path, monkeypatch):
    torch.save(tiny().state_dict(), tmp_path / "any-name.pth")
    monkeypatch.setattr("pneumoscope.models.weights.sha256", lambda path: "0676ba61" + "0" * 56)
    origin = carry_published(ResNet50(ResNetConfig(width=2, classes=5)), "resnet50", tmp_path / "any-name.pth")
    assert origin.published == "resnet50-0676ba61.pth"


def test_old_files_lack_the_batch_counters(tmp_path):
    state = {k: v for k, v in tiny().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="does not hold resnet50"):
        carry_published(tiny(), "resnet50", tmp_path / "other.pth")
    origin = carry_published(ResNet50(ResNetConfig(width=2, classes=3)), "resnet50", tmp_path / "old.pth")
    assert all(name.endswith("num_batches_tracked") for name in origin.report.missing)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04broken"])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match="not a weights file"):
        carry_published(tiny(), "resnet50", tmp_path / "w.pth")


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(ModelError, match=r"resnet50-0676ba61\.pth.*download\.pytorch\.org"):
        carry_published(tiny(), "resnet50", tmp_path / "nothing.pth")
    assert set(PUBLISHED) == {"resnet50", "r3d_18"}


def test_pickled_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ModelError, match="not a weights file"):
        carry_published(tiny(), "resnet50", tmp_path / "trap.pth")
